"""Counts, accuracies and their standard errors; BFCL's two overall numbers, never mixed. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from itrain_pipeline.records import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`correct` of `n` items. Accuracy and standard error are fractions, not per cent; n = 0 has neither."""

    correct: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n:
            raise ValueError(f"{self.correct} correct of {self.n} is no rate")

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else math.nan

    @property
    def se(self) -> float:
        """Binomial standard error √(p(1−p)/n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.n) if self.n else math.nan

    @property
    def score(self) -> Score:
        return Score(value=self.accuracy, se=self.se, n=self.n)

    def __add__(self, other: Rate) -> Rate:
        return Rate(correct=self.correct + other.correct, n=self.n + other.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number between 0 and 1 with its standard error and the items behind it."""

    value: float
    se: float
    n: int


def count_rates(predictions: Iterable[Prediction]) -> dict[str, Rate]:
    """Rates by category, in the order of first appearance."""
    rates: dict[str, Rate] = {}
    for p in predictions:
        rates[p.category] = rates.get(p.category, Rate(correct=0, n=0)) + Rate(correct=int(p.correct), n=1)
    return rates


def count_errors(predictions: Iterable[Prediction]) -> dict[str, int]:
    """Wrong answers by error class, most frequent first."""
    return dict(Counter(p.error_class or "unclassified" for p in predictions if not p.correct).most_common())


def pooled(rates: Iterable[Rate]) -> Rate:
    """The count-weighted rate of several categories."""
    return sum(rates, Rate(correct=0, n=0))


Groups = Callable[[Mapping[str, Rate]], Mapping[str, "Score | None"]]
"""Rates by category -> scores over several categories by name; None where one is missing."""


def score_groups(predictions: Iterable[Prediction], groups: Mapping[str, Groups] | None = None) -> dict[str, Score]:
    """Every metric of one point by its name, without its suffixes; what is missing has no entry.

    `dev/accuracy`, `dev/call_accuracy`, `dev/no_call_accuracy`; of every other benchmark `<name>/accuracy` (all items,
    weighted by count), `<name>/<category>/accuracy` and its groups: BFCL's `bfcl/non_live` and `bfcl/live` (v3),
    `apibank/level_2/accuracy`. `groups` adds what is not known here, by the benchmark's name.
    """
    by_benchmark: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_benchmark.setdefault(prediction.benchmark, []).append(prediction)
    combine = {**KNOWN_GROUPS, **(groups or {})}
    scores: dict[str, Score] = {}
    for benchmark, rows in by_benchmark.items():
        rates = count_rates(rows)
        scores[f"{benchmark}/accuracy"] = pooled(rates.values()).score
        if benchmark == "dev":
            scores |= {f"dev/{name}_accuracy": rate.score for name, rate in rates.items()}
            continue
        made = combine[benchmark](rates) if benchmark in combine else {}
        scores |= {f"{benchmark}/{name}": score for name, score in made.items() if score is not None}
        scores |= {f"{benchmark}/{name}/accuracy": rate.score for name, rate in rates.items()}
    return scores


def flat_metrics(scores: Mapping[str, Score]) -> dict[str, float]:
    """Metrics as the status reads them: the value, `<name>_se`, and `…/n` beside (`dev/call_n`, `bfcl/n`, …)."""
    flat: dict[str, float] = {}
    for name, score in scores.items():
        flat[name] = round(score.value, 6)
        flat[f"{name}_se"] = round(score.se, 6)
        head, _, last = name.rpartition("/")
        if last.endswith("accuracy"):
            flat[f"{head}/{last.removesuffix('accuracy')}n"] = score.n
    return flat


def mean_score(scores: Sequence[Score | None]) -> Score | None:
    """The unweighted mean of independent scores, SE = √Σse²/k; None as soon as one is missing."""
    present = [score for score in scores if score is not None]
    if not present or len(present) < len(scores):
        return None
    return Score(
        value=math.fsum(score.value for score in present) / len(present),
        se=math.sqrt(math.fsum(score.se**2 for score in present)) / len(present),
        n=sum(score.n for score in present),
    )


