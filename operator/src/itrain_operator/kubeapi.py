"""What the operator asks of an API server, and how a server says no. Pure: `kube` does it, tests do it in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from itrain_contract.names import API_VERSION, PLURAL

Raw = dict[str, Any]
"""An object as the API server sends it."""
PAGE_SIZE = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of object: `apiVersion` and the plural of its path."""

    api_version: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The URL path; an empty namespace means all of them."""
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [f"{root}/{self.api_version}"]
        if namespace:
            parts.append(f"namespaces/{namespace}")
        return "/".join([*parts, self.plural, *filter(None, (name, subresource))])


RUNS = Resource(api_version=API_VERSION, plural=PLURAL)
JOBS = Resource(api_version="batch/v1", plural="jobs")
PODS = Resource(api_version="v1", plural="pods")
CONFIG_MAPS = Resource(api_version="v1", plural="configmaps")
SERVICES = Resource(api_version="v1", plural="services")
EVENTS = Resource(api_version="v1", plural="events")
WORKLOADS = Resource(api_version="kueue.x-k8s.io/v1beta2", plural="workloads")
LEASES = Resource(api_version="coordination.k8s.io/v1", plural="leases")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that the server finds wrong with an object."""

    field: str
    message: str


class ApiError(Exception):
    """A request that did not succeed; the text is the server's own message where there is one."""

    causes: tuple[Cause, ...] = ()
    """Field by field, where the server told."""


class NotFoundError(ApiError):
    """404."""


class ConflictError(ApiError):
    """409: the object changed since it was read, or bears another UID than the one named."""


class AlreadyExistsError(ApiError):
    """409 for a creation: the name is taken."""


class ExpiredError(ApiError):
    """410: the list that a `continue` token belongs to is gone."""


class RefusedError(ApiError):
    """The server will not have it, however often it is asked: 400, 403, 413 or 422."""

    def __init__(self, message: str, *, code: int, quota: bool = False, terminating: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.quota = quota
        """A ResourceQuota is exhausted."""
        self.terminating = terminating
        """The namespace is being deleted: nothing can be created there."""

    @property
    def forbidden(self) -> bool:
        return self.code == 403


class UnavailableError(ApiError):
    """5xx, 401, a time-out, a broken connection. Whether the request had an effect is unknown."""


class ThrottledError(ApiError):
    """429: come back after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def api_error(code: int, body: str, headers: Mapping[str, str]) -> ApiError:
    """The typed error for an HTTP answer that is no success (metav1.Status, or any text of a proxy)."""
    status = _status(body)
    error = _typed(code, status, body, headers)
    causes = (status.get("details") or {}).get("causes") or []
    error.causes = tuple(
        Cause(field=str(cause.get("field", "")), message=str(cause.get("message", ""))) for cause in causes
    )
    return error


def _typed(code: int, status: Raw, body: str, headers: Mapping[str, str]) -> ApiError:
    message = str(status.get("message") or body.strip()[:300] or f"HTTP {code}")
    reason = status.get("reason", "")
    details = status.get("details") or {}
    match code:
        case 404:
            return NotFoundError(message)
        case 409:
            return AlreadyExistsError(message) if reason == "AlreadyExists" else ConflictError(message)
        case 410:
            return ExpiredError(message)
        case 429:
            return ThrottledError(message, retry_after_s=_retry_after(details, headers))
        case 400 | 403 | 413 | 422:
            causes = [cause.get("reason", "") for cause in details.get("causes") or []]
            return RefusedError(
                message,
                code=code,
                quota=code == 403 and "exceeded quota" in message,
                terminating="NamespaceTerminating" in causes,
            )
        case _:
            return UnavailableError(message)


def _status(body: str) -> Raw:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _retry_after(details: Raw, headers: Mapping[str, str]) -> float:
    """Seconds, from the header or the body; one second where neither tells."""
    for value in (headers.get("Retry-After"), details.get("retryAfterSeconds")):
        try:
            return max(0.0, float(value))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Part of a list."""

    items: list[Raw]
    resource_version: str = ""
    """Of the whole list."""
    next: str = ""
    """Asks for the page after this one; empty at the end."""


class Streams(Protocol):
    """Answers without end."""

    def lines(self, path: str, *, query: Sequence[tuple[str, str]], silence_s: float) -> AsyncGenerator[str]:
        """The lines of an answer; raises ApiError, also after a long silence."""


class Cluster(Protocol):
    """Requests to one API server. Every method raises ApiError; an effect may have happened all the same."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw: ...

    async def list(
        self,
        resource: Resource,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = PAGE_SIZE,
        next_page: str = "",
    ) -> Page:
        """One page, read from the newest state: a walk over all objects of the namespace, however few are asked for."""

    async def create(self, resource: Resource, namespace: str, manifest: Raw) -> Raw: ...

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Raw) -> Raw: ...

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, patch: Raw, *, subresource: str = ""
    ) -> Raw:
        """A patch with `metadata.resourceVersion` raises ConflictError when the object is another one by now."""

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> Raw | None:
        """Delete in foreground the object with this UID; what is left of it, None when it is gone."""

    async def pod_log(self, namespace: str, name: str, *, tail_lines: int, limit_bytes: int) -> str: ...


async def pages(
    cluster: Cluster, resource: Resource, namespace: str, *, labels: str = "", fields: str = "", limit: int = PAGE_SIZE
) -> AsyncIterator[Page]:
    """All pages of a list; raises ExpiredError when the server forgot it in the middle."""
    next_page = ""
    while True:
        page = await cluster.list(resource, namespace, labels=labels, fields=fields, limit=limit, next_page=next_page)
        yield page
        next_page = page.next
        if not next_page:
            return


async def watch(
    cluster: Streams, resource: Resource, namespace: str, *, version: str, silence_s: float, **selectors: str
) -> AsyncGenerator[tuple[str, Raw]]:
    """Kind and object of every change after `version`, bookmarks too, until the server ends the watch.

    `selectors` are query parameters (`labelSelector`, `fieldSelector`, `timeoutSeconds`). Close it (`aclosing`).
    Raises ApiError; ExpiredError when `version` is too old to go on from.
    """
    query = [("watch", "1"), ("allowWatchBookmarks", "true"), ("resourceVersion", version), *selectors.items()]
    asked = [(name, value) for name, value in query if value]
    async with aclosing(cluster.lines(resource.path(namespace), query=asked, silence_s=silence_s)) as lines:
        async for line in lines:
            yield watch_event(line)


def watch_event(line: str) -> tuple[str, Raw]:
    """Kind and object of a watch's line. Raises the typed error that the server sent in its place."""
    try:
        event = json.loads(line)
        kind, raw = str(event["type"]), event["object"]
    except (ValueError, TypeError, KeyError) as error:
        raise UnavailableError(f"the watch told no event: {line[:100]!r}") from error
    if kind == "ERROR":
        raise api_error(int(raw.get("code") or 500), json.dumps(raw), {})
    return kind, raw


def merge_diff(old: Raw, new: Raw) -> Raw:
    """The JSON merge patch (RFC 7386) that makes `new` of `old`; lists are replaced whole."""
    patch: Raw = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            below = merge_diff(before, value)
            if below:
                patch[key] = below
        elif key not in old or before != value:
            patch[key] = value
    return patch
