"""A proxy in front of a real API server that does to requests and watches what networks and servers do.

The operator speaks plain HTTP to it on loopback, it speaks TLS to the server as the admin; nothing of either is
replaced. It runs in a thread of its own between `start` and `stop`, so that a test can go on meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.daemons import free_port

Fault = Literal["500", "429", "lost"]
"""An error in the server's place, or a request that is carried out and whose answer never comes."""
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host")
CLOSING_S = 0.3
"""Connections with TLS take leave of each other before their sockets are closed."""
STATUS: dict[str, tuple[int, dict[str, str], dict[str, object]]] = {
    "500": (500, {}, {"reason": "InternalError", "message": "etcdserver: leader changed"}),
    "429": (429, {"Retry-After": "2"}, {"reason": "TooManyRequests", "message": "too many requests, try again"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that arrived; `nth` counts those of its method and kind, from 1."""

    method: str
    path: str
    watch: bool
    nth: int

    @property
    def kind(self) -> str:
        """The plural of what is asked for, with its subresource: `jobs`, `itrainruns/status`."""
        parts = self.path.strip("/").split("/")
        at = parts.index("namespaces") + 2 if "namespaces" in parts else 2 if parts[0] == "api" else 3
        return "/".join([parts[at] if at < len(parts) else "", *parts[at + 2 :]])


Plan = Callable[[Call], Fault | None]


def no_fault(call: Call) -> Fault | None:
    return None


class ApiProxy:
    """`plan` decides about each request and may be exchanged at any time; `hush`, `cut` and `mend` act on watches."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        """`folder` is for the kubeconfig of those who shall go through it."""
        self._upstream = control_plane.server
        client = control_plane.authority.client("admin", ["system:masters"])
        self._tls = ssl.create_default_context(cafile=str(control_plane.authority.pair.certificate))
        self._tls.load_cert_chain(client.certificate, client.key)
        self._port = free_port()
        self.kubeconfig = write_plain_kubeconfig(folder / "proxy.kubeconfig", self._port)
        self.plan: Plan = no_fault
        self.calls: list[Call] = []
        self.faults: Counter[str] = Counter()
        self.gone = 0
        """Watches that the server answered with 410 Gone."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._watches: set[_Watch] = set()
        self._away = False
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),), daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(timeout=10):
            raise RuntimeError("the proxy did not start")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        self._loop.close()

    def hush(self) -> int:
        """Every watch that is open now tells nothing any more and is not closed; how many there were."""
        watches = list(self._watches)
        for watch in watches:
            watch.silent = True
        return len(watches)

    def cut(self) -> None:
        """Close what is open and refuse what comes, until `mend`."""
        self._away = True
        for watch in list(self._watches):
            self._loop.call_soon_threadsafe(watch.task.cancel)

    def mend(self) -> None:
        self._away = False

    async def _main(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            application = web.Application(client_max_size=16 << 20)
            application.router.add_route("*", "/{path:.*}", partial(self._serve, session))
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()  # answers that were withheld
            await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(CLOSING_S)

    async def _serve(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        call = self._count(request)
        fault = self.plan(call)
        if fault is not None:
            self.faults[fault] += 1
        if fault in STATUS:
            code, headers, words = STATUS[fault]
            body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, **words}
            return web.json_response(body, status=code, headers=headers)
        if self._away:
            return _broken(request)
        asked = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = URL(self._upstream + request.raw_path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None if call.watch else 60)
        try:
            async with session.request(
                request.method, url, headers=asked, data=await request.read() or None, timeout=timeout
            ) as answer:
                if call.watch and answer.status == 200:
                    return await self._relay(request, answer)
                data = await answer.read()
        except (aiohttp.ClientError, OSError):
            return _broken(request)  # the server behind died: so does this connection
        if fault == "lost":
            await asyncio.sleep(3600)  # until the client gives up and its connection takes this task along
        return web.Response(body=data, status=answer.status, headers=_kept(answer.headers))

    def _count(self, request: web.Request) -> Call:
        call = Call(method=request.method, path=request.path, watch="watch" in request.query, nth=0)
        self._counts[call.method, call.kind] += 1
        nth = self._counts[call.method, call.kind]
        call = Call(method=call.method, path=call.path, watch=call.watch, nth=nth)
        self.calls.append(call)
        return call

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """A watch, line by line, until either end closes it or a test cuts it."""
        task = asyncio.current_task()
        assert task is not None
        watch = _Watch(task)
        self._watches.add(watch)
        response = web.StreamResponse(headers=_kept(answer.headers))
        try:
            await response.prepare(request)
            async for line in answer.content:
                if b'"type":"ERROR"' in line and b'"code":410' in line:
                    self.gone += 1
                if not watch.silent:
                    await response.write(line)
        except (aiohttp.ClientError, OSError):
            _broken(request)
        except asyncio.CancelledError:
            _broken(request)
            raise
        finally:
            self._watches.discard(watch)
        if watch.silent:
            await asyncio.sleep(3600)
        return response


class _Watch:
    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.silent = False


def write_plain_kubeconfig(path: Path, port: int) -> Path:
    """A kubeconfig without credentials for a server without TLS."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "current-context": "proxy",
    }
    path.write_text(json.dumps(document))
    return path


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


def _broken(request: web.Request) -> web.Response:
    """Cut the connection as a server does that dies: no answer that could be taken for one."""
    with suppress(OSError):
        if request.transport is not None:
            request.transport.abort()
    return web.Response(status=502)
