"""How much work a run is, in tokens and requests, from its spec, its data and how trees behave. Pure; no clock.

The formulas stand in docs/plan.md with what they leave out. Counts are of the mean run: a tree more or less, and the
order in which trees end, are not in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from itrain_contract import apibank, bfcl
from itrain_contract.measurements import DataStatistics, EvaluationRates, RunStatistics, SearchRates
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, StageRef, stage_sequence
from itrain_contract.stagespec import EvaluateStage, RolloutStage, ScoreStage, TrainStage, WarmupStage

RUBRIC_TOKENS = 130
"""Of a judge's prompt, what all trees share: always known after the first."""
QUESTION_TOKENS = 20
"""Of a judge's prompt, the words around truth and answer."""
DIALOGUE_TOKENS = bfcl.DIALOGUE_PROMPT_CHARS / 3.5
"""Of a multi-turn dialogue's first prompt; tools in JSON have 3 to 4 characters a token."""
AS_LONG_AS_DATA = EvaluationRates(prompt_ratio=1.0, answer_ratio=1.0)
"""Where no evaluation was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage asks for, all its pods together. `prefill` counts n × prompt for n completions."""

    rows: float = 0.0
    """Examples read, trees searched, pairs trained on, questions asked."""
    requests: float = 0.0
    """For completions; judgements are counted beside them."""
    judgements: float = 0.0
    computed: float = 0.0
    cached: float = 0.0
    decoded: float = 0.0
    scored: float = 0.0
    trained: float = 0.0
    pairs: float = 0.0

    @property
    def prefill(self) -> float:
        return self.computed + self.cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known or assumed of data and trees; `block` is the engine's prefix granularity in tokens."""

    data: DataStatistics
    search: SearchRates
    evaluation: EvaluationRates
    block: int = 1
    cross_tree: bool = field(default=True)
    """Whether the beginning that prompts have in common stays known from tree to tree."""
    questions: Mapping[str, int] = field(default_factory=dict)
    """Items of benchmarks that only a run or the user knows, by their names in the spec."""


def facts_of(found: RunStatistics, assumed: RunStatistics, *, block: int, cross_tree: bool = True) -> Facts:
    """What `found` measured, and for the rest what `assumed` says. Raises ValueError when both know no trees."""
    search, evaluation = found.search or assumed.search, found.evaluation or assumed.evaluation or AS_LONG_AS_DATA
    if search is None:
        raise ValueError("neither the statistics nor the defaults know how trees behave")
    return Facts(
        data=found.data,
        search=search,
        evaluation=evaluation,
        block=block,
        cross_tree=cross_tree,
        questions=found.questions,
    )


def run_work(spec: ITrainRunSpec, facts: Facts) -> dict[StageRef, Work]:
    """Every stage of the run in its order; an early stop (`stopWhen`) only makes it less."""
    return {ref: stage_work(spec, ref, facts) for ref in stage_sequence(spec)}


def stage_work(spec: ITrainRunSpec, ref: StageRef, facts: Facts) -> Work:
    stages = spec.stages
    match ref.kind:
        case StageKind.PREPARE:
            return Work(rows=facts.data.train + facts.data.dev)
        case StageKind.WARMUP:
            return warmup_work(stages.warmup, facts.data)
        case StageKind.SCORE:
            return score_work(stages.score, facts.data, iteration=ref.iteration)
        case StageKind.ROLLOUT:
            return rollout_work(stages.rollout, selected(stages.score, facts.data), facts)
        case StageKind.TRAIN:
            found = rollout_work(stages.rollout, selected(stages.score, facts.data), facts)
            return train_work(stages.train, found.pairs, facts)
        case StageKind.EVALUATE:
            bare = ref.iteration == 0
            started = stages.warmup.enabled or spec.resume_from is not None
            return evaluate_work(stages.evaluate, facts, points=2 if bare and started else 1)
        case StageKind.EXPORT:
            return Work()


