"""The Kubernetes API over `kubernetes.aio`: the only module that knows the client (`handlers` takes its credentials).

Objects travel as plain dicts: the client's models would cost time and memory for nothing. Requests are rate-limited
here; after a 429 every request waits as long as the server asked.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from yaml import YAMLError

from itrain_operator.kubeapi import (
    LEASES,
    PAGE_SIZE,
    PODS,
    Page,
    Raw,
    Resource,
    ThrottledError,
    UnavailableError,
    api_error,
)
from itrain_operator.ratelimit import TokenBucket

__all__ = [
    "Configuration",
    "Credentials",
    "KubeCluster",
    "NoClusterError",
    "credentials",
    "load_configuration",
    "load_context",
]

USER_AGENT = "itrain-operator"
APPLY = "application/apply-patch+yaml"
LEASE_TIMEOUT_S = 3.0


class NoClusterError(Exception):
    """There is no way into a cluster: neither a kubeconfig nor a service account."""


OnRequest = Callable[[str, str], None]
"""Told of every answer: verb and HTTP code, `error` where there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Where the server is and how to speak to it, for whoever needs a second client."""

    server: str
    ca_path: str | None
    insecure: bool
    certificate_path: str | None
    key_path: str | None
    scheme: str | None
    token: str | None


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """From a kubeconfig that is named (here or by KUBECONFIG), else the pod's service account, else ~/.kube/config.

    Raises NoClusterError.
    """
    configuration, _ = await load_context(kubeconfig, None)
    return configuration


async def load_context(kubeconfig: str | None, context: str | None) -> tuple[Configuration, str]:
    """The configuration of a context (the current one by default), and the namespace that it names, if any."""
    configuration = Configuration()
    named = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if named is None and context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
            return configuration, ""
        loader = await config.load_kube_config(config_file=named, context=context, client_configuration=configuration)
    except (config.ConfigException, OSError, YAMLError) as error:
        raise NoClusterError(f"no way into a cluster: {error}") from error
    return configuration, str(loader.current_context["context"].get("namespace") or "")


async def credentials(configuration: Configuration) -> Credentials:
    """The credentials as they are now; a service account's token is read anew once a minute."""
    header = await configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.rpartition(" ")
    return Credentials(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        key_path=configuration.key_file,
        scheme=scheme.capitalize() or None,
        token=token or None,
    )


CLOSING_ROUNDS = 3
"""Of the event loop: a connection that was aborted lets go of its socket in the next ones, and a loop that ends before
leaves it open."""


