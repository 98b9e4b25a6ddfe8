"""A way into a cluster for people's commands, and every refusal in words that say what to do next."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from itrain_contract.loading import SpecProblem
from itrain_contract.names import ExitCode
from itrain_operator.kubeapi import (
    ApiError,
    Cause,
    Cluster,
    ConflictError,
    NotFoundError,
    Raw,
    RefusedError,
    Resource,
    ThrottledError,
)

USER_AGENT = "itrain-cli"
QPS, BURST = 20.0, 50
TIMEOUT_S = 15.0
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ClusterError(Exception):
    """Something that the user can mend; one line with the remedy. `code` is the command's exit code."""

    def __init__(self, message: str, code: int = ExitCode.CONFIG, *, nowhere: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.nowhere = nowhere
        """There is no such run, or no cluster that could have it."""


class UserCluster(Cluster, Protocol):
    """`Cluster`, and what only people's commands ask."""

    async def apply(
        self, resource: Resource, namespace: str, name: str, manifest: Raw, *, manager: str, force: bool, dry_run: bool
    ) -> Raw: ...

    def lines(self, path: str, *, query: Sequence[tuple[str, str]], silence_s: float) -> AsyncGenerator[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a command is to look, as its options say."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None
    local: bool = False
    plugin: bool = False
    """Called as `kubectl itrain`: never a local run unless --local is given."""

    @property
    def cluster(self) -> bool:
        """Whether an option names the cluster."""
        return self.plugin or any(value is not None for value in (self.namespace, self.context, self.kubeconfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An open way into a cluster, and the namespace in which names are looked up."""

    cluster: UserCluster
    namespace: str

    def options(self) -> str:
        """What a shown command needs to find the same place."""
        return "" if self.namespace == "default" else f" -n {self.namespace}"


@asynccontextmanager
async def open_access(where: Where, *, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Access]:
    """Nothing is asked of the server yet. Raises ClusterError where there is no kubeconfig or no such context."""
    from itrain_operator.kube import KubeCluster, NoClusterError, load_context  # the client: only where it is needed

    logging.getLogger("kubernetes").addHandler(logging.NullHandler())  # it tells as a log what it raises too
    if where.kubeconfig is not None and not where.kubeconfig.is_file():
        raise ClusterError(f"{where.kubeconfig} does not exist: give another --kubeconfig", nowhere=True)
    if where.kubeconfig is None and not has_cluster(os.environ):
        named = os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise ClusterError(f"no way into a cluster: {named} does not exist; give --kubeconfig FILE", nowhere=True)
    try:
        configuration, named = await load_context(
            None if where.kubeconfig is None else str(where.kubeconfig), where.context
        )
    except NoClusterError as error:
        raise ClusterError(f"{error}; give --context NAME or another --kubeconfig FILE", nowhere=True) from error
    cluster = KubeCluster(
        configuration,
        qps=QPS,
        burst=BURST,
        timeout_s=timeout_s,
        clock=time.monotonic,
        on_request=lambda verb, code: None,
        may_write=lambda: True,
        user_agent=USER_AGENT,
    )
    try:
        yield Access(cluster=cluster, namespace=where.namespace or named or _pod_namespace() or "default")
    finally:
        await cluster.close()


def has_cluster(environ: Mapping[str, str]) -> bool:
    """Whether this machine knows a cluster at all; nothing is asked of it."""
    kubeconfigs = environ.get("KUBECONFIG", str(Path.home() / ".kube/config")).split(os.pathsep)
    return "KUBERNETES_SERVICE_HOST" in environ or any(Path(path).is_file() for path in kubeconfigs if path)


def explain(error: ApiError, access: Access, name: str = "") -> ClusterError:
    """A refusal as one line for a person; `name` is the run that was asked for."""
    said = str(error)
    match error:
        case NotFoundError() if "page not found" in said or "could not find the requested resource" in said:
            return ClusterError(
                "this cluster has no ITrainRun resource: its administrator installs the operator's chart or CRD; "
                "another cluster: --context"
            )
        case NotFoundError() if said.startswith("namespaces "):
            return ClusterError(f"{said}: create it, or give another namespace with -n")
        case NotFoundError():
            return ClusterError(
                f"no run {name or said} in namespace {access.namespace}: `itrain list -A` shows what is there; "
                "another namespace: -n",
                nowhere=True,
            )
        case RefusedError(forbidden=True):
            return ClusterError(f"not allowed: {said}; ask for the right, or give another --context or -n")
        case RefusedError() | ConflictError():
            return ClusterError(f"refused by the server: {said}")
        case ThrottledError():
            return ClusterError(f"the API server is busy: {said}; try again", ExitCode.RETRYABLE)
    if "Unauthorized" in said:
        return ClusterError("the API server does not accept your credentials: log in again, or give another --context")
    return ClusterError(
        f"the API server cannot be reached: {said}; check the network and --context, then try again",
        ExitCode.RETRYABLE,
    )


def field_problems(error: ApiError) -> list[SpecProblem]:
    """What the server refused, field by field, in the words of `itrain validate`; empty where it named no field."""
    taken = isinstance(error, ConflictError)
    told = [cause for cause in error.causes if cause.field]
    return [_taken(cause) if taken else _refused(cause) for cause in told]


def _taken(cause: Cause) -> SpecProblem:
    """A field that another manager of server-side apply set to another value."""
    manager = next(iter(re.findall(r'"([^"]+)"', cause.message)), "somebody else")
    return SpecProblem(
        field=cause.field.lstrip("."),
        got=f"another value than {manager} set",
        allowed="that value",
        remedy="--force-conflicts takes the field over",
    )


def _refused(cause: Cause) -> SpecProblem:
    """`Invalid value: -1: must be …` and its like."""
    message = " ".join(cause.message.split())
    kind, _, rest = message.partition(" value: ")
    value, colon, words = rest.partition(": ")
    if not colon:
        value, words = kind.lower() if rest else "a value that the server refuses", rest or message
    return SpecProblem(
        field=cause.field.lstrip("."),
        got="a value that the server refuses" if value == '"object"' else value,
        allowed=words,
        remedy=f"see kubectl explain itr.{_explained(cause.field)}",
    )


def _explained(field: str) -> str:
    """`spec.data.extra[0].uri` as `kubectl explain` wants it."""
    return "".join(part.split("]")[-1] for part in field.lstrip(".").split("["))


def _pod_namespace() -> str:
    return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() if SERVICE_ACCOUNT_NAMESPACE.is_file() else ""