def warmup_work(stage: WarmupStage, data: DataStatistics) -> Work:
    """Rows that are trained on, a row as often as it is seen."""
    rows = stage.max_steps * stage.global_batch if stage.max_steps else max(1, round(stage.epochs * data.train))
    return Work(rows=rows, trained=rows * (data.prompt.mean + data.answer.mean))


def score_work(stage: ScoreStage, data: DataStatistics, *, iteration: int) -> Work:
    share = 1.0
    if iteration > 1 and stage.rescore == "pool":
        share = min(1.0, stage.pool_fraction + stage.audit_fraction)
    rows = data.train * share
    return Work(rows=rows, scored=rows * (data.prompt.mean + data.answer.mean))


def selected(stage: ScoreStage, data: DataStatistics) -> int:
    """Examples that are explored; of those with and without a call separately, each rounded up."""
    calls = round(data.train * data.call_share)
    groups = (calls, data.train - calls) if stage.stratify else (data.train,)
    return sum(min(size, math.ceil(stage.fraction * size - 1e-9)) for size in groups)


def simulations_per_tree(stage: RolloutStage, rates: SearchRates) -> float:
    """Mean simulations: each tree's own budget with its early stops, and what the stopped ones leave to the others.

    A tree that is undecided at the end of its own budget takes up to as much again of what is left.
    """
    if stage.method != "mcts":
        return 1.0
    budget = stage.simulations
    going = still_going(stage, rates, 2 * budget)  # going[k]: share of trees that begin simulation k + 1
    own, wanted = sum(going[:budget]), sum(going[budget:])
    return own + min(budget - own, wanted)


def still_going(stage: RolloutStage, rates: SearchRates, simulations: int) -> list[float]:
    """Shares of the trees that begin their first, second … simulation, if nothing but themselves stops them."""
    stops = rates.later_stops or (0.0,)
    going, left = [1.0], 1.0 - first_stop(stage, rates)
    for number in range(simulations - 1):
        going.append(left)
        left *= 1.0 - stops[min(number, len(stops) - 1)]
    return going


def first_stop(stage: RolloutStage, rates: SearchRates) -> float:
    """All of `actions` completions are one answer: each further one agrees with the same probability."""
    if rates.first_stop in (0.0, 1.0):
        return rates.first_stop
    return float(rates.first_stop ** ((stage.actions - 1) / (rates.actions - 1)))


def rollout_work(stage: RolloutStage, examples: int, facts: Facts) -> Work:
    """The trees of one iteration, until the pairs are enough.

    An expansion is one request of n completions; its prompt is computed once, the forks are cached. Below the root the
    prompt is known but for what a block cuts off. Completions from deeper nodes are shorter by what they share.
    """
    rates, data = facts.search, facts.data
    trees = float(examples)
    if rates.pairs:
        trees = min(trees, stage.max_pairs / rates.pairs)
    completions = stage.actions * (1 if stage.method == "mcts" else stage.simulations)
    below = (simulations_per_tree(stage, rates) - 1.0) * rates.expanding
    prompt, answer = data.prompt.mean * rates.prompt_ratio, data.answer.mean
    shared, sampled = rates.shared_ratio * answer, rates.sampled_ratio * answer
    deep = data.prompt.mean * rates.deep_prompt_ratio
    asked = completions * (prompt + below * (deep + shared))
    new = (1.0 - rates.common_share) if facts.cross_tree else 1.0
    computed = prompt * new + below * recomputed(facts.block)
    decoded = completions * (min(sampled, stage.max_answer_tokens) + below * max(sampled - shared, 1.0))
    judged = judged_answers(stage, data, rates)
    judge_prompt = RUBRIC_TOKENS + QUESTION_TOKENS + answer + sampled
    judge_new = min(judged, 1.0) * answer + judged * (QUESTION_TOKENS + sampled)
    return Work(
        rows=trees,
        requests=trees * (1.0 + below),
        judgements=trees * judged,
        computed=trees * (computed + judge_new),
        cached=trees * (asked - computed + judged * judge_prompt - judge_new),
        decoded=trees * decoded,
        pairs=min(trees * rates.pairs, stage.max_pairs),
    )


