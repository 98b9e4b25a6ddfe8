"""A tree's record: the bound by hand, what is drawn, and that it stays small."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.search.bounds import limit_tokens, over_limit
from itrain_pipeline.search.pairs import StepPair, step_pairs
from itrain_pipeline.search.tree import Node, back_up, thread_chain
from itrain_pipeline.search.treerecord import MAX_NODES, MAX_TEXT, TreeRecord, clip, draw, tree_record


def record(**changes: Any) -> TreeRecord:
    fields: dict[str, Any] = dict.fromkeys(
        ("simulations", "nodes", "expanded", "answers", "best_reward", "mean_reward", "pairs", "requests"), 1
    )
    fields |= {"judge_calls": 0, "prompt_tokens": 0, "decoded_tokens": 0}
    return TreeRecord(sample_id="s", reason="agreed", **{**fields, **changes})


def test_the_limit_is_every_token_once() -> None:
    called = record(prompt_length=800, node_tokens=60)
    assert limit_tokens(called) == 860
    judged = record(prompt_length=805, node_tokens=157, truth_tokens=31, judged=3, judged_tokens=40)
    assert limit_tokens(judged) == 805 + 157 + 31 + 40 + 3
    unjudged = record(prompt_length=805, node_tokens=157, truth_tokens=31)
    assert limit_tokens(unjudged) == 962
    assert over_limit(2 * (860 + 962), [called, unjudged]) == pytest.approx(2.0)


def grown(answers: int) -> Node:
    rng = random.Random(answers)
    root = Node()
    for number in range(answers):
        steps = (*((rng.randrange(4), rng.randrange(4)) for _ in range(2)), (number,))
        end = thread_chain(root, steps, [-1.0] * 5, "stop", depth=3)
        end.reward = rng.uniform(-1, 1)
        back_up(end, end.reward)
    return root


def pairs_of(root: Node) -> list[StepPair]:
    return step_pairs(root, RolloutStage(max_overlap=1.0, pairs_per_tree=4, pairs_per_node=1), str)


def test_a_drawn_tree_has_each_node_behind_its_parent_and_both_sides_of_every_pair() -> None:
    root = grown(12)
    drawn = draw(root, pairs_of(root), str)
    assert len(drawn) == sum(1 for _ in root.walk())
    assert [node.parent for node in drawn].count(-1) == 1
    assert all(node.parent < place for place, node in enumerate(drawn))
    chosen, rejected = ([node for node in drawn if node.role == role] for role in ("chosen", "rejected"))
    assert len(chosen) == len(rejected) == len(pairs_of(root)) > 1
    for better, worse in zip(chosen, sorted(rejected, key=lambda n: n.parent), strict=True):
        assert better.parent in [node.parent for node in rejected]
        assert worse.q < max(node.q for node in chosen if node.parent == worse.parent)
    for place, node in enumerate(drawn):
        children = [child for child in drawn if child.parent == place]
        assert not children or sum(child.prior for child in children) == pytest.approx(1.0, abs=1e-3)
        assert node.visits >= sum(child.visits for child in children)


def test_a_large_tree_is_drawn_in_part_and_its_pairs_are_never_left_out() -> None:
    root = grown(400)
    found = pairs_of(root)
    drawn = draw(root, found, lambda ids: "x" * 1000)
    assert len(drawn) == MAX_NODES < sum(1 for _ in root.walk())
    assert sum(node.role == "rejected" for node in drawn) == len(found) > 1
    assert max(len(node.text) for node in drawn) == MAX_TEXT
    assert len(json.dumps([dataclasses.asdict(node) for node in drawn])) < 40_000


def test_a_record_comes_back_from_json_and_older_ones_are_read() -> None:
    root = grown(5)
    made = record(drawn=draw(root, pairs_of(root), str), question="q", truth="t")
    assert tree_record(json.loads(json.dumps(dataclasses.asdict(made)))) == made
    older = {k: v for k, v in dataclasses.asdict(record()).items() if k not in ("drawn", "sequences", "truth")}
    assert tree_record(older) == record()


def test_a_clipped_text_says_so() -> None:
    assert clip("short") == "short"
    assert clip("y" * 500) == "y" * (MAX_TEXT - 1) + "…"
