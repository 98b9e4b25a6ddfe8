"""A small OpenAI-compatible server on loopback whose replies, faults among them, are a test's own function."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Said:
    """One HTTP answer. `hang_s` waits before it; `trickle_s` sends a byte of the body each so many seconds."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_s: float = 0.0
    trickle_s: float = 0.0


@dataclass
class Seen:
    """What came in, in its order."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    url: str = ""


def completion(content: str | None = None, *, tool_calls: Any = None, finish: str = "stop") -> Said:
    message = {"role": "assistant", "content": content} | ({} if tool_calls is None else {"tool_calls": tool_calls})
    reply = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return Said(body=json.dumps(reply).encode())


def fault(status: int, message: str = "no", **headers: str) -> Said:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said(status=status, body=json.dumps({"error": {"message": message}}).encode(), headers=sent)


@contextmanager
def chat_server(reply: Callable[[dict[str, Any]], Said]) -> Iterator[Seen]:
    """Serve `reply(request body)` at `…/v1/chat/completions` until the block ends."""
    seen = Seen()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.bodies.append(body)
            seen.keys.append(self.headers.get("authorization", ""))
            said = reply(body) if self.path == "/v1/chat/completions" else fault(404, "no such path")
            ended.wait(said.hang_s)
            self.send_response(said.status)
            for name, value in {"content-type": "application/json", **said.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(said.body)))
            self.end_headers()
            pieces = [bytes([byte]) for byte in said.body] if said.trickle_s else [said.body]
            try:
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    if said.trickle_s and not ended.is_set():
                        time.sleep(said.trickle_s)
            except OSError:  # the client went away, as it should
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Nothing: the test looks at what was seen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