def recomputed(block: int) -> float:
    """Mean tokens of a known prompt that are computed again: the last always is, and an unfinished block."""
    return (block + 1) / 2


def judged_answers(stage: RolloutStage, data: DataStatistics, rates: SearchRates) -> float:
    """Judgements of a tree: each distinct answer once; `mixed` only where the true answer is free text."""
    share = {"rule": 0.0, "judge": 1.0, "mixed": 1.0 - data.call_share}[stage.reward]
    return share * rates.answers


def train_work(stage: TrainStage, pairs: float, facts: Facts) -> Work:
    """Pairs that are trained on, a pair as often as it is seen, and the tokens of their rows.

    A row of a tree has its context once. How many pairs share it is not known better than the mean over all trees, and
    those without a pair are among them: tokens of tree rows are rather fewer than predicted.
    """
    seen = float(stage.max_steps * stage.global_batch) if stage.max_steps else stage.epochs * pairs
    rates, answer = facts.search, facts.data.answer.mean
    context = facts.data.prompt.mean * rates.prompt_ratio + rates.pair_shared_ratio * answer
    contexts = {"separate": 2.0, "pair": 1.0, "tree": 1.0 / max(1.0, rates.pairs)}[stage.rows]
    return Work(rows=seen, trained=seen * (contexts * context + rates.pair_steps_ratio * answer))


def evaluate_work(stage: EvaluateStage, facts: Facts, *, points: int) -> Work:
    """Every question that is known of is asked once of every point, greedily.

    A dialogue asks as often as its solution takes, its tools are computed once and known in all its later requests;
    what it grows by is left out.
    """
    data, rates = facts.data, facts.evaluation
    by_category = dialogues(stage)
    held, turns = sum(by_category.values()), dialogue_requests(by_category)
    asked = sum(count or 0 for count in questions(stage, facts).values())
    single = asked - held
    prompt, answer = data.prompt.mean * rates.prompt_ratio, data.answer.mean * rates.answer_ratio
    known = prompt * (facts.search.common_share if facts.cross_tree else 0.0)
    return Work(
        rows=points * float(asked),
        requests=points * (single + turns),
        computed=points * (single * (prompt - known) + held * DIALOGUE_TOKENS),
        cached=points * (single * known + (turns - held) * DIALOGUE_TOKENS),
        decoded=points * (single + turns) * min(answer, stage.max_new_tokens),
    )


def dialogues(stage: EvaluateStage) -> dict[str, int]:
    """Multi-turn dialogues by category: they count among `questions`, and each is many requests."""
    if "bfcl" not in stage.benchmarks:
        return {}
    wanted = [category for category in bfcl.opened(stage.categories) if category in bfcl.MULTI_TURN]
    return _first(stage, {category: bfcl.MULTI_TURN_ITEMS[category] for category in wanted})


def dialogue_requests(by_category: Mapping[str, int]) -> float:
    return sum(bfcl.DIALOGUE_REQUESTS[category] * count for category, count in by_category.items())


def questions(stage: EvaluateStage, facts: Facts) -> dict[str, int | None]:
    """Items by benchmark: of the dev set all, of each category of BFCL and API-Bank the first `limit`, of a plug-in
    what is known of it; None where nothing is."""
    found: dict[str, int | None] = {}
    for name in stage.benchmarks:
        match name:
            case "dev":
                found[name] = facts.data.dev
            case "bfcl":
                counts = {category: bfcl.ALL_ITEMS[category] for category in bfcl.opened(stage.categories)}
                found[name] = sum(_first(stage, counts).values())
            case "apibank":
                counts = apibank.items(stage.api_bank.uri if stage.api_bank else "")
                found[name] = sum(_first(stage, counts).values())
    return found | {plugin.name: facts.questions.get(plugin.name) for plugin in stage.plugins}


def _first(stage: EvaluateStage, counts: Mapping[str, int]) -> dict[str, int]:
    """Of each category its first `limit` items."""
    return {category: min(count, stage.limit or count) for category, count in counts.items()}
