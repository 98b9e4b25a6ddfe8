"""One tree: select, expand, reward, back up (method document, section 3).

A simulation descends by PUCT. At a node not expanded yet it asks once for n completions to the end of the answer;
each is cut into steps, threaded into the tree, rewarded as the finished answer that it is, and backed up along its own
path. Where an answer ended before, its reward is backed up again, so no branch freezes the tree.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.ports import Completion, FinishReason, SamplingParams
from itrain_pipeline.search.puct import select_leaf
from itrain_pipeline.search.tree import Node, Steps, back_up, enter, leave, thread_chain

StopReason = Literal["agreed", "separated", "quota", "exhausted", "budget"]
Cut = Callable[[tuple[int, ...]], Steps]
"""Token ids of a whole answer to its steps; they join to the same ids."""
UNFINISHED_REWARD = -1.0
"""An answer that was cut by its length limit is worth the least; no reward function sees it."""
DELTA = 0.05
"""Q intervals hold with probability 1 - DELTA (Hoeffding, rewards in [-1, 1])."""


class Ask(Protocol):
    """Completions of prompt + answer ids; raises StageError once retries are used up."""

    def __call__(self, answer_ids: tuple[int, ...], params: SamplingParams) -> Awaitable[list[Completion]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """What the search asks for: completions, steps, the reward of a finished answer, seeds by (answer ids, visit)."""

    ask: Ask
    cut: Cut
    reward: Callable[[tuple[int, ...]], Awaitable[float]]
    seed: Callable[[tuple[int, ...], int], int]
    stop_token_ids: tuple[int, ...] = ()


class TreeSearch:
    """The state of one tree; `run` may be called again to spend more simulations."""

    def __init__(self, settings: RolloutStage, oracle: Oracle, *, rng: random.Random) -> None:
        self.root = Node()
        self.simulations = 0
        self._settings, self._oracle, self._rng = settings, oracle, rng

    async def run(self, budget: int, stop: Callable[[Node], StopReason | None]) -> StopReason:
        """Spend at most `budget` simulations; `stop` is asked before each but the first."""
        for _ in range(budget):
            if self.simulations and (reason := stop(self.root)):
                return reason
            await self.simulate()
        return stop(self.root) or "budget"

    async def simulate(self) -> None:
        settings = self._settings
        leaf = select_leaf(self.root, c=settings.exploration, first_play_value=settings.first_play_value, rng=self._rng)
        if leaf.ending is not None:
            assert leaf.reward is not None
            back_up(leaf, leaf.reward)
        else:
            enter(leaf)
            try:
                visits = await self._expand(leaf)
            finally:
                leave(leaf)
            for end, value in visits:
                back_up(end, value)
        self.simulations += 1

    async def _expand(self, node: Node) -> list[tuple[Node, float]]:
        """Ask once, thread every completion; the nodes where answers ended, and their rewards."""
        settings, oracle = self._settings, self._oracle
        answer = node.answer_ids()
        params = SamplingParams(
            seeds=tuple(oracle.seed(answer, visit) for visit in range(settings.actions)),
            max_tokens=settings.max_answer_tokens - len(answer),
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop_token_ids=oracle.stop_token_ids,
        )
        completions = await oracle.ask(answer, params)
        rewards = [await self._value((*answer, *c.token_ids), c.finish_reason) for c in completions]
        node.expanded = True
        visits = []
        for completion, value in zip(completions, rewards, strict=True):
            steps = steps_after(oracle.cut((*answer, *completion.token_ids)), len(answer))
            end = thread_chain(node, steps, completion.logprobs, completion.finish_reason, depth=settings.depth)
            end.reward = value
            visits.append((end, value))
        return visits

    async def _value(self, answer: tuple[int, ...], ending: FinishReason) -> float:
        return UNFINISHED_REWARD if ending == "length" else await self._oracle.reward(answer)


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
