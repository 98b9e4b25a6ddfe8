"""What the report shows, as frozen values: nothing here reads a file or draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from itrain_pipeline.evals.metrics import Score, score_groups
from itrain_pipeline.evals.trees import Searched, ShownTree
from itrain_pipeline.records import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """All judged answers of one point: `base`, `warmup`, `iteration-N`."""

    point: str
    iteration: int
    predictions: tuple[Prediction, ...]

    @property
    def scores(self) -> dict[str, Score]:
        return score_groups(self.predictions)

    def of(self, benchmark: str) -> list[Prediction]:
        return [p for p in self.predictions if p.benchmark == benchmark]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCurve:
    """One training's log: for each name (`loss`, `margin`, `validity`) the steps that logged it and its values."""

    title: str
    series: Mapping[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexities:
    """Perplexity of every ground-truth answer that an iteration scored."""

    iteration: int
    call: tuple[float, ...]
    no_call: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One iteration's rollout: what its shards counted together."""

    iteration: int
    counters: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Time and work of one stage; `seconds` of a sharded stage is that of its slowest shard."""

    stage: str
    shards: int
    seconds: float
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMachine:
    """What a stage computed with; empty texts where it loads no model."""

    stage: str
    precision: str = ""
    quantization: str = ""
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()


def fact_label(name: str) -> str:
    """A name of `StageResult.info` for readers."""
    return name.replace("_", " ").capitalize()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that the page shows. `metric` names what the iterations are compared by."""

    run: str
    created: str
    metric: str
    best: str | None
    points: tuple[PointResult, ...]
    curves: tuple[TrainingCurve, ...] = ()
    perplexities: tuple[Perplexities, ...] = ()
    searches: tuple[SearchResult, ...] = ()
    searched: tuple[Searched, ...] = ()
    """The records of all trees, for what is counted over them."""
    trees: tuple[ShownTree, ...] = ()
    """The few that are drawn."""
    bench: Mapping[str, float] = field(default_factory=dict)
    """Figures of `make bench-search`, whose arms then stand beside the run's own counters."""
    costs: tuple[StageCost, ...] = ()
    machines: tuple[StageMachine, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    """Lineage, versions, precision, hardware: label and value."""
