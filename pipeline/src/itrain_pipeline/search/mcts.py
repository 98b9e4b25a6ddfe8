"""One tree: select, expand, reward, back up (method document, section 3).

A simulation descends by PUCT. At a node not expanded yet it asks once for n completions to the end of the answer;
each is cut into steps, threaded into the tree, rewarded as the finished answer that it is, and backed up along its own
path. Where an answer ended before, its reward is backed up again, so no branch freezes the tree.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.ports import Completion, FinishReason, SamplingParams
from itrain_pipeline.search.levers import Levers
from itrain_pipeline.search.puct import select_leaf
from itrain_pipeline.search.tree import Node, Steps, back_up, enter, leave, thread_chain

StopReason = Literal["agreed", "separated", "quota", "exhausted", "decided", "budget"]
T = TypeVar("T")
Cut = Callable[[tuple[int, ...]], Steps]
"""Token ids of a whole answer to its steps; they join to the same ids."""
UNFINISHED_REWARD = -1.0
"""An answer that was cut by its length limit is worth the least; no reward function sees it."""
DELTA = 0.05
"""Q intervals hold with probability 1 - DELTA (Hoeffding, rewards in [-1, 1])."""


class Ask(Protocol):
    """Completions of prompt + answer ids; raises StageError once retries are used up."""

    def __call__(
        self, answer_ids: tuple[int, ...], params: SamplingParams
    ) -> Coroutine[Any, Any, list[Completion]]: ...


class Truth(Protocol):
    """What is certain about an answer, beside its reward (`search/certainty.py`)."""

    def reached(self, answer_ids: tuple[int, ...]) -> bool:
        """Whether this finished answer is right."""

    def excluded(self, beginning_ids: tuple[int, ...]) -> bool:
        """Whether no right answer begins like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """What the search asks for: completions, steps, the reward of a finished answer, seeds by (answer ids, visit)."""

    ask: Ask
    cut: Cut
    reward: Callable[[tuple[int, ...]], Awaitable[float]]
    seed: Callable[[tuple[int, ...], int], int]
    stop_token_ids: tuple[int, ...] = ()
    truth: Truth | None = None
    """None: nothing is certain, values alone decide."""


PLAIN = Levers(prune=False)
"""The textbook's selection: an answer that ended is chosen again like any other node."""


