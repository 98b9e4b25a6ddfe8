"""Preference pairs: what is chosen, what is context, and what is filtered out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.ports import Completion, SamplingParams
from itrain_pipeline.records import Lineage
from itrain_pipeline.search.baselines import first_divergence, method_pairs, method_settings
from itrain_pipeline.search.mcts import Oracle, TreeSearch
from itrain_pipeline.search.pairs import build_pair, step_pairs, word_overlap
from itrain_pipeline.search.tree import Node, back_up, thread_chain
from itrain_testing.scripted_engine import END, ScriptedEngine, toy_cut, toy_policy, toy_reward

LINEAGE = Lineage(sample_id="row-1", iteration=2, adapter_sha256="a", template_sha256="t", sampling={"seed": 1})
ANY = RolloutStage(min_gap=0.0, max_overlap=1.0, min_best=-1.0, pairs_per_node=1)


def words(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def tree(*answers: tuple[tuple[tuple[int, ...], ...], float]) -> Node:
    root = Node()
    for steps, value in answers:
        tokens = sum(map(len, steps))
        back_up(thread_chain(root, steps, [-1.0] * tokens, "stop", depth=3), value)
    return root


def test_chosen_and_rejected_are_only_the_diverging_steps_and_what_they_share_is_context() -> None:
    root = tree((((1, 2), (3,), (4,)), 0.8), (((1, 2), (5, 6), (7,)), -0.4))
    (pair,) = step_pairs(root, ANY, words)
    made = build_pair(pair, prompt_ids=(9, 9), lineage=LINEAGE)
    assert made.prompt_ids == (9, 9)
    assert made.shared_ids == (1, 2)
    assert (made.chosen_ids, made.rejected_ids) == ((3,), (5, 6))
    assert (made.chosen_q, made.rejected_q) == (pytest.approx(0.8), pytest.approx(-0.4))
    assert made.id == "row-1/i2/0"
    assert made.lineage == LINEAGE


def test_pairs_join_to_sampled_answers_and_hold_an_end_only_where_one_was_sampled() -> None:
    sampled: list[tuple[int, ...]] = []
    settings = ANY.model_copy(update={"simulations": 12, "max_answer_tokens": 30, "pairs_per_tree": 100})

    def recording(prompt: tuple[int, ...], seed: int, params: SamplingParams) -> Completion:
        done = toy_policy(prompt, seed, params)
        sampled.append((*prompt[1:], *done.token_ids))
        return done

    ended = partial = 0
    for number in range(20):
        engine = ScriptedEngine(recording)
        oracle = Oracle(
            ask=lambda answer, params, engine=engine: engine.generate((1, *answer), params),
            cut=toy_cut,
            reward=lambda answer: asyncio.sleep(0, toy_reward(answer)),
            seed=lambda answer, visit, number=number: hash((number, answer, visit)) % 2**31,
        )
        search = TreeSearch(settings, oracle, rng=random.Random(number))
        asyncio.run(search.run(settings.simulations, lambda _: None))
        for pair in step_pairs(search.root, settings, words):
            made = build_pair(pair, prompt_ids=(1,), lineage=LINEAGE)
            for step in (made.chosen_ids, made.rejected_ids):
                beginning = (*made.shared_ids, *step)
                whole = [answer for answer in sampled if answer[: len(beginning)] == beginning]
                assert whole  # no space, no token that nobody sampled
                assert END not in step[:-1]
                if step[-1] == END:
                    assert beginning in whole
                    ended += 1
                else:
                    assert all(len(answer) > len(beginning) or answer[-1] != END for answer in whole)
                    partial += 1
            assert END not in made.shared_ids
    assert ended > 5
    assert partial > 5


def test_best_and_worst_are_chosen_by_mean_value_and_not_by_sum_or_visits() -> None:
    answers = [(((1,),), 0.3)] * 6 + [(((2,),), 0.9), (((3,),), -0.2), (((3,),), -0.2)]
    (pair,) = step_pairs(tree(*answers), ANY, words)
    assert (pair.best.step_ids, pair.worst.step_ids) == ((2,), (3,))
    assert pair.gap == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, 1),
        ({"min_gap": 0.31}, 0),
        ({"min_best": 0.21}, 0),
        ({"max_overlap": 0.4}, 0),
        ({"min_visits": 2}, 0),
        ({"min_gap": 0.3, "min_best": 0.2, "max_overlap": 0.5, "min_visits": 1}, 1),
    ],
)
def test_each_filter_drops_a_pair_at_its_limit(fields: dict[str, Any], kept: int) -> None:
    # gap 0.3, best 0.2, overlap 1 of 2 words
    root = tree((((1, 2),), 0.2), (((1, 3),), -0.1))
    assert len(step_pairs(root, ANY.model_copy(update=fields), words)) == kept


def test_the_best_step_of_a_node_is_preferred_to_as_many_worse_ones_as_asked_for() -> None:
    root = tree((((1,),), 0.9), (((2,),), -0.5), (((3,),), 0.1), (((4,),), -0.2))
    for most, worse in ((1, [(2,)]), (2, [(2,), (4,)]), (9, [(2,), (4,), (3,)])):
        found = step_pairs(root, ANY.model_copy(update={"pairs_per_node": most}), words)
        assert [pair.best.step_ids for pair in found] == [(1,)] * len(worse)
        assert [pair.worst.step_ids for pair in found] == worse
        made = [build_pair(pair, prompt_ids=(9,), lineage=LINEAGE) for pair in found]
        assert len({pair.id for pair in made}) == len(made)
    assert [pair.id for pair in made] == ["row-1/i2/root", "row-1/i2/root~1", "row-1/i2/root~2"]


def test_a_certain_pair_has_a_right_step_and_a_wrong_one_whatever_lies_between() -> None:
    root = tree((((1,),), 0.9), (((2,),), 0.8), (((3,),), 0.1), (((4,),), -1.0))
    best, right, wrong, _ = root.children.values()
    assert step_pairs(root, ANY, words, certain=True) == []
    right.right = True
    assert step_pairs(root, ANY, words, certain=True) == []
    wrong.wrong = True
    (pair,) = step_pairs(root, ANY, words, certain=True)
    assert (pair.best, pair.worst) == (right, wrong)
    best.wrong = True  # worth more than the right one: no preference against the value either
    assert [p.worst for p in step_pairs(root, ANY.model_copy(update={"pairs_per_node": 9}), words, certain=True)] == [
        wrong
    ]


def test_equal_values_prefer_nothing_even_without_a_minimum_gap() -> None:
    assert step_pairs(tree((((1,),), 0.5), (((2,),), 0.5)), ANY, words) == []


def test_two_tokenisations_of_one_text_are_no_preference() -> None:
    root = tree((((1, 2),), 0.9), (((3,),), 0.1))
    settings = RolloutStage()
    assert len(step_pairs(root, settings, words)) == 1
    assert step_pairs(root, settings, lambda ids: "city='Rome'") == []


def test_a_child_never_visited_makes_no_pair() -> None:
    root = tree((((1,),), 0.5))
    thread_chain(root, ((2,),), [-1.0], "stop", depth=3)
    assert step_pairs(root, ANY, words) == []


def test_the_quota_keeps_the_widest_gaps_in_tree_order() -> None:
    root = tree(
        (((1,), (5,), (1,)), 0.9),
        (((1,), (5,), (2,)), 0.7),
        (((1,), (6,)), -1.0),
        (((2,),), 0.9),
    )
    everything = step_pairs(root, ANY, words)
    assert [pair.node.name() for pair in everything] == ["", "0", "0.0"]
    two = step_pairs(root, ANY.model_copy(update={"pairs_per_tree": 2}), words)
    assert [pair.node.name() for pair in two] == ["", "0"]
    assert min(p.gap for p in two) >= max(p.gap for p in everything if p.node.name() == "0.0")


def test_words_overlap_as_often_as_they_stand() -> None:
    assert word_overlap("a a b", "a b b") == pytest.approx(2 / 3)
    assert word_overlap("a b", "a b") == 1.0
    assert word_overlap("", "") == 1.0
    assert word_overlap("days=3, ", "days=4, ") == 0.0


def test_best_of_n_prefers_whole_answers_at_the_root() -> None:
    settings = method_settings(ANY.model_copy(update={"method": "bestOfN", "actions": 3, "simulations": 5}))
    assert (settings.actions, settings.simulations, settings.depth) == (15, 1, 1)
    root = Node()
    for steps, value in [(((1, 2), (3,)), 0.5), (((1, 2), (4,)), -0.5)]:
        back_up(thread_chain(root, steps, [-1.0] * 3, "stop", depth=settings.depth), value)
    (pair,) = method_pairs(root, settings, words)
    assert (pair.best.step_ids, pair.worst.step_ids) == ((1, 2, 3), (1, 2, 4))


def test_first_divergence_compares_the_best_and_the_worst_answer_where_they_part() -> None:
    settings = method_settings(ANY.model_copy(update={"method": "firstDivergence"}))
    assert (settings.actions, settings.simulations, settings.depth) == (15, 1, 3)
    root = tree((((1,), (2,), (3,)), 0.9), (((1,), (5,)), -0.9), (((6,),), 0.0))
    (pair,) = method_pairs(root, settings, words)
    assert pair.node.answer_ids() == (1,)
    assert (pair.best.step_ids, pair.worst.step_ids, pair.gap) == ((2,), (5,), pytest.approx(1.8))
    assert first_divergence(tree((((1,),), 0.9))) is None
