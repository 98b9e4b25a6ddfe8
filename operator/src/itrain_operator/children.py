"""Makes and deletes the objects of one attempt.

Creation is by POST under deterministic names: whatever is made twice is found, not doubled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from itrain_contract.layout import job_name
from itrain_operator.actions import DeleteJob, EnsureJob
from itrain_operator.cache import Cache, RunKey
from itrain_operator.kubeapi import (
    CONFIG_MAPS,
    JOBS,
    SERVICES,
    AlreadyExistsError,
    Cluster,
    ConflictError,
    NotFoundError,
    Raw,
    RefusedError,
    Resource,
    UnavailableError,
)
from itrain_operator.kubeobserve import is_run_owner, parse_job
from itrain_operator.manifests import ManifestError, build_children, children_names
from itrain_operator.observed import Refusal, Run
from itrain_operator.sequence import current_ref
from itrain_operator.settings import OperatorSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMade:
    """The server refused, or something else bears the name."""

    refusal: Refusal
    former: bool = False
    """What bears the name is garbage of a deleted run: it goes by itself, and soon."""


class ChildKeeper:
    """The children of all runs."""

    def __init__(self, cluster: Cluster, cache: Cache, settings: OperatorSettings) -> None:
        self._cluster = cluster
        self._cache = cache
        self._settings = settings
        self._bare: dict[RunKey, tuple[str, set[str]]] = {}
        """By run, with its UID: names of Jobs that are gone and have nothing left that belongs to them."""

    async def create(self, run: Run, action: EnsureJob) -> NotMade | None:
        """ConfigMap, Service, Job, in this order; None when the Job is there, made now or found.

        Raises ApiError where trying again may help at once. A Job that exists is put into the cache, for the next pass
        to judge whose it is.
        """
        key = RunKey(namespace=run.namespace, name=run.name)
        self._known_bare(run).discard(action.job_name)
        try:
            children = build_children(run, action, self._settings)
            for resource, manifest in ((CONFIG_MAPS, children.config_map), (SERVICES, children.service)):
                blocked = await self._create_or_keep(resource, manifest, run) if manifest is not None else None
                if blocked is not None:
                    return _not_made(action, blocked.message, former=blocked.former)
            made = await self._cluster.create(JOBS, run.namespace, children.job)
        except ManifestError as error:
            return _not_made(action, str(error))
        except RefusedError as error:
            if error.terminating:
                raise
            return _not_made(action, str(error), forbidden=error.forbidden)
        except AlreadyExistsError:
            made = await self._cluster.get(JOBS, run.namespace, action.job_name)
        self._cache.note_job(key, parse_job(made))
        return None

    async def _create_or_keep(self, resource: Resource, manifest: Raw, run: Run) -> _Blocked | None:
        """Create, or find our own; one of ours with other contents is of a pass that died, and is made anew."""
        name = manifest["metadata"]["name"]
        try:
            await self._cluster.create(resource, run.namespace, manifest)
        except AlreadyExistsError:
            found = await self._cluster.get(resource, run.namespace, name)
        else:
            return None
        metadata = found["metadata"]
        if _owner(found) != run.uid:
            what = f"{manifest['kind']} {name}"
            if _owner(found):
                return _Blocked(f"{what} of a deleted run with the same name is still there", former=True)
            return _Blocked(f"{what} exists and does not belong to this run: delete it, or name the run differently")
        if found.get("data") == manifest.get("data") and "deletionTimestamp" not in metadata:
            return None
        await self._cluster.delete(resource, run.namespace, name, uid=metadata["uid"])
        raise UnavailableError(f"{manifest['kind']} {name} of an earlier pass is out of date and was deleted")

    async def delete(self, run: Run, action: DeleteJob) -> None:
        """The Job in foreground, then what belongs to it; what is gone already is no error.

        A pass that dies in between leaves a ConfigMap: `sweep` finds it, or the next Job under this name.
        """
        key = RunKey(namespace=run.namespace, name=run.name)
        try:
            left = await self._cluster.delete(JOBS, run.namespace, action.name, uid=action.uid)
        except (NotFoundError, ConflictError):
            left = None
        if left is None:
            self._cache.forget_job(key, action.name, action.uid)
        else:
            self._cache.put_job(left)
        await self._delete_belongings(run, action.name)

    async def sweep(self, run: Run, now: datetime) -> None:
        """Delete what belongs to Jobs that somebody else deleted, once for each; the run would keep it for ever.

        A new process looks once more. It is safe on the word of an old cache: no pod needs what is deleted here.
        """
        jobs = {job.name for job in self._cache.jobs(RunKey(namespace=run.namespace, name=run.name))}
        for name in abandoned(run, jobs | self._known_bare(run), now):
            await self._delete_belongings(run, name)

    def forget(self, key: RunKey) -> None:
        """The run is gone, and garbage collection takes its children."""
        self._bare.pop(key, None)

    def _known_bare(self, run: Run) -> set[str]:
        uid, found = self._bare.get(RunKey(namespace=run.namespace, name=run.name), ("", set()))
        return found if uid == run.uid else set()

    async def _delete_belongings(self, run: Run, name: str) -> None:
        names = children_names(name)
        await self._delete_own(CONFIG_MAPS, names.config_map, run)
        await self._delete_own(SERVICES, names.service, run)
        key = RunKey(namespace=run.namespace, name=run.name)
        self._bare[key] = (run.uid, self._known_bare(run) | {name})

    async def _delete_own(self, resource: Resource, name: str, run: Run) -> None:
        try:
            found = await self._cluster.get(resource, run.namespace, name)
            if _owner(found) == run.uid:
                await self._cluster.delete(resource, run.namespace, name, uid=found["metadata"]["uid"])
        except (NotFoundError, ConflictError):
            return


def abandoned(run: Run, known: Collection[str], now: datetime) -> list[str]:
    """Names of Jobs that were there, will not be made again, and are not among the `known`.

    After its TTL a run has no children: those that the operator deleted itself took everything with them.
    """
    status, ttl = run.status, run.spec.ttl_seconds_after_finished
    ended = status.completion_time if status.phase.terminal else None
    if ended is not None and ttl is not None and now >= ended + timedelta(seconds=ttl):
        return []
    past = [(record.ref, record.attempt) for record in status.completed]
    ref = current_ref(status)
    if ref is not None:
        past += [(ref, attempt) for attempt in range(1, status.attempt + status.phase.terminal)]
    return sorted({job_name(run.name, *attempt) for attempt in past}.difference(known))


@dataclass(frozen=True, slots=True)
class _Blocked:
    """Why a name cannot be used."""

    message: str
    former: bool = False


def _not_made(action: EnsureJob, message: str, *, forbidden: bool = False, former: bool = False) -> NotMade:
    refusal = Refusal(job_name=action.job_name, forbidden=forbidden, message=message)
    return NotMade(refusal=refusal, former=former)


def _owner(raw: Raw) -> str:
    """UID of the ITrainRun that owns an object; empty when none does."""
    owners = raw["metadata"].get("ownerReferences") or []
    return next((owner.get("uid", "") for owner in owners if is_run_owner(owner)), "")
