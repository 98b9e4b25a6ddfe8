"""Pairs that the ground truth confirms: right beginnings, wrong beginnings, and nothing in between."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.errors import RetryableError
from itrain_pipeline.records import Example, ToolCall
from itrain_pipeline.search.certainty import GroundTruth, certain_truth
from itrain_pipeline.search.judge import Judge, judge_form
from itrain_pipeline.search.levers import ALL_OFF, Levers
from itrain_pipeline.search.mcts import Oracle, TreeSearch, stop_reason
from itrain_pipeline.search.pairs import step_pairs
from itrain_pipeline.search.seeds import derive_seed
from itrain_pipeline.search.tree import Node
from itrain_testing.scripted_engine import ScriptedEngine, toy_cut, toy_reward

PROMPT = (1, 3, 3)


def text_of(ids: Any) -> str:
    return bytes(ids).decode(errors="replace")


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def example(answer: str, *calls: ToolCall) -> Example:
    return Example(
        id="e", messages=(), tools=(), answer=answer, calls=calls, bucket="easy", source="test", prompt_ids=PROMPT
    )


CALL = example("[f(a=1, b='é')]", ToolCall(name="f", arguments={"a": 1, "b": "é"}))
TEXT = example("Which city?")


def truth(of: Example) -> GroundTruth:
    return GroundTruth(example=of, call_format="pythonic", decode=text_of)


def test_a_call_is_reached_in_any_order_and_excluded_from_its_first_wrong_fragment_on() -> None:
    assert truth(CALL).reached(ids_of("[f(b='é', a=1.0)]"))
    for wrong in ("[f(a=1)]", "[f(a=2, b='é')]", "[f(a=1, b='é')] b='é')]", "Sure: [f(a=1, b='é')]", "no call", ""):
        assert not truth(CALL).reached(ids_of(wrong))
    assert truth(CALL).excluded(ids_of("[f(a=2,"))
    for open_yet in ("[f(b=", "[f(a=1", "Sure", ""):
        assert not truth(CALL).excluded(ids_of(open_yet))


@pytest.mark.parametrize(
    ("call_format", "answer"),
    [
        ("pythonic", "[f(a=1, b='é')]"),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'),
        ("llama", '{"name": "f", "parameters": {"a": 1, "b": "é"}}'),
    ],
)
def test_a_right_answer_is_reached_in_every_format_and_words_around_it_are_not(call_format: str, answer: str) -> None:
    asked = replace(truth(CALL), call_format=call_format)
    assert asked.reached(ids_of(answer))
    for worded in (f"Sure: {answer}", f"{answer} and more", answer[:-1]):
        assert not asked.reached(ids_of(worded)), worded


def test_a_character_of_which_bytes_are_missing_excludes_nothing() -> None:
    assert not truth(CALL).excluded(ids_of("[f(b='é")[:-1])


def test_free_text_is_its_words_and_a_call_is_none() -> None:
    assert truth(TEXT).reached(ids_of(" which  city? "))
    assert not truth(TEXT).reached(ids_of("Which town?"))
    assert not truth(TEXT).excluded(ids_of("Which ci"))
    assert truth(TEXT).excluded(ids_of("Which town"))
    assert truth(TEXT).excluded(ids_of("[f("))


@pytest.mark.parametrize(
    ("certainty", "of", "decides"),
    [("calls", CALL, True), ("calls", TEXT, False), ("all", TEXT, True), ("none", CALL, False)],
)
def test_the_spec_says_where_the_truth_decides(certainty: Any, of: Example, decides: bool) -> None:
    assert (certain_truth(certainty, of, call_format="pythonic", decode=text_of) is not None) is decides


class ToyTruth:
    """Right answers are those of a set of sequences; a beginning of none of them is excluded."""

    def __init__(self, right: set[tuple[int, ...]]) -> None:
        self.right = right

    def reached(self, answer_ids: tuple[int, ...]) -> bool:
        return answer_ids in self.right

    def excluded(self, beginning_ids: tuple[int, ...]) -> bool:
        return all(answer[: len(beginning_ids)] != beginning_ids for answer in self.right)


def grow(
    sample: str,
    right: set[tuple[int, ...]] | None,
    levers: Levers,
    engine: ScriptedEngine | None = None,
    **fields: Any,
) -> TreeSearch:
    engine = engine or ScriptedEngine()
    settings = RolloutStage(**{"max_answer_tokens": 12, "simulations": 12, "depth": 4, **fields})
    oracle = Oracle(
        ask=lambda answer, params: engine.generate((*PROMPT, *answer), params),
        cut=toy_cut,
        reward=lambda answer: asyncio.sleep(0, toy_reward(answer)),
        seed=lambda answer, visit: derive_seed(
            run_seed=7, iteration=1, sample_id=sample, answer_ids=answer, visit=visit
        ),
        truth=None if right is None else ToyTruth(right),
    )
    search = TreeSearch(settings, oracle, rng=random.Random(sample), levers=levers)
    asyncio.run(search.run(settings.simulations, lambda root: stop_reason(root, pairs=0, quota=9)))
    return search


def sampled_answers(sample: str) -> list[tuple[int, ...]]:
    root = grow(sample, None, Levers()).root
    return [node.answer_ids() for node in root.walk() if node.terminal]


def test_every_certain_pair_is_right_and_wrong_by_the_set_of_right_answers_itself() -> None:
    anything = RolloutStage(min_gap=0.0, max_overlap=1.0, min_best=-1.0, pairs_per_node=8, pairs_per_tree=100)
    found = 0
    for number in range(60):
        answers = sampled_answers(f"s{number}")
        right = set(answers[::3])
        root = grow(f"s{number}", right, Levers()).root
        for pair in step_pairs(root, anything, str, certain=True):
            better, worse = pair.best.answer_ids(), pair.worst.answer_ids()
            sampled = {n.answer_ids() for n in root.walk() if n.terminal}
            assert any(answer[: len(better)] == better for answer in right & sampled)
            assert all(answer[: len(worse)] != worse for answer in right)
            assert pair.gap > 0
            found += 1
    assert found > 30


def test_nothing_is_asked_for_below_what_is_wrong() -> None:
    for number in range(40):
        answers = sampled_answers(f"s{number}")
        root = grow(f"s{number}", set(answers[:1]), Levers()).root
        for node in root.walk():
            if node.wrong:
                assert not node.expanded
        grown = grow(f"s{number}", set(answers[:1]), Levers(prune=False)).root
        assert sum(1 for _ in grown.walk()) >= 1
    ended = grow("s1", set(), Levers()).root  # nothing right was ever possible: one expansion tells
    assert sum(node.expanded for node in ended.walk()) == 1
    assert stop_reason(ended, pairs=0, quota=9) == "decided"


SWITCHES = [
    dataclasses.replace(Levers(), **{name: False}) for name in ("fork", "merge", "memo", "judge_together", "prune")
]


@pytest.mark.parametrize("levers", [Levers(), ALL_OFF, *SWITCHES, Levers(simulations_in_flight=3)], ids=str)
def test_no_prompt_and_seed_are_asked_for_twice_in_any_tree_with_any_lever(levers: Levers) -> None:
    engine = ScriptedEngine()
    for number, (actions, depth) in enumerate(itertools.product((2, 3, 5), (1, 2, 4))):
        for truths in (None, set(sampled_answers(f"s{number}")[:2])):
            alone = ScriptedEngine()
            search = grow(f"s{number}", truths, levers, alone, actions=actions, depth=depth, simulations=20)
            assert all(node.in_flight == 0 and not node.expanding for node in search.root.walk())
            if levers.merge:  # without, two equal branches are two places with one name
                assert len(set(alone.asked)) == len(alone.asked)
                assert len(alone.asked) == actions * sum(node.expanded for node in search.root.walk())
            engine.asked += alone.asked
    assert len(engine.asked) > 60


def test_one_request_forks_all_completions_and_without_it_each_is_asked_for_alone() -> None:
    forked, single = ScriptedEngine(), ScriptedEngine()
    a = grow("s3", None, Levers(), forked)
    b = grow("s3", None, Levers(fork=False), single)
    assert sorted(forked.asked) == sorted(single.asked)
    assert single.calls == 3 * forked.calls
    assert shape(a.root) == shape(b.root)


def shape(root: Node) -> list[tuple[Any, ...]]:
    return [(node.answer_ids(), node.visits, node.value_sum, node.expanded) for node in root.walk()]


def test_identical_actions_are_one_node_with_all_their_visits() -> None:
    merged = split = 0
    for number in range(30):
        one, other = (grow(f"s{number}", None, levers, simulations=1) for levers in (Levers(), Levers(merge=False)))
        merged += one.merged_actions
        assert other.merged_actions == 0
        assert one.root.visits == other.root.visits == 3
        nodes = sum(1 for _ in one.root.walk())
        split += sum(1 for _ in other.root.walk()) - nodes
        by_step: dict[tuple[int, ...], int] = {}
        for child in other.root.children.values():
            by_step[child.step_ids] = by_step.get(child.step_ids, 0) + child.visits
        assert by_step == {child.step_ids: child.visits for child in one.root.children.values()}
    assert merged == split > 0


def test_simulations_of_one_tree_overlap_and_never_meet_at_one_node() -> None:
    most = 0
    for number in range(20):
        engine = ScriptedEngine()
        search = grow(f"s{number}", None, Levers(simulations_in_flight=3), engine, simulations=30, max_answer_tokens=30)
        assert len(set(engine.asked)) == len(engine.asked)
        assert search.root.visits >= 3 * sum(node.expanded for node in search.root.walk())
        most = max(most, engine.most_in_flight)
    assert 1 < most <= 3


def test_a_lost_request_among_overlapping_ones_ends_the_tree_and_leaves_nothing_running() -> None:
    engine = ScriptedEngine(failures={2: RetryableError("lost")})
    with pytest.raises(RetryableError, match="lost"):
        grow("s5", None, Levers(simulations_in_flight=3), engine, simulations=30, max_answer_tokens=30)
    assert engine._in_flight == 0


class Slow:
    """A judge that remembers how many judgements were under way at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.now = self.most = self.asked = 0
        self.error = error

    async def __call__(self, prompt: tuple[int, ...], options: tuple[int, ...]) -> list[float]:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [0.0, -9.0, -9.0, -9.0]