class TreeSearch:
    """The state of one tree; `run` may be called again to spend more simulations."""

    def __init__(self, settings: RolloutStage, oracle: Oracle, *, rng: random.Random, levers: Levers = PLAIN) -> None:
        self.root = Node()
        self.simulations = 0
        self.merged_actions = 0
        """Steps that were sampled again where they stood already."""
        self._settings, self._oracle, self._rng, self._levers = settings, oracle, rng, levers

    async def run(self, budget: int, stop: Callable[[Node], StopReason | None]) -> StopReason:
        """Spend at most `budget` simulations; `stop` is asked before each but the first."""
        running: set[asyncio.Task[None]] = set()
        spent, width = 0, self._levers.simulations_in_flight
        try:
            while spent < budget:
                if self.simulations and (reason := stop(self.root)):
                    return reason
                leaf = self._select()
                if leaf.expanding or len(running) == width:
                    running = await _first_ended(running)
                    continue
                spent += 1
                if self._visit_again(leaf):
                    continue
                self._begin(leaf)
                if width == 1:
                    await self._grow(leaf)
                else:
                    running.add(asyncio.ensure_future(self._grow(leaf)))
            while running:
                running = await _first_ended(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return stop(self.root) or "budget"

    async def simulate(self) -> None:
        """One simulation by itself."""
        leaf = self._select()
        if not self._visit_again(leaf):
            self._begin(leaf)
            await self._grow(leaf)

    def _select(self) -> Node:
        settings = self._settings
        return select_leaf(
            self.root,
            c=settings.exploration,
            first_play_value=settings.first_play_value,
            rng=self._rng,
            open_only=self._levers.prune,
        )

    def _visit_again(self, leaf: Node) -> bool:
        """Back up what is known where there is nothing to ask for: no branch freezes the tree."""
        if not leaf.closed or leaf.expanded:
            return False
        back_up(leaf, leaf.q if leaf.reward is None else leaf.reward)
        self.simulations += 1
        return True

    def _begin(self, leaf: Node) -> None:
        """At once, not when its task first runs: the next selection must see it."""
        enter(leaf)
        leaf.expanding = True

    async def _grow(self, leaf: Node) -> None:
        try:
            visits = await self._expand(leaf)
        finally:
            leaf.expanding = False
            leave(leaf)
        for end, value in visits:
            back_up(end, value)
        self.simulations += 1

    async def _expand(self, node: Node) -> list[tuple[Node, float]]:
        """Ask once, thread every completion; the nodes where answers ended, and their rewards."""
        answer = node.answer_ids()
        completions = await self._complete(answer)
        answers = [(*answer, *completion.token_ids) for completion in completions]
        rewards = await self._rewards(answers, [completion.finish_reason for completion in completions])
        node.expanded = True
        visits = []
        for completion, whole, value in zip(completions, answers, rewards, strict=True):
            steps = steps_after(self._oracle.cut(whole), len(answer))
            before = sum(1 for _ in node.walk())
            end = thread_chain(
                node,
                steps,
                completion.logprobs,
                completion.finish_reason,
                depth=self._settings.depth,
                merge=self._levers.merge,
            )
            self.merged_actions += end.level - node.level - (sum(1 for _ in node.walk()) - before)
            end.reward = value
            self._mark(end, whole)
            visits.append((end, value))
        return visits

    async def _complete(self, answer: tuple[int, ...]) -> list[Completion]:
        """The completions of a node, all of one request, so that they are decoded side by side from one prefill."""
        settings, oracle = self._settings, self._oracle
        seeds = tuple(oracle.seed(answer, visit) for visit in range(settings.actions))
        parts = [seeds] if self._levers.fork else [(seed,) for seed in seeds]
        asked = [
            oracle.ask(
                answer,
                SamplingParams(
                    seeds=part,
                    max_tokens=settings.max_answer_tokens - len(answer),
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    stop_token_ids=oracle.stop_token_ids,
                ),
            )
            for part in parts
        ]
        return [completion for done in await gather(asked) for completion in done]

    async def _rewards(self, answers: list[tuple[int, ...]], endings: list[FinishReason]) -> list[float]:
        """Siblings are rewarded together: where a judge is asked, its requests share one batch and one prefix."""
        values = [self._value(*pair) for pair in zip(answers, endings, strict=True)]
        if self._levers.judge_together:
            return await gather(values)
        return [await value for value in values]

    async def _value(self, answer: tuple[int, ...], ending: FinishReason) -> float:
        return UNFINISHED_REWARD if ending == "length" else await self._oracle.reward(answer)

    def _mark(self, end: Node, answer: tuple[int, ...]) -> None:
        """Note what is certain about the nodes of a completion; those marked before stay as they are."""
        truth = self._oracle.truth
        if truth is None:
            return
        if end.ending == "stop" and truth.reached(answer):
            for node in end.path():
                node.right, node.wrong = True, False
            return
        for node in end.path():
            if not node.right and not node.wrong:
                node.wrong = node.terminal or truth.excluded(node.answer_ids())


async def _first_ended(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that still run once one has ended; raises what it raised."""
    done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left


async def gather(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. The first error cancels the others and is raised once they have ended."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def steps_after(steps: Steps, start: int) -> Steps:
    """The steps behind the first `start` ids; a step across that point is cut there."""
    after, at = [], 0
    for step in steps:
        if at + len(step) > start:
            after.append(step[max(start - at, 0) :])
        at += len(step)
    return tuple(after)


def stop_reason(root: Node, *, pairs: int, quota: int) -> StopReason | None:
    """Why no further simulation can change the outcome, or is wanted."""
    branching = [node for node in root.walk() if len(node.children) > 1]
    if not branching:
        return "agreed"
    if pairs >= quota:
        return "quota"
    if all(node.expanded or node.ending for node in root.walk()):
        return "exhausted"
    if not root.open_below():
        return "decided"
    if all(_separated(node) for node in branching):
        return "separated"
    return None


def _separated(node: Node) -> bool:
    """Whether the intervals of the best and the worst visited child do not meet: their order is settled."""
    visited = [child for child in node.children.values() if child.visits]
    if len(visited) < 2:
        return False
    best, worst = max(visited, key=lambda n: n.q), min(visited, key=lambda n: n.q)
    return best.q - half_width(best.visits) > worst.q + half_width(worst.visits)


def half_width(visits: int) -> float:
    """Hoeffding for values in [-1, 1]: √(2 ln(2/δ) / n)."""
    return math.sqrt(2 * math.log(2 / DELTA) / visits)