SIMPLE = ("simple_python", "simple_java", "simple_javascript")
COMPOUND = ("multiple", "parallel", "parallel_multiple")
LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
LIVE_V3 = (*LIVE_AST, "live_irrelevance", "live_relevance")


def _one(rates: Mapping[str, Rate], category: str) -> Score | None:
    rate = rates.get(category)
    return rate.score if rate is not None and rate.n else None


def _weighted(rates: Mapping[str, Rate], categories: Sequence[str]) -> Score | None:
    if any(_one(rates, category) is None for category in categories):
        return None
    return pooled(rates[category] for category in categories).score


def bfcl_v3(rates: Mapping[str, Rate]) -> dict[str, Score | None]:
    """Groups of BFCL v3, the paper's numbers; a group with a missing category is None, never 0.

    Non-live = mean(simple [mean of three languages], multiple, parallel, parallel_multiple, irrelevance); Live is
    weighted by count and holds (ir)relevance; Overall = mean(Non-live, Live, Multi-turn).
    """
    simple = mean_score([_one(rates, category) for category in SIMPLE])
    parts = [_one(rates, category) for category in (*COMPOUND, "irrelevance")]
    non_live = mean_score([simple, *parts])
    live = _weighted(rates, LIVE_V3)
    multi_turn = _multi_turn(rates)
    return {
        "non_live": non_live,
        "live": live,
        "multi_turn": multi_turn,
        "overall": mean_score([non_live, live, multi_turn]),
    }


def bfcl_v4(rates: Mapping[str, Rate]) -> dict[str, Score | None]:
    """Groups of BFCL v4 without its agentic part; its overall needs that part, so none is given."""
    simple = mean_score([_one(rates, category) for category in SIMPLE])
    return {
        "non_live": mean_score([simple, *(_one(rates, category) for category in COMPOUND)]),
        "live": _weighted(rates, LIVE_AST),
        "irrelevance": mean_score([_one(rates, "irrelevance"), _one(rates, "live_irrelevance")]),
        "multi_turn": _multi_turn(rates),
    }


def _multi_turn(rates: Mapping[str, Rate]) -> Score | None:
    kinds = ("base", "miss_func", "miss_param", "long_context")
    return mean_score([_one(rates, f"multi_turn_{kind}") for kind in kinds])


def apibank_groups(rates: Mapping[str, Rate]) -> dict[str, Score | None]:
    """Level 2 as published, with its calls of the tool search; `level_2_call` alone is level 2 without them."""
    return {"level_2/accuracy": _weighted(rates, ("level_2_call", "level_2_search"))}


KNOWN_GROUPS: Mapping[str, Groups] = {"bfcl": bfcl_v3, "apibank": apibank_groups}
"""Of the benchmarks whose predictions a report may hold without their data."""


def always_refuse(rates: Mapping[str, Rate]) -> dict[str, Rate]:
    """What a model that never calls would score on the same items: the trivial baseline beside every result."""
    return {name: Rate(correct=rate.n if name.endswith("irrelevance") else 0, n=rate.n) for name, rate in rates.items()}


def difference_se(a: Score, b: Score) -> float:
    """Standard error of a difference of independent scores; paired items make the true one smaller."""
    return math.hypot(a.se, b.se)


def paired_gain(before: Mapping[str, bool], after: Mapping[str, bool]) -> Score | None:
    """Mean gain over the items that both points answered, with the SE of the paired differences.

    Each difference is +1, 0 or −1: with b gained and c lost of n, gain = (b−c)/n and
    SE = √(((b+c)/n − gain²)/n). None where no item is shared.
    """
    shared = before.keys() & after.keys()
    n = len(shared)
    if not n:
        return None
    gained = sum(after[key] and not before[key] for key in shared)
    lost = sum(before[key] and not after[key] for key in shared)
    gain = (gained - lost) / n
    return Score(value=gain, se=math.sqrt(max(0.0, (gained + lost) / n - gain * gain) / n), n=n)
