"""An API server in memory, for what a real one cannot be made to show: dying between two requests, lost answers,
429s. Objects, versions, selectors, preconditions and foreground deletion behave as on a real server; no admission."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

from itrain_operator.kubeapi import (
    EVENTS,
    JOBS,
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    Page,
    Raw,
    Resource,
)

Fault = BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the server counts it, from 0."""

    number: int
    verb: str
    resource: Resource
    name: str

    @property
    def writes(self) -> bool:
        return self.verb not in ("get", "list", "log")

    def __str__(self) -> str:
        return f"{self.number} {self.verb} {self.resource.plural} {self.name}"


FaultScript = Callable[[Request], Fault]


def no_fault(request: Request) -> Fault:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    resource: Resource
    raw: Raw
    deleted: bool


@dataclass
class FakeServer:
    """The state. `before` may fail a request, `after` may lose its answer although it took effect."""

    now: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    before: FaultScript = no_fault
    after: FaultScript = no_fault
    requests: list[Request] = field(default_factory=list)
    events: list[WatchEvent] = field(default_factory=list)
    """Everything a watch would have told, in order."""
    logs: dict[str, str] = field(default_factory=dict)
    """By pod."""
    _objects: dict[Resource, dict[tuple[str, str], Raw]] = field(default_factory=dict)
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _rng: Random = field(default_factory=lambda: Random(0))

    # State -------------------------------------------------------------------------------------------------------

    def all(self, resource: Resource) -> list[Raw]:
        return list(self._objects.get(resource, {}).values())

    def find(self, resource: Resource, namespace: str, name: str) -> Raw | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def add(self, resource: Resource, manifest: Raw) -> Raw:
        """Store a new object as the server would; raises AlreadyExistsError."""
        raw = _copy(manifest)
        metadata = raw["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        if key in self._objects.setdefault(resource, {}):
            raise AlreadyExistsError(f'{resource.plural} "{metadata["name"]}" already exists')
        uid = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        metadata |= {"uid": uid, "creationTimestamp": self.stamp(), "generation": 1}
        self._objects[resource][key] = raw
        self.touch(resource, raw)
        return raw

    def touch(self, resource: Resource, raw: Raw) -> None:
        """A new version of an object that was changed in place."""
        raw["metadata"]["resourceVersion"] = str(next(self._versions))
        self.events.append(WatchEvent(resource=resource, raw=_copy(raw), deleted=False))

    def remove(self, resource: Resource, raw: Raw) -> None:
        metadata = raw["metadata"]
        del self._objects[resource][(metadata.get("namespace", ""), metadata["name"])]
        metadata["resourceVersion"] = str(next(self._versions))
        self.events.append(WatchEvent(resource=resource, raw=_copy(raw), deleted=True))

    def edit(self, resource: Resource, namespace: str, name: str, change: Callable[[Raw], None]) -> None:
        """A person edits an object's spec."""
        raw = self.find(resource, namespace, name)
        assert raw is not None, f"{resource.plural} {namespace}/{name} does not exist"
        change(raw)
        raw["metadata"]["generation"] += 1
        self.touch(resource, raw)

    def stamp(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    # Requests ----------------------------------------------------------------------------------------------------

    def serve(self, verb: str, resource: Resource, name: str, effect: Callable[[], Any]) -> Any:
        request = Request(number=len(self.requests), verb=verb, resource=resource, name=name)
        self.requests.append(request)
        fault = self.before(request)
        if fault is not None:
            raise fault
        answer = _copy(effect())
        fault = self.after(request)
        if fault is not None:
            raise fault
        return answer


class FakeCluster:
    """`Cluster` on a FakeServer."""

    def __init__(self, server: FakeServer, rng: Random | None = None) -> None:
        """With `rng` every request lets others go first for a while: two clients get mixed up as on a network."""
        self._server = server
        self._rng = rng

    async def _travel(self) -> None:
        if self._rng is not None:
            for _ in range(self._rng.randrange(6)):
                await asyncio.sleep(0)

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw:
        await self._travel()
        found: Raw = self._server.serve("get", resource, name, lambda: self._one(resource, namespace, name))
        return found

    async def list(
        self,
        resource: Resource,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 250,
        next_page: str = "",
    ) -> Page:
        await self._travel()

        def effect() -> Page:
            found = [
                raw
                for raw in self._server.all(resource)
                if namespace in ("", raw["metadata"].get("namespace", ""))
                and _matches(labels, (raw["metadata"].get("labels") or {}).get)
                and _matches(fields, partial(_at, raw))
            ]
            start = int(next_page or 0)
            more = str(start + limit) if start + limit < len(found) else ""
            newest = max((int(e.raw["metadata"]["resourceVersion"]) for e in self._server.events), default=0)
            return Page(items=found[start : start + limit], resource_version=str(newest), next=more)

        page: Page = self._server.serve("list", resource, labels or fields, effect)
        return page

    async def create(self, resource: Resource, namespace: str, manifest: Raw) -> Raw:
        await self._travel()
        assert manifest["metadata"]["namespace"] == namespace
        made: Raw = self._server.serve(
            "create", resource, manifest["metadata"]["name"], lambda: self._server.add(resource, manifest)
        )
        return made

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Raw) -> Raw:
        await self._travel()

        def effect() -> Raw:
            found = self._one(resource, namespace, name)
            _check(found, manifest["metadata"])
            found["spec"] = _copy(manifest["spec"])
            self._server.touch(resource, found)
            return found

        stored: Raw = self._server.serve("replace", resource, name, effect)
        return stored

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, patch: Raw, *, subresource: str = ""
    ) -> Raw:
        await self._travel()

        def effect() -> Raw:
            found = self._one(resource, namespace, name)
            _check(found, patch.get("metadata") or {})
            changes = {subresource: patch.get(subresource, {})} if subresource else patch
            merge(found, {key: value for key, value in changes.items() if key != "metadata"})
            self._server.touch(resource, found)
            return found

        stored: Raw = self._server.serve("patch", resource, name, effect)
        return stored

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> Raw | None:
        await self._travel()

        def effect() -> Raw | None:
            found = self._one(resource, namespace, name)
            _check(found, {"uid": uid})
            if resource != JOBS:
                self._server.remove(resource, found)
                return None
            found["metadata"].setdefault("deletionTimestamp", self._server.stamp())
            self._server.touch(resource, found)
            return found

        left: Raw | None = self._server.serve("delete", resource, name, effect)
        return left

    async def pod_log(self, namespace: str, name: str, *, tail_lines: int, limit_bytes: int) -> str:
        await self._travel()

        def effect() -> str:
            if name not in self._server.logs:
                raise NotFoundError(f'pods "{name}" not found')
            return "\n".join(self._server.logs[name].splitlines()[-tail_lines:])[-limit_bytes:]

        text: str = self._server.serve("log", EVENTS, name, effect)
        return text

    def _one(self, resource: Resource, namespace: str, name: str) -> Raw:
        found = self._server.find(resource, namespace, name)
        if found is None:
            raise NotFoundError(f'{resource.plural} "{name}" not found')
        return found


def merge(target: Raw, patch: Raw) -> None:
    """RFC 7386, in place."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            below = target.setdefault(key, {})
            if not isinstance(below, dict):
                below = target[key] = {}
            merge(below, value)
        else:
            target[key] = _copy(value)


def _check(found: Raw, expected: Raw) -> None:
    for name in ("uid", "resourceVersion"):
        if expected.get(name) not in (None, found["metadata"][name]):
            raise ConflictError(f"{name} is {found['metadata'][name]}, not {expected[name]}")


def _matches(selector: str, value: Callable[[str], Any]) -> bool:
    for part in filter(None, selector.split(",")):
        key, equals, wanted = part.partition("=")
        found = value(key)
        if found is None or (equals and str(found) != wanted):
            return False
    return True


def _at(raw: Raw, path: str) -> Any:
    node: Any = raw
    for step in path.split("."):
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _copy(value: Any) -> Any:
    """As over the wire; a Page is the caller's own already."""
    if isinstance(value, Page):
        return Page(items=_copy(value.items), resource_version=value.resource_version, next=value.next)
    return json.loads(json.dumps(value))
