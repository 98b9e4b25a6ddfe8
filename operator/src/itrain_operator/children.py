"""Makes and deletes the objects of one attempt.

Creation is by POST under deterministic names: whatever is made twice is found, not doubled.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    async def create(self, run: Run, action: EnsureJob) -> NotMade | None:
        """ConfigMap, Service, Job, in this order; None when the Job is there, made now or found.

        Raises ApiError where trying again may help at once. A Job that exists is put into the cache, for the next pass
        to judge whose it is.
        """
        key = RunKey(namespace=run.namespace, name=run.name)
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

        A pass that dies in between leaves a ConfigMap: the next attempt under this name finds it, the run's deletion
        collects it.
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
        names = children_names(action.name)
        await self._delete_own(CONFIG_MAPS, names.config_map, run)
        await self._delete_own(SERVICES, names.service, run)

    async def _delete_own(self, resource: Resource, name: str, run: Run) -> None:
        try:
            found = await self._cluster.get(resource, run.namespace, name)
            if _owner(found) == run.uid:
                await self._cluster.delete(resource, run.namespace, name, uid=found["metadata"]["uid"])
        except (NotFoundError, ConflictError):
            return


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
