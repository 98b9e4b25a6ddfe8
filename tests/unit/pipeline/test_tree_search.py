"""The search of one tree: equal to the textbook's node for node, and the traps of the released code."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.errors import RetryableError
from itrain_pipeline.ports import Completion, SamplingParams
from itrain_pipeline.search.mcts import (
    UNFINISHED_REWARD,
    Oracle,
    TreeSearch,
    half_width,
    steps_after,
    stop_reason,
)
from itrain_pipeline.search.seeds import derive_seed
from itrain_pipeline.search.tree import Node, back_up, thread_chain
from itrain_testing.scripted_engine import END, ScriptedEngine, toy_cut, toy_policy, toy_reward
from itrain_testing.textbook_mcts import Table, textbook_search

PROMPT = (1, 3, 3)


def never(root: Node) -> None:
    return None


def seed_of(sample: str) -> Any:
    return lambda answer, visit: derive_seed(run_seed=7, iteration=1, sample_id=sample, answer_ids=answer, visit=visit)


def grow(
    settings: RolloutStage, sample: str, engine: ScriptedEngine | None = None, reward: Any = toy_reward
) -> TreeSearch:
    engine = engine or ScriptedEngine()

    async def value(answer: tuple[int, ...]) -> float:
        return reward(answer)

    oracle = Oracle(
        ask=lambda answer, params: engine.generate((*PROMPT, *answer), params),
        cut=toy_cut,
        reward=value,
        seed=seed_of(sample),
    )
    search = TreeSearch(settings, oracle, rng=random.Random(sample))
    asyncio.run(search.run(settings.simulations, never))
    return search


def textbook(settings: RolloutStage, sample: str) -> Table:
    def draw(answer: tuple[int, ...], seed: int) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
        room = settings.max_answer_tokens - len(answer)
        done = toy_policy((*PROMPT, *answer), seed, SamplingParams(seeds=(seed,), max_tokens=room))
        return done.token_ids, done.logprobs, done.token_ids[-1] == END

    return textbook_search(
        sample=draw,
        cut=toy_cut,
        reward=toy_reward,
        seed=seed_of(sample),
        rng=random.Random(sample),
        simulations=settings.simulations,
        actions=settings.actions,
        depth=settings.depth,
        c=settings.exploration,
        first_play_value=settings.first_play_value,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"simulations": 40, "depth": 4, "actions": 2},
        {"simulations": 25, "exploration": 3.0, "first_play_value": -0.5},
        {"simulations": 30, "exploration": 0.0, "actions": 4, "depth": 2},
        {"simulations": 20, "max_answer_tokens": 6},
    ],
)
def test_one_tree_equals_the_textbook_node_for_node(fields: dict[str, Any]) -> None:
    settings = RolloutStage(**{"max_answer_tokens": 40, **fields})
    nodes = 0
    for number in range(60):
        table = textbook(settings, f"sample-{number}")
        root = grow(settings, f"sample-{number}").root
        ours = {steps_to(node): node for node in root.walk()}
        assert list(ours) == sorted(table.n, key=list(ours).index)
        for state, node in ours.items():
            assert node.visits == table.n[state]
            assert node.value_sum == pytest.approx(table.total[state], abs=1e-12)
            assert node.expanded == (state in table.expanded)
            assert [steps_to(child) for child in node.children.values()] == table.children[state]
            assert node.in_flight == 0
        nodes += len(ours)
    assert nodes > 300


def steps_to(node: Node) -> tuple[tuple[int, ...], ...]:
    return tuple(n.step_ids for n in node.path() if n.parent is not None)[::-1]


def test_no_prompt_and_seed_are_ever_asked_for_twice() -> None:
    engine = ScriptedEngine()
    for number in range(30):
        grow(RolloutStage(simulations=30, max_answer_tokens=30), f"sample-{number}", engine)
    assert len(engine.asked) > 200
    assert len(set(engine.asked)) == len(engine.asked)


def test_every_end_of_an_answer_is_exactly_what_was_sampled() -> None:
    engine = ScriptedEngine()
    sampled = set()

    def recording(prompt: tuple[int, ...], seed: int, params: SamplingParams) -> Completion:
        completion = toy_policy(prompt, seed, params)
        sampled.add((*prompt[len(PROMPT) :], *completion.token_ids))
        return completion

    engine.policy = recording
    root = grow(RolloutStage(simulations=20, max_answer_tokens=30), "s", engine).root
    assert {node.answer_ids() for node in root.walk() if node.ending} == sampled


def test_a_finished_branch_backs_up_again_and_does_not_freeze_the_tree() -> None:
    few = grow(RolloutStage(simulations=5, max_answer_tokens=30), "s")
    many = grow(RolloutStage(simulations=60, max_answer_tokens=30), "s")
    assert many.simulations == 60
    assert many.root.visits >= few.root.visits + 55
    assert sum(node.expanded for node in many.root.walk()) > sum(node.expanded for node in few.root.walk())
    revisited = [node for node in many.root.walk() if node.ending and node.visits > 3]
    assert revisited
    assert all(node.q == pytest.approx(node.reward) for node in revisited)


def test_a_cut_answer_never_meets_the_reward_function_and_is_worth_the_least() -> None:
    judged = []

    def reward(answer: tuple[int, ...]) -> float:
        judged.append(answer)
        return 1.0

    root = grow(RolloutStage(simulations=10, max_answer_tokens=3), "s", reward=reward).root
    cut = [node for node in root.walk() if node.ending == "length"]
    assert cut
    assert all(node.reward == UNFINISHED_REWARD and not node.terminal and len(node.answer_ids()) == 3 for node in cut)
    assert all(answer[-1] == END for answer in judged)


def test_a_failed_request_leaves_the_tree_as_it_was() -> None:
    engine = ScriptedEngine(failures={1: RetryableError("lost")})
    oracle = Oracle(
        ask=lambda answer, params: engine.generate((*PROMPT, *answer), params),
        cut=toy_cut,
        reward=lambda answer: asyncio.sleep(0, toy_reward(answer)),
        seed=seed_of("s"),
    )
    search = TreeSearch(RolloutStage(max_answer_tokens=30), oracle, rng=random.Random("s"))
    asyncio.run(search.simulate())
    before = [(n.visits, n.value_sum, n.in_flight, n.expanded) for n in search.root.walk()]
    with pytest.raises(RetryableError, match="lost"):
        asyncio.run(search.simulate())
    assert [(n.visits, n.value_sum, n.in_flight, n.expanded) for n in search.root.walk()] == before
    assert search.simulations == 1
    asyncio.run(search.simulate())
    assert search.simulations == 2


def test_steps_behind_a_point_join_to_the_ids_behind_it_even_inside_a_step() -> None:
    steps = ((1, 2), (3, 4, 5), (6,))
    for start in range(7):
        ids = tuple(itertools.chain.from_iterable(steps_after(steps, start)))
        assert ids == (1, 2, 3, 4, 5, 6)[start:]
    assert steps_after(steps, 2) == ((3, 4, 5), (6,))
    assert steps_after(steps, 3) == ((4, 5), (6,))


def test_a_tree_stops_when_all_siblings_match() -> None:
    root = Node(expanded=True)
    for _ in range(3):
        back_up(thread_chain(root, ((1,), (2,)), [-1.0, -1.0], "stop", depth=3), 0.4)
    assert stop_reason(root, pairs=0, quota=4) == "agreed"


def test_a_tree_stops_at_its_quota_of_pairs_and_when_nothing_is_left_to_expand() -> None:
    root = Node(expanded=True)
    back_up(thread_chain(root, ((1,),), [-1.0], "stop", depth=3), 1.0)
    back_up(thread_chain(root, ((2,), (3,)), [-1.0, -1.0], "stop", depth=3), -1.0)
    assert stop_reason(root, pairs=0, quota=4) is None
    assert stop_reason(root, pairs=4, quota=4) == "quota"
    root.children[(2,)].expanded = True
    assert stop_reason(root, pairs=0, quota=4) == "exhausted"


def test_a_tree_stops_when_the_intervals_of_best_and_worst_no_longer_meet() -> None:
    root = Node(expanded=True)
    good = thread_chain(root, ((1,), (3,)), [-1.0, -1.0], "stop", depth=3)
    bad = thread_chain(root, ((2,), (3,)), [-1.0, -1.0], "stop", depth=3)
    for visits in range(1, 30):
        back_up(good, 1.0)
        back_up(bad, -1.0)
        settled = 1.0 - half_width(visits) > -1.0 + half_width(visits)
        assert stop_reason(root, pairs=0, quota=4) == ("separated" if settled else None)
    assert settled
