"""Every object key of a run, in one place (API document, "Storage rules")."""

from __future__ import annotations

from dataclasses import dataclass

from itrain_contract.names import RUN_NAME_MAX_LENGTH
from itrain_contract.stages import StageRef

RESULT_FILE = "result.json"
LEASE_FILE = "lease.json"
ADAPTER_DIR = "adapter/"
MODEL_DIR = "model/"
WORK_DIR = "work/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLayout:
    """Keys below `<storage>/<run>-<uid8>/`. Every prefix ends with `/`; nothing here touches a store."""

    storage: str
    name: str
    uid: str

    @property
    def root(self) -> str:
        return f"{self.storage.rstrip('/')}/{self.name}-{self.uid[:8]}/"

    def attempt(self, ref: StageRef, attempt: int) -> str:
        """Where one attempt of a stage writes its results."""
        return f"{self.root}i{ref.iteration}/{ref.kind.value}/a{attempt}/"

    def work(self, ref: StageRef, digest: str) -> str:
        """Checkpoints and finished samples, shared by the attempts of one StageInput."""
        return f"{self.root}i{ref.iteration}/{ref.kind.value}/{WORK_DIR}{digest[:16]}/"

    def model(self, revision: str) -> str:
        """The staged base model."""
        return f"{self.root}model/{revision[:16]}/"

    @property
    def report(self) -> str:
        return f"{self.root}report.html"


def shard_prefix(prefix: str, shard: int | None) -> str:
    """`prefix` for one completion index; unchanged for an unsharded stage."""
    return prefix if shard is None else f"{prefix}shard-{shard}/"


def job_name(run: str, ref: StageRef, attempt: int) -> str:
    """The Job, ConfigMap and hostname prefix of one attempt: at most 63 characters with an index appended."""
    if len(run) > RUN_NAME_MAX_LENGTH:
        raise ValueError(f"run name {run!r} has {len(run)} characters, allowed are {RUN_NAME_MAX_LENGTH}")
    return f"{run}-i{ref.iteration}-{ref.kind.value}-a{attempt}"


def format_indexes(indexes: frozenset[int] | set[int]) -> str:
    """Completion indexes as Kubernetes writes them: `0-2,5`; empty text for none."""
    parts: list[str] = []
    ordered = sorted(indexes)
    start = 0
    for at in range(1, len(ordered) + 1):
        if at == len(ordered) or ordered[at] != ordered[at - 1] + 1:
            first, last = ordered[start], ordered[at - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = at
    return ",".join(parts)


def parse_indexes(text: str) -> frozenset[int]:
    """The inverse of `format_indexes`; raises ValueError on anything else."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
