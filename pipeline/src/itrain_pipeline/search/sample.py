"""The search of one sample to its end: budget, stop rules, pairs, and the record that the report reads."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.ports import Completion, Engine, SamplingParams
from itrain_pipeline.records import Example, Lineage, PreferencePair
from itrain_pipeline.search.baselines import method_pairs, method_settings
from itrain_pipeline.search.forest import ForestStats, RetryPolicy, with_retries
from itrain_pipeline.search.judge import Encode, Judge
from itrain_pipeline.search.mcts import Cut, Oracle, StopReason, TreeSearch, stop_reason
from itrain_pipeline.search.pairs import Decode, build_pair
from itrain_pipeline.search.reward import Reward
from itrain_pipeline.search.seeds import derive_seed
from itrain_pipeline.search.tree import Node


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
class TreeRecord:
    """One tree in numbers. Tokens are those that its requests asked for, cached or not."""

    sample_id: str
    reason: StopReason
    simulations: int
    nodes: int
    expanded: int
    answers: int
    best_reward: float
    mean_reward: float
    pairs: int
    requests: int
    judge_calls: int
    prompt_tokens: int
    decoded_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedSample:
    record: TreeRecord
    pairs: tuple[PreferencePair, ...]


@dataclass(slots=True, kw_only=True)
class Budget:
    """Simulations of trees that stopped early, for those that still disagree at the end of their own.

    Who gets them depends on the order in which trees end, so with many in flight two runs may search different trees
    further; one in flight repeats exactly.
    """

    freed: int = 0

    def settle(self, given: int, spent: int) -> None:
        self.freed += given - spent

    def take(self, most: int) -> int:
        taken = max(min(self.freed, most), 0)
        self.freed -= taken
        return taken


@dataclass(slots=True, kw_only=True)
class _Usage:
    requests: int = 0
    prompt_tokens: int = 0
    decoded_tokens: int = 0


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
    budget: Budget = field(default_factory=Budget)

    async def run(self, example: Example) -> SearchedSample:
        """The searched tree of one example. Raises PermanentError or, after all retries, RetryableError."""
        if self.settings.trees_in_flight == 1:
            self.engine.reset_prefix_cache()  # fixed-batch mode: nothing before this tree may show in its numbers
        settings = method_settings(self.settings)
        usage = _Usage()
        judge = None if settings.reward == "rule" else self._judge(usage)
        search = TreeSearch(
            settings, self._oracle(example, usage, judge), rng=random.Random(self._seed(example, (), -1))
        )
        decode = self.language.decode

        def stop(root: Node) -> StopReason | None:
            pairs = len(method_pairs(root, settings, decode))
            return stop_reason(root, pairs=pairs, quota=settings.pairs_per_tree)

        reason = await search.run(settings.simulations, stop)
        self.budget.settle(settings.simulations, search.simulations)
        if reason == "budget" and (extra := self.budget.take(settings.simulations)):
            reason = await search.run(extra, stop)
            self.budget.settle(extra, search.simulations - settings.simulations)
        found = method_pairs(search.root, settings, decode)
        lineage = self._lineage(example)
        pairs = tuple(build_pair(pair, prompt_ids=example.prompt_ids, lineage=lineage) for pair in found)
        return SearchedSample(record=_record(example.id, search, reason, len(pairs), usage, judge), pairs=pairs)

    def _oracle(self, example: Example, usage: _Usage, judge: Judge | None) -> Oracle:
        reward = Reward(kind=self.settings.reward, call_format=self.language.call_format, judge=judge)

        async def ask(answer_ids: tuple[int, ...], params: SamplingParams) -> list[Completion]:
            prompt = (*example.prompt_ids, *answer_ids)
            done = await with_retries(lambda: self.engine.generate(prompt, params), self.retry, self.stats)
            usage.requests += 1
            usage.prompt_tokens += len(prompt)
            usage.decoded_tokens += sum(len(completion.token_ids) for completion in done)
            return done

        async def value(answer_ids: tuple[int, ...]) -> float:
            return await reward.value(example, self.language.decode(answer_ids))

        return Oracle(
            ask=ask,
            cut=self.language.cut,
            reward=value,
            seed=lambda answer_ids, visit: self._seed(example, answer_ids, visit),
            stop_token_ids=self.language.stop_token_ids,
        )

    def _judge(self, usage: _Usage) -> Judge:
        """One judge a tree: what it remembers must not depend on the trees before it."""

        async def ask(prompt: tuple[int, ...], options: tuple[int, ...]) -> list[float]:
            found = await with_retries(lambda: self.engine.option_logprobs(prompt, options), self.retry, self.stats)
            usage.requests += 1
            usage.prompt_tokens += len(prompt)
            return found

        return Judge(encode=self.language.encode, ask=ask, bos_ids=self.language.bos_ids)

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
                "actions": settings.actions,
                "simulations": settings.simulations,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "seed": self.run_seed,
            },
        )


def _record(
    sample_id: str, search: TreeSearch, reason: StopReason, pairs: int, usage: _Usage, judge: Judge | None
) -> TreeRecord:
    nodes = list(search.root.walk())
    rewards = [node.reward for node in nodes if node.reward is not None]
    return TreeRecord(
        sample_id=sample_id,
        reason=reason,
        simulations=search.simulations,
        nodes=len(nodes),
        expanded=sum(node.expanded for node in nodes),
        answers=len(rewards),
        best_reward=max(rewards),
        mean_reward=search.root.q,
        pairs=pairs,
        requests=usage.requests,
        judge_calls=judge.calls if judge else 0,
        prompt_tokens=usage.prompt_tokens,
        decoded_tokens=usage.decoded_tokens,
    )
