"""Runs and Jobs as far as a pass needs them, fed by watches, lists and the answers to the operator's own writes.

What the operator wrote is in here at once, by the server's answer: no event that is older brings the object back to
what it was (`resourceVersion`), and none that comes late brings a deleted one back (tombstones by UID). Specs and
statuses are kept as JSON text: a parsed one takes ten times the memory.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from sys import intern

from itrain_operator.kubeapi import Raw
from itrain_operator.kubeobserve import JobRecord, parse_job, parse_time

TOMBSTONES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RunKey:
    """What a pass is about: a name in a namespace, whichever run bears it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One ITrainRun as the API server has it."""

    key: RunKey
    uid: str
    resource_version: str
    generation: int
    created: datetime | None
    deleting: bool
    phase: str
    spec: bytes
    status: bytes


def parse_run_record(raw: Raw) -> RunRecord:
    metadata = raw["metadata"]
    status = raw.get("status") or {}
    return RunRecord(
        key=RunKey(namespace=intern(metadata.get("namespace", "")), name=metadata["name"]),
        uid=metadata["uid"],
        resource_version=metadata.get("resourceVersion", ""),
        generation=metadata.get("generation", 0),
        created=parse_time(metadata.get("creationTimestamp")),
        deleting="deletionTimestamp" in metadata,
        phase=intern(str(status.get("phase", ""))),
        spec=_json(raw.get("spec") or {}),
        status=_json(status),
    )


def _json(value: Raw) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def job_key(record: JobRecord) -> RunKey:
    return RunKey(namespace=record.namespace, name=record.run)


class Cache:
    """Every `put` and `remove` returns the key to look at, None when nothing is new."""

    def __init__(self) -> None:
        self._runs: dict[RunKey, RunRecord] = {}
        self._jobs: dict[RunKey, dict[str, JobRecord]] = {}
        self._complete: dict[RunKey, str] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    # Reading -----------------------------------------------------------------------------------------------------

    def run(self, key: RunKey) -> RunRecord | None:
        return self._runs.get(key)

    def jobs(self, key: RunKey) -> tuple[JobRecord, ...]:
        return tuple(self._jobs.get(key, {}).values())

    def keys_now(self) -> tuple[RunKey, ...]:
        return tuple(self._runs)

    def phases(self) -> Counter[str]:
        return Counter(record.phase or "Pending" for record in self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    # Runs --------------------------------------------------------------------------------------------------------

    def put_run(self, raw: Raw) -> RunKey | None:
        metadata = raw["metadata"]
        key = RunKey(namespace=metadata.get("namespace", ""), name=metadata["name"])
        known, version = self._runs.get(key), metadata.get("resourceVersion", "")
        if metadata["uid"] in self._gone or (known is not None and not _later(version, known.resource_version)):
            return None
        record = parse_run_record(raw)
        self._runs[record.key] = record
        return record.key

    def remove_run(self, raw: Raw) -> RunKey | None:
        metadata = raw["metadata"]
        key = RunKey(namespace=metadata.get("namespace", ""), name=metadata["name"])
        self._bury(metadata["uid"])
        return self._drop_run(key, metadata["uid"])

    def forget_run(self, key: RunKey, uid: str) -> None:
        """A live read says that the run is gone."""
        self._bury(uid)
        self._drop_run(key, uid)

    def _drop_run(self, key: RunKey, uid: str) -> RunKey | None:
        known = self._runs.get(key)
        if known is None or known.uid != uid:
            return None
        del self._runs[key]
        self._complete.pop(key, None)
        return key

    # Jobs --------------------------------------------------------------------------------------------------------

    def put_job(self, raw: Raw) -> RunKey | None:
        metadata = raw["metadata"]
        if metadata["uid"] in self._gone:
            return None
        record = parse_job(raw)
        return self.note_job(job_key(record), record)

    def note_job(self, key: RunKey, record: JobRecord) -> RunKey | None:
        """Keep a Job under a run's key, also one that does not say that it belongs there."""
        jobs = self._jobs.setdefault(key, {})
        known = jobs.get(record.name)
        if known is not None and not _later(record.resource_version, known.resource_version):
            return None
        jobs[record.name] = record
        return key

    def remove_job(self, raw: Raw) -> RunKey | None:
        record = parse_job(raw)
        return self.forget_job(job_key(record), record.name, record.uid)

    def forget_job(self, key: RunKey, name: str, uid: str) -> RunKey | None:
        self._bury(uid)
        jobs = self._jobs.get(key, {})
        known = jobs.get(name)
        if known is None or known.uid != uid:
            return None
        del jobs[name]
        if not jobs:
            del self._jobs[key]
        return key

    def set_jobs(self, key: RunKey, raws: Iterable[Raw]) -> None:
        """All Jobs of a run as just listed: those that are not among them are gone."""
        listed = [parse_job(raw) for raw in raws if raw["metadata"]["uid"] not in self._gone]
        uids = {record.uid for record in listed}
        for known in self.jobs(key):
            if known.uid not in uids and known.run == key.name:
                self.forget_job(key, known.name, known.uid)
        for record in listed:
            self.note_job(key, record)

    def complete(self, record: RunRecord) -> bool:
        """Whether every Job that was there when the run became what this record says is in here."""
        return self._complete.get(record.key) == record.resource_version

    def note_complete(self, key: RunKey, version: str) -> None:
        """The run's Jobs were listed, or known, after it had this version; ignored when it has another one by now."""
        record = self._runs.get(key)
        if record is not None and record.resource_version == version:
            self._complete[key] = version

    # Lists -------------------------------------------------------------------------------------------------------

    def sweep_runs(self, listed: set[str], version: str, namespace: str = "") -> list[RunKey]:
        """Drop the runs that a whole list as of `version` did not hold; younger ones stay."""
        lost = [
            record
            for key, record in self._runs.items()
            if namespace in ("", key.namespace)
            and record.uid not in listed
            and not _later(record.resource_version, version)
        ]
        for record in lost:
            self.forget_run(record.key, record.uid)
        return [record.key for record in lost]

    def sweep_jobs(self, listed: set[str], version: str, namespace: str = "") -> list[RunKey]:
        """The same for Jobs."""
        lost = [
            (key, record)
            for key, jobs in self._jobs.items()
            for record in jobs.values()
            if namespace in ("", key.namespace)
            and record.uid not in listed
            and not _later(record.resource_version, version)
        ]
        return [key for key, record in lost if self.forget_job(key, record.name, record.uid) is not None]

    def _bury(self, uid: str) -> None:
        self._gone[uid] = None
        self._gone.move_to_end(uid)
        while len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)


def _later(version: str, than: str) -> bool:
    """Resource versions of one resource are comparable numbers (KEP-5504); what is no number counts as later."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than
