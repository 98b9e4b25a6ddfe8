"""A node's log endpoint: what an API server asks a kubelet for when somebody reads a pod's log."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from itrain_testing.cluster.access import Access
from itrain_testing.cluster.pki import KeyPair


class LogNode:
    """A Node whose pods' logs are scripts: one list of lines for each time a log is opened; then the stream breaks.

    `queries` keeps what was asked, by pod.
    """

    def __init__(self, access: Access, serving: KeyPair, *, name: str) -> None:
        self.name = name
        self.scripts: dict[str, list[list[str]]] = {}
        self.queries: dict[str, list[dict[str, str]]] = {}
        self._access = access
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(serving.certificate, serving.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._access.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        patch = json.dumps({"status": status})
        self._access.kubectl("patch", "node", self.name, "--subresource=status", "--type=merge", "-p", patch)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._access.kubectl("delete", "node", self.name, "--ignore-not-found")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                pod = url.path.split("/")[3]  # /containerLogs/<namespace>/<pod>/<container>
                node.queries.setdefault(pod, []).append({k: v[0] for k, v in parse_qs(url.query).items()})
                scripts = node.scripts.get(pod) or [[]]
                lines = scripts.pop(0) if len(scripts) > 1 else scripts[0]
                self.send_response(200)
                self.end_headers()
                self.wfile.write("".join(f"{line}\n" for line in lines).encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
                return None

        return Handler
