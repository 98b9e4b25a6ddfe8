"""The search of one sample to its end: budget, stop rules, pairs, and the record that the report reads."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.ports import Completion, Engine, SamplingParams
from itrain_pipeline.records import Example, Lineage, PreferencePair
from itrain_pipeline.search.baselines import method_pairs, method_settings
from itrain_pipeline.search.budget import Budget
from itrain_pipeline.search.certainty import certain_truth
from itrain_pipeline.search.forest import ForestStats, RetryPolicy, with_retries
from itrain_pipeline.search.judge import Encode, Judge, JudgeForm, judge_form
from itrain_pipeline.search.levers import Levers
from itrain_pipeline.search.mcts import Cut, Oracle, StopReason, TreeSearch, stop_reason
from itrain_pipeline.search.pace import Turns
from itrain_pipeline.search.pairs import Decode, StepPair, build_pair
from itrain_pipeline.search.reward import Reward
from itrain_pipeline.search.seeds import derive_seed
from itrain_pipeline.search.tree import Node
from itrain_pipeline.search.treerecord import TreeRecord, clip, draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The tokenizer as the search sees it."""

    decode: Decode
    """Ids to text, the end-of-turn token and what follows it left out."""
    encode: Encode
    """Text to ids, nothing added."""
    cut: Cut
    bos_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    call_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedSample:
    record: TreeRecord
    pairs: tuple[PreferencePair, ...]