def judged_tree(levers: Levers, slow: Slow) -> Judge:
    judge = Judge(judge_form(lambda text: [ord(c) for c in text]), ask=slow, remember=levers.memo)
    engine = ScriptedEngine()
    oracle = Oracle(
        ask=lambda answer, params: engine.generate((*PROMPT, *answer), params),
        cut=toy_cut,
        reward=lambda answer: judge.value("truth", str(len(answer) % 7)),
        seed=lambda answer, visit: hash((answer, visit)) % 2**31,
    )
    settings = RolloutStage(max_answer_tokens=30, simulations=8)
    search = TreeSearch(settings, oracle, rng=random.Random(1), levers=levers)
    asyncio.run(search.run(8, lambda _: None))
    return judge


def test_siblings_are_judged_together_and_equal_texts_once() -> None:
    slow = Slow()
    judge = judged_tree(Levers(), slow)
    assert slow.most > 1
    assert judge.calls == slow.asked == judge.judged <= 7
    assert judge.hits > 0
    assert (judge.truth_tokens, judge.judged_tokens) == (5, judge.judged)
    alone = Slow()
    assert judged_tree(Levers(judge_together=False), alone).calls == judge.calls
    assert alone.most == 1
    forgetful = judged_tree(Levers(memo=False), Slow())
    assert forgetful.calls == judge.calls + judge.hits
    assert forgetful.judged_tokens == judge.judged_tokens


def test_blanks_make_no_other_text_and_a_failed_judgement_is_not_remembered() -> None:
    slow = Slow(RetryableError("gone"))
    judge = Judge(judge_form(lambda text: [ord(c) for c in text]), ask=slow)

    async def run() -> None:
        with pytest.raises(RetryableError):
            await judge.value("t", "a  b")
        assert await judge.value("t", "a b") == await judge.value("t", " a\nb ")

    asyncio.run(run())
    assert (judge.calls, judge.hits, judge.judged) == (2, 1, 1)
