"""An HTTP proxy in front of a server that injects faults into chosen requests.

It keeps the Host header, so that signed requests stay valid, and serves each request on a thread of its own.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["503", "slow-down", "429", "reset", "truncate"]
STATUS = {"503": 503, "slow-down": 503, "429": 429}
CODE = {"503": "ServiceUnavailable", "slow-down": "SlowDown", "429": "TooManyRequests"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`nth` counts the requests of this method and path, from 1; `path` includes the query."""

    method: str
    path: str
    nth: int


Plan = Callable[[Request], Fault | None]


@dataclass
class FaultProxy:
    """`plan` decides per request and may be replaced at any time; `requests` and `faults` count what happened."""

    upstream_port: int
    port: int = 0
    plan: Plan = lambda request: None
    requests: list[Request] = field(default_factory=list)
    faults: Counter[Fault] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def decide(self, method: str, path: str) -> Fault | None:
        with self._lock:
            nth = 1 + sum((r.method, r.path) == (method, path) for r in self.requests)
            request = Request(method=method, path=path, nth=nth)
            self.requests.append(request)
            fault = self.plan(request)
            if fault is not None:
                self.faults[fault] += 1
            return fault


@contextmanager
def running_proxy(upstream_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream_port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.decide(self.command, self.path)
            if fault == "reset":
                self.close_connection = True
                return
            if fault in STATUS:
                text = f"<Error><Code>{CODE[fault]}</Code><Message>injected</Message></Error>".encode()
                self._answer(STATUS[fault], [("Content-Type", "application/xml")], text, len(text))
                return
            connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
            try:
                connection.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
                answer = connection.getresponse()
                data = answer.read()
            except OSError:
                self.close_connection = True  # the server behind died: so does this connection
                return
            finally:
                connection.close()
            length = len(data) if self.command != "HEAD" else int(answer.headers.get("Content-Length") or 0)
            sent = data[: len(data) // 2] if fault == "truncate" else data
            self._answer(answer.status, answer.getheaders(), sent, length)
            if fault == "truncate":
                self.close_connection = True

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
            return

    return Handler