@dataclass(slots=True, kw_only=True)
class _Usage:
    """What one tree asked for."""

    requests: int = 0
    sequences: int = 0
    prompt_tokens: int = 0
    decoded_tokens: int = 0
    retries: int = 0
    duplicates: int = 0
    asked: set[tuple[tuple[int, ...], int]] = field(default_factory=set)
    """(answer ids, seed), the prompt being the tree's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSearch:
    """Searches the samples of one shard; `run` may be under way for many at once."""

    settings: RolloutStage
    engine: Engine
    language: Language
    run_seed: int
    iteration: int
    adapter_sha256: str
    template_sha256: str
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stats: ForestStats = field(default_factory=ForestStats)
    levers: Levers = field(default_factory=Levers)
    turns: Turns = field(default_factory=Turns)
    budget: Budget | None = None
    """None: every tree has its own simulations and no more."""
    form: JudgeForm | None = field(init=False)
    """What all judgements share; None where nobody judges."""

    def __post_init__(self) -> None:
        judged = self.settings.reward != "rule"
        form = judge_form(self.language.encode, self.language.bos_ids) if judged else None
        object.__setattr__(self, "form", form)

    async def run(self, example: Example) -> SearchedSample:
        """The searched tree of one example. Raises PermanentError or, after all retries, RetryableError."""
        if self.settings.trees_in_flight == 1:
            self.engine.reset_prefix_cache()  # fixed-batch mode: nothing before this tree may show in its numbers
        usage = _Usage()
        self.turns.enter(example.id)
        try:
            return await self._search(example, usage)
        finally:
            self.stats.retries += usage.retries
            self.turns.leave(example.id)
            if self.budget is not None:
                self.budget.recall(example.id, freed=0, given=0)  # of a tree that failed, nobody waits for more

    async def _search(self, example: Example, usage: _Usage) -> SearchedSample:
        settings, decode = method_settings(self.settings), self.language.decode
        judge = None if self.form is None else self._judge(example, usage, self.form)
        oracle = self._oracle(example, usage, judge)
        rng = random.Random(self._seed(example, (), -1))
        search = TreeSearch(settings, oracle, rng=rng, levers=self.levers)
        certain = oracle.truth is not None

        def pairs_of(root: Node) -> list[StepPair]:
            return method_pairs(root, settings, decode, certain=certain)

        def stop(root: Node) -> StopReason | None:
            if not self.levers.early_stop:
                return None
            return stop_reason(root, pairs=len(pairs_of(root)), quota=settings.pairs_per_tree)

        reason = await search.run(settings.simulations, stop)
        freed = settings.simulations - search.simulations
        extra = await self._extra(example, freed, wanted=settings.simulations if reason == "budget" else 0)
        if extra:
            reason = await search.run(extra, stop)
        found = pairs_of(search.root)
        lineage = self._lineage(example)
        nodes = list(search.root.walk())
        rewards = [node.reward for node in nodes if node.reward is not None]
        record = TreeRecord(
            sample_id=example.id,
            reason=reason,
            simulations=search.simulations,
            nodes=len(nodes),
            expanded=sum(node.expanded for node in nodes),
            answers=len(rewards),
            best_reward=max(rewards),
            mean_reward=search.root.q,
            pairs=len(found),
            requests=usage.requests,
            judge_calls=judge.calls if judge else 0,
            prompt_tokens=usage.prompt_tokens,
            decoded_tokens=usage.decoded_tokens,
            sequences=usage.sequences,
            memo_hits=judge.hits if judge else 0,
            duplicate_requests=usage.duplicates,
            merged_actions=search.merged_actions,
            reached=search.root.right if certain else None,
            retries=usage.retries,
            freed_simulations=freed,
            extra_simulations=extra,
            prompt_length=len(example.prompt_ids),
            node_tokens=sum(len(node.step_ids) for node in nodes),
            truth_tokens=judge.truth_tokens if judge else 0,
            judged=judge.judged if judge else 0,
            judged_tokens=judge.judged_tokens if judge else 0,
            question=clip(next((m.content for m in reversed(example.messages) if m.role == "user"), "")),
            truth=clip(example.answer),
            drawn=draw(search.root, found, decode),
        )
        pairs = tuple(build_pair(pair, prompt_ids=example.prompt_ids, lineage=lineage) for pair in found)
        return SearchedSample(record=record, pairs=pairs)

    async def _extra(self, example: Example, freed: int, *, wanted: int) -> int:
        """Simulations beyond the tree's own, for one that still disagrees at their end."""
        if self.budget is None or not self.levers.hand_over or self.settings.method != "mcts":
            return 0
        return await self.budget.settle(example.id, freed=freed, wanted=wanted)

    def _oracle(self, example: Example, usage: _Usage, judge: Judge | None) -> Oracle:
        language = self.language
        reward = Reward(kind=self.settings.reward, call_format=language.call_format, judge=judge)

        async def ask(answer_ids: tuple[int, ...], params: SamplingParams) -> list[Completion]:
            prompt = (*example.prompt_ids, *answer_ids)
            await self.turns.wait(example.id)
            done = await with_retries(lambda: self.engine.generate(prompt, params), self.retry, usage)
            usage.requests += 1
            usage.sequences += len(done)
            usage.prompt_tokens += len(prompt) * len(done)
            usage.decoded_tokens += sum(len(completion.token_ids) for completion in done)
            for seed in params.seeds:
                usage.duplicates += (answer_ids, seed) in usage.asked
                usage.asked.add((answer_ids, seed))
            return done

        async def value(answer_ids: tuple[int, ...]) -> float:
            return await reward.value(example, language.decode(answer_ids))

        return Oracle(
            ask=ask,
            cut=language.cut,
            reward=value,
            seed=lambda answer_ids, visit: self._seed(example, answer_ids, visit),
            stop_token_ids=language.stop_token_ids,
            truth=certain_truth(
                self.settings.certainty, example, call_format=language.call_format, decode=language.decode
            ),
        )

    def _judge(self, example: Example, usage: _Usage, form: JudgeForm) -> Judge:
        """One judge a tree: what it remembers must not depend on the trees before it."""

        async def ask(prompt: tuple[int, ...], options: tuple[int, ...]) -> list[float]:
            await self.turns.wait(example.id)
            found = await with_retries(lambda: self.engine.option_logprobs(prompt, options), self.retry, usage)
            usage.sequences += 1
            usage.prompt_tokens += len(prompt)
            return found

        return Judge(form, ask=ask, remember=self.levers.memo)

    def _seed(self, example: Example, answer_ids: tuple[int, ...], visit: int) -> int:
        return derive_seed(
            run_seed=self.run_seed,
            iteration=self.iteration,
            sample_id=example.id,
            answer_ids=answer_ids,
            visit=visit,
        )

    def _lineage(self, example: Example) -> Lineage:
        settings = self.settings
        return Lineage(
            sample_id=example.id,
            iteration=self.iteration,
            adapter_sha256=self.adapter_sha256,
            template_sha256=self.template_sha256,
            sampling={
                "method": settings.method,
                "certainty": settings.certainty,
                "actions": settings.actions,
                "simulations": settings.simulations,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "seed": self.run_seed,
            },
        )
