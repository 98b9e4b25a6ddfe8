"""The released search as it was counted, and each of its quirks on and off."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from itrain_pipeline.errors import RetryableError
from itrain_pipeline.ports import Completion, SamplingParams
from itrain_pipeline.records import Example
from itrain_pipeline.search.bounds import over_limit
from itrain_pipeline.search.reference import RELEASED, Quirks, ReferenceSettings, ReferenceTree
from itrain_pipeline.search.reference_forest import ReferenceForest, grow_reference
from itrain_pipeline.search.reference_judge import fast_reward, judge_text, written_verdict
from itrain_pipeline.search.reference_steps import LOST_PRIOR, completion_steps, cut_text, joined
from itrain_testing.releasedstub import END, LONG_RUBRIC, StubEngine, StubTokens, stub_examples

NONE = Quirks(**dict.fromkeys(Quirks.__dataclass_fields__, False))
SETTINGS = ReferenceSettings(rubric=LONG_RUBRIC)


def only(**quirks: bool) -> Quirks:
    return dataclasses.replace(NONE, **quirks)


def without(name: str) -> Quirks:
    return dataclasses.replace(RELEASED, **{name: False})


class Grown:
    """A forest on the stub, what the engine was asked, and sums over the trees."""

    def __init__(self, count: int = 40, *, prompt_tokens: int = 100, quirks: Quirks = RELEASED, **fields: Any) -> None:
        self.tokens = StubTokens()
        self.examples = stub_examples(self.tokens, count, prompt_tokens=prompt_tokens)
        self.engine = StubEngine(tokens=self.tokens, examples=self.examples)
        self.forest: ReferenceForest = asyncio.run(
            grow_reference(
                self.examples,
                engine=self.engine,
                language=self.tokens.language(),
                settings=dataclasses.replace(SETTINGS, **fields),
                quirks=quirks,
            )
        )

    def mean(self, name: str) -> float:
        return sum(getattr(record, name) for record in self.forest.records) / len(self.forest.records)

    def answers_asked(self) -> list[tuple[Example, tuple[int, ...], SamplingParams]]:
        """Requests for completions: the example, the ids of the answer so far, the parameters."""
        return [
            (example, prompt[len(example.prompt_ids) :], params)
            for prompt, params in self.engine.asked
            for example in self.examples
            if prompt[: len(example.prompt_ids)] == example.prompt_ids
        ]


def test_on_the_released_settings_the_counts_are_those_told() -> None:
    grown = Grown(200, prompt_tokens=805)
    requests = grown.mean("requests") + grown.mean("judge_calls")
    tokens = grown.engine.computed + grown.engine.decoded
    assert requests == pytest.approx(8.0, rel=0.10)
    assert grown.mean("duplicate_requests") / grown.mean("requests") == pytest.approx(0.34, rel=0.10)
    assert over_limit(tokens, grown.forest.records) == pytest.approx(4.7, rel=0.10)
    assert grown.mean("sequences") == pytest.approx(16.1, rel=0.10)
    assert min(r.requests + r.judge_calls for r in grown.forest.records) == 4
    assert all(record.duplicate_requests >= 1 for record in grown.forest.records)
    assert not grown.forest.lost


def test_a_frozen_tree_makes_little_of_four_times_the_budget() -> None:
    few, many = Grown(60), Grown(60, iterations=20)
    assert many.mean("requests") < 1.1 * few.mean("requests")
    assert many.mean("frozen") > 15


def test_a_leaf_with_nothing_to_expand_is_visited_only_without_that_quirk() -> None:
    frozen, thawed = tree_of(RELEASED), tree_of(without("freeze"))
    assert frozen.record.frozen == thawed.record.frozen > 0
    assert frozen.root.visits == SETTINGS.iterations - frozen.record.frozen
    assert thawed.root.visits == SETTINGS.iterations


def test_with_one_seed_the_second_expansion_of_the_root_repeats_the_first() -> None:
    grown = Grown(10)
    for example in grown.examples:
        roots = [(ids, params.seeds) for e, ids, params in grown.answers_asked() if e is example and not ids]
        assert len(roots) == 2
        assert roots[0] == roots[1]


def test_with_seeds_of_their_own_no_request_is_a_duplicate() -> None:
    assert Grown(quirks=without("one_seed")).mean("duplicate_requests") == 0


def test_expanded_once_the_root_is_asked_for_once() -> None:
    grown = Grown(10, quirks=without("expand_twice"))
    for example in grown.examples:
        assert sum(not ids for e, ids, _ in grown.answers_asked() if e is example) == 1


def test_spaces_make_a_prompt_that_was_never_sampled() -> None:
    grown = Grown(20)
    texts = [grown.tokens.decode(ids) for _, ids, _ in grown.answers_asked() if ids]
    assert texts
    assert all(text.startswith(" ") for text in texts)


def test_without_spaces_a_prompt_is_what_was_sampled_to_the_token() -> None:
    grown = Grown(20, quirks=without("spaces"))
    sampled: dict[str, set[tuple[int, ...]]] = {}
    engine = StubEngine(tokens=grown.tokens, examples=grown.examples)
    deeper = 0
    for example, ids, params in grown.answers_asked():
        known = sampled.setdefault(example.id, set())
        assert not ids or ids in known
        deeper += bool(ids)
        for completion in asyncio.run(engine.generate((*example.prompt_ids, *ids), params)):
            whole = (*ids, *completion.token_ids)
            known |= {whole[:n] for n in range(1, len(whole) + 1)}
    assert deeper > 10


def test_steps_join_with_blanks_as_the_release_joins_them() -> None:
    tokens = StubTokens()
    text = "[get_weather(city='San Francisco, CA', unit='c')]"
    done = Completion(
        token_ids=tuple(tokens.encode(text)), logprobs=(0.0,) * len(tokens.encode(text)), finish_reason="stop"
    )
    steps = completion_steps(done, tokens.decode, step_limit=2, levels=3, spaces=True, stuck_prior=True)
    assert joined([s.text for s in steps], spaces=True).startswith(" [get_weather( city=  'San Francisco,  CA', ")
    exact = completion_steps(done, tokens.decode, step_limit=2, levels=3, spaces=False, stuck_prior=True)
    assert joined([s.text for s in exact], spaces=False) == text


@pytest.mark.parametrize("step_limit", [1, 2, 3, 4])
@pytest.mark.parametrize("text", ["", "a", "[f(a=1, b='x, y')]", "One. Two, three. f(x)=y", "=(=(", "no end, "])
def test_pieces_join_to_the_text(text: str, step_limit: int) -> None:
    assert "".join(cut_text(text, step_limit)) == text


def test_every_sampled_token_belongs_to_one_step() -> None:
    tokens = StubTokens()
    ids = (*tokens.encode("[f(a='x, y', b=12)]"), END)
    done = Completion(token_ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="stop")
    for levels in (1, 2, 3, 9):
        for spaces in (True, False):
            steps = completion_steps(done, tokens.decode, step_limit=2, levels=levels, spaces=spaces, stuck_prior=False)
            assert tuple(token for step in steps for token in step.ids) == ids
            assert len(steps) <= levels


def test_priors_are_lost_behind_a_token_across_a_separator_only_with_that_quirk() -> None:
    tokens = StubTokens()
    ids = tuple(tokens.encode("[f(a='x', b=1)]"))  # `='` is one token
    done = Completion(token_ids=ids, logprobs=(-0.01,) * len(ids), finish_reason="stop")
    stuck, free = (
        completion_steps(done, tokens.decode, step_limit=2, levels=9, spaces=True, stuck_prior=quirk)
        for quirk in (True, False)
    )
    assert stuck[0].prior > 0.9
    assert [step.prior for step in stuck[2:]] == [LOST_PRIOR] * len(stuck[2:])
    assert all(step.prior > 0.9 for step in free if step.ids)


def test_the_judge_reads_the_rubric_first_or_last() -> None:
    late = judge_text("[f()]", "[g()]", rubric_last=True)
    early = judge_text("[f()]", "[g()]", rubric_last=False)
    assert late.index("[f()]") < late.index("[g()]") < late.index("(A) Excellent")
    assert early.index("(A) Excellent") < early.index("[f()]") < early.index("[g()]")
    assert sorted(late) == sorted(early)


def test_the_judge_writes_seven_tokens_or_none() -> None:
    written = Grown(10)
    assert {p.max_tokens for _, p in written.engine.asked if len(p.seeds) == 1} == {7}
    scored = Grown(10, quirks=without("written_verdict"))
    assert all(len(p.seeds) == 3 for _, p in scored.engine.asked)
    assert scored.mean("judge_calls") > 1


def test_a_written_verdict_cannot_tell_fair_from_excellent() -> None:
    clean = {letter: written_verdict(["(", letter, ")"]) for letter in "ABCD"}
    assert clean == pytest.approx({"A": 0.75, "B": 0.525, "C": 0.75, "D": 0.0})


def test_the_fast_reward_is_blind_to_the_name_of_the_tool() -> None:
    truth = "[get_weather(city='Paris')]"
    assert fast_reward(" [get_weather( city=", truth) == fast_reward(" [wrong_tool( foo=", truth) == pytest.approx(-0.6)


def tree_of(quirks: Quirks) -> ReferenceTree:
    tokens = StubTokens()
    examples = stub_examples(tokens, 1, prompt_tokens=50)
    engine = StubEngine(tokens=tokens, examples=examples, refusals=0.0, runaways=0.0)
    tree = ReferenceTree(SETTINGS, quirks, engine=engine, language=tokens.language(), example=examples[0])
    asyncio.run(tree.run())
    return tree


def test_values_are_summed_or_averaged() -> None:
    summed, averaged = tree_of(only(value_sums=True)), tree_of(NONE)
    assert summed.root.visits == averaged.root.visits == 5
    assert summed.q(summed.root) == pytest.approx(summed.root.total)
    assert averaged.q(averaged.root) == pytest.approx(averaged.root.total / 5)


def test_uct_takes_the_logarithm_of_the_visits_and_puct_their_root() -> None:
    uct, puct = tree_of(only(uct=True)), tree_of(NONE)
    child = uct.root.children[0]
    assert uct._score(child, 1) == pytest.approx((child.fast + child.total) / (child.visits + 1))  # ln 1 = 0
    child = puct.root.children[0]
    assert puct._score(child, 9) == pytest.approx(puct.q(child) + 3 * child.prior / (1 + child.visits))


def test_whole_pairs_repeat_the_answer_before_the_step() -> None:
    whole = Grown(quirks=RELEASED).forest.pairs
    assert whole
    assert all(not pair.shared_ids for pair in whole)
    steps = Grown(quirks=dataclasses.replace(RELEASED, whole_pairs=False, spaces=False))
    assert any(pair.shared_ids for pair in steps.forest.pairs)
    for pair in steps.forest.pairs:
        assert pair.chosen_ids != pair.rejected_ids


class Failing(StubEngine):
    """The third request fails."""

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        if len(self.asked) == 2:
            self.asked.append((tuple(prompt_ids), params))
            raise RetryableError("gone")
        return await super().generate(prompt_ids, params)


def test_a_failed_request_loses_its_tree_without_another_try() -> None:
    tokens = StubTokens()
    examples = stub_examples(tokens, 6, prompt_tokens=50)
    engine = Failing(tokens=tokens, examples=examples)
    forest = asyncio.run(grow_reference(examples, engine=engine, language=tokens.language(), settings=SETTINGS))
    assert list(forest.lost.values()) == ["gone"]
    assert len(forest.records) == 5


class Counting(StubEngine):
    in_flight = most = 0

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        return await super().generate(prompt_ids, params)


@pytest.mark.parametrize("workers", [1, 4, 30])
def test_a_worker_has_one_request_in_flight(workers: int) -> None:
    tokens = StubTokens()
    examples = stub_examples(tokens, 40, prompt_tokens=50)
    engine = Counting(tokens=tokens, examples=examples)
    asyncio.run(grow_reference(examples, engine=engine, language=tokens.language(), settings=SETTINGS, workers=workers))
    assert engine.most == workers


def test_without_quirks_no_tree_asks_for_the_same_again_or_freezes() -> None:
    grown = Grown(quirks=NONE)
    assert grown.mean("duplicate_requests") == 0
    assert all(record.judge_calls == 5 for record in grown.forest.records if not record.frozen)