class KubeCluster:
    """`Cluster` over HTTP. Use it in one event loop; `close` it in the end."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        qps: float,
        burst: int,
        timeout_s: float,
        clock: Callable[[], float],
        on_request: OnRequest,
        may_write: Callable[[], bool],
        user_agent: str = USER_AGENT,
    ) -> None:
        """`may_write` is asked right before a change is sent: a leader that lost its lease must not be late with it."""
        self._client = ApiClient(configuration)
        self._client.user_agent = user_agent
        self._bucket = TokenBucket(rate=qps, burst=burst, now=clock())
        self._timeout_s = timeout_s
        self._clock = clock
        self._on_request = on_request
        self._may_write = may_write
        self._quiet_until = 0.0

    async def close(self) -> None:
        await self._client.close()
        for _ in range(CLOSING_ROUNDS):
            await asyncio.sleep(0)

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw:
        return await self._json("GET", resource, resource.path(namespace, name))

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
        asked = {"limit": str(limit), "continue": next_page, "labelSelector": labels, "fieldSelector": fields}
        query = [(name, value) for name, value in asked.items() if value]
        found = await self._json("GET", resource, resource.path(namespace), query=query)
        metadata = found.get("metadata", {})
        return Page(
            items=found.get("items") or [],
            resource_version=metadata.get("resourceVersion", ""),
            next=metadata.get("continue", ""),
        )

    async def create(self, resource: Resource, namespace: str, manifest: Raw) -> Raw:
        return await self._json("POST", resource, resource.path(namespace), body=manifest)

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Raw) -> Raw:
        return await self._json("PUT", resource, resource.path(namespace, name), body=manifest)

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, patch: Raw, *, subresource: str = ""
    ) -> Raw:
        path = resource.path(namespace, name, subresource)
        return await self._json("PATCH", resource, path, body=patch, content="application/merge-patch+json")

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> Raw | None:
        options: Raw = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        left = await self._json("DELETE", resource, resource.path(namespace, name), body=options)
        return left if left.get("kind") != "Status" else None

    async def pod_log(self, namespace: str, name: str, *, tail_lines: int, limit_bytes: int) -> str:
        query = [("tailLines", str(tail_lines)), ("limitBytes", str(limit_bytes))]
        return await self._text("GET", PODS, PODS.path(namespace, name, "log"), query=query)

    async def apply(
        self, resource: Resource, namespace: str, name: str, manifest: Raw, *, manager: str, force: bool, dry_run: bool
    ) -> Raw:
        """Server-side apply; raises ConflictError for fields that another manager set, unless forced."""
        query = [("fieldManager", manager), ("force", str(force).lower()), ("fieldValidation", "Strict")]
        query += [("dryRun", "All")] if dry_run else []
        path = resource.path(namespace, name)
        return await self._json("PATCH", resource, path, query=query, body=manifest, content=APPLY)

    async def lines(self, path: str, *, query: Sequence[tuple[str, str]], silence_s: float) -> AsyncGenerator[str]:
        """The lines of an answer without end: a watch, a followed log. Raises ApiError, also after a long silence."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._call("GET", path, query=query, timeout=aiohttp.ClientTimeout(total=None))
                text = "" if answer.status == 200 else (await answer.read()).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"GET {path}: {str(error) or f'no answer within {self._timeout_s:g} s'}") from error
        if answer.status != 200:
            raise api_error(answer.status, text, answer.headers)
        stream = answer.response.content
        try:
            while line := await _line(stream, silence_s):
                yield line.decode(errors="replace").rstrip("\n")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise UnavailableError(f"GET {path}: {str(error) or 'the stream fell silent'}") from error
        finally:
            connection = answer.response.connection
            if connection is not None and connection.transport is not None:
                connection.transport.abort()  # there is more to come: closing would wait for the server's goodbye
            answer.response.close()

    async def _json(self, verb: str, resource: Resource, path: str, **how: Any) -> Raw:
        text = await self._text(verb, resource, path, **how)
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise UnavailableError(f"{verb} {path}: the answer is no JSON: {text[:100]!r}") from error
        if not isinstance(parsed, dict):
            raise UnavailableError(f"{verb} {path}: the answer is no object")
        return parsed

    async def _text(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Raw | None = None,
        content: str = "application/json",
    ) -> str:
        # The lease must be renewed however much else there is to say.
        leading = resource == LEASES
        if not leading:
            await self._turn()
            if verb != "GET" and not self._may_write():
                raise UnavailableError(f"{verb} {path}: this replica does not lead")
        timeout = LEASE_TIMEOUT_S if leading else self._timeout_s
        try:
            async with asyncio.timeout(timeout):
                answer = await self._call(verb, path, query=query, body=body, content=content, timeout=timeout)
                data: bytes = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._on_request(verb, "error")
            said = str(error) or f"no answer within {timeout:g} s"
            raise UnavailableError(f"{verb} {path}: {said}") from error
        self._on_request(verb, str(answer.status))
        text = data.decode(errors="replace")
        if 200 <= answer.status < 300:
            return text
        problem = api_error(answer.status, text, answer.headers)
        if isinstance(problem, ThrottledError):
            self._quiet_until = max(self._quiet_until, self._clock() + problem.retry_after_s)
        raise problem

    async def _call(
        self,
        verb: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]],
        timeout: Any,
        body: Raw | None = None,
        content: str = "application/json",
    ) -> Any:
        request = await self._client.param_serialize(
            verb,
            path,
            query_params=[*query],
            header_params={"Accept": "application/json, */*", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        return await self._client.call_api(*request, _request_timeout=timeout)

    async def _turn(self) -> None:
        """Wait for this request's turn: the rate limit, and the rest that the server asked for."""
        now = self._clock()
        wait = max(self._bucket.reserve(now), self._quiet_until - now)
        if wait > 0:
            await asyncio.sleep(wait)


async def _line(stream: aiohttp.StreamReader, silence_s: float) -> bytes:
    """The next line. Not by `wait_for`: before Python 3.12 it loses a cancellation that comes along with a line."""
    async with asyncio.timeout(silence_s):
        return await stream.readline()
