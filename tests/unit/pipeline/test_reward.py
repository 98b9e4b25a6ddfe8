"""Rewards: the exact rule by hand, the judge by token ids, and who is asked when."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.records import Example, Message, ToolCall
from itrain_pipeline.search.judge import RUBRIC, Judge, judge_form, judge_value, option_ids
from itrain_pipeline.search.reward import Reward, word_f1
from itrain_pipeline.search.vocabulary import TokenBytes
from itrain_testing.tiny_model import build_tokenizer


def example(answer: str, *calls: ToolCall) -> Example:
    return Example(
        id="e",
        messages=(Message(role="user", content="?"),),
        tools=(),
        answer=answer,
        calls=calls,
        bucket="easy",
        source="test",
    )


CALL = example("[f(a='x', b=2)]", ToolCall(name="f", arguments={"a": "x", "b": 2}))
TEXT = example("Which city do you mean?")
CERTAIN = {letter: [0.0 if letter == other else -50.0 for other in "ABCD"] for letter in "ABCD"}


class Recorder:
    """Answers every judgement with the same logprobs and remembers what was asked."""

    def __init__(self, logprobs: Sequence[float] = (0.0, -9.0, -9.0, -9.0)) -> None:
        self.logprobs = list(logprobs)
        self.asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    async def __call__(self, prompt: tuple[int, ...], options: tuple[int, ...]) -> list[float]:
        self.asked.append((prompt, options))
        return self.logprobs


def code_points(text: str) -> list[int]:
    return [ord(character) for character in text]


def reward(kind: Any, recorder: Recorder | None = None) -> Reward:
    judge = Judge(judge_form(code_points), ask=recorder) if recorder else None
    return Reward(kind=kind, call_format="pythonic", judge=judge)


def value(of: Reward, truth: Example, answer: str) -> float:
    return asyncio.run(of.value(truth, answer))


def test_the_rule_gives_one_to_the_exact_call_and_part_of_it_by_fragments() -> None:
    rule = reward("rule")
    assert value(rule, CALL, "[f(a='x', b=2)]") == 1.0
    # Five fragments: f, a, 'x', b, 2. A wrong value of the right type earns half: 4.5 of 5.
    assert value(rule, CALL, "[f(a='y', b=2)]") == pytest.approx(2 * 4.5 / 5 - 1)
    assert value(rule, CALL, "[g(a='x', b=2)]") == pytest.approx(2 * 4 / 5 - 1)
    assert value(rule, CALL, "[f(a='x')]") == pytest.approx(2 * 3 / 5 - 1)


@pytest.mark.parametrize("answer", ["[f(a='x', b=", "I do not know.", ""])
def test_no_readable_call_where_one_is_wanted_is_worth_the_least(answer: str) -> None:
    for kind in ("rule", "mixed"):
        assert value(reward(kind, Recorder()), CALL, answer) == -1.0


def test_a_call_where_none_is_wanted_is_worth_the_least_and_nobody_is_asked() -> None:
    recorder = Recorder()
    assert value(reward("mixed", recorder), TEXT, "[f(a='x')]") == -1.0
    assert value(reward("mixed", recorder), CALL, "[f(a='x', b=2)]") == 1.0
    assert recorder.asked == []


def test_free_text_is_judged_by_the_model_and_by_words_where_only_the_rule_is_wanted() -> None:
    recorder = Recorder(CERTAIN["B"])
    assert value(reward("mixed", recorder), TEXT, "Please name the city.") == pytest.approx(0.4)
    assert len(recorder.asked) == 1
    assert value(reward("rule"), TEXT, TEXT.answer) == 1.0
    # {which, city} against {which, city, do, you, mean?}: F1 = 2·2/(2+5)
    assert value(reward("rule"), TEXT, "Which city") == pytest.approx(2 * 4 / 7 - 1)
    assert word_f1("", "") == 1.0


def test_judge_everywhere_means_calls_too() -> None:
    assert value(reward("judge", Recorder(CERTAIN["D"])), CALL, "[f(a='x', b=2)]") == pytest.approx(-1.0)


def test_the_four_options_keep_the_papers_order_and_distances() -> None:
    values = [judge_value(CERTAIN[letter]) for letter in "ABCD"]
    assert values == pytest.approx([1.0, 0.4, -1 / 3, -1.0], abs=1e-6)
    # Distances 0.9 : 1.1 : 1 as in 1, 0.1, -1, -2
    assert (values[0] - values[1]) / (values[2] - values[3]) == pytest.approx(0.9)
    assert (values[1] - values[2]) / (values[2] - values[3]) == pytest.approx(1.1)


def test_only_the_four_options_count_however_likely_other_tokens_are() -> None:
    rare = [math.log(p * 1e-6) for p in (0.4, 0.3, 0.2, 0.1)]
    mean = 0.4 * 1 + 0.3 * 0.1 - 0.2 - 0.1 * 2
    assert judge_value(rare) == pytest.approx(2 * (mean + 2) / 3 - 1)


def test_options_are_matched_by_id_and_never_by_substring() -> None:
    recorder = Recorder()
    value(reward("judge", recorder), TEXT, "(c) in 'excellent' (A)")
    assert recorder.asked[0][1] == tuple(map(ord, "ABCD"))
    with pytest.raises(ConfigError, match=r"no single, distinct tokens for A, B, C, D.*reward: rule"):
        option_ids(lambda text: [*code_points(text), 0])
    with pytest.raises(ConfigError, match="distinct"):
        option_ids(lambda text: [7])


def test_the_prompt_has_rubric_then_truth_then_answer_so_that_beginnings_are_shared() -> None:
    judge = Judge(judge_form(code_points, (1,)), ask=Recorder())
    one, other = judge.prompt("truth", "first answer"), judge.prompt("truth", "second")
    text = "".join(map(chr, one[1:]))
    assert text.index(RUBRIC) == 0
    assert text.index("truth\n", len(RUBRIC)) < text.index("first answer")
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert "".join(map(chr, one[1:shared])).endswith("truth\n\nResponse:\n")
    assert one[0] == 1
    assert text.endswith("(")


def test_what_all_judgements_share_is_encoded_once_and_a_truth_once_in_a_tree() -> None:
    encoded: list[str] = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return code_points(text)

    form = judge_form(encode, (1,))
    assert encoded == [*"ABCD", RUBRIC, "\nThe option of overall quality is ("]
    encoded.clear()
    recorder = Recorder()

    async def trees() -> None:
        for truth in ("first", "second"):
            judge = Judge(form, ask=recorder)
            for answer in ("x", "y"):
                await judge.value(truth, answer)

    asyncio.run(trees())
    for_counters = ["first", "x", "y", "second", "x", "y"]
    in_prompts = [
        text
        for truth in ("first", "second")
        for text in (f"\nGround truth:\n{truth}\n", "\nResponse:\nx\n", "\nResponse:\ny\n")
    ]
    assert sorted(encoded) == sorted(for_counters + in_prompts)
    whole = RUBRIC + "\nGround truth:\nsecond\n" + "\nResponse:\ny\n" + "\nThe option of overall quality is ("
    assert recorder.asked[-1] == ((1, *code_points(whole)), tuple(map(ord, "ABCD")))


def test_a_text_is_judged_once() -> None:
    recorder = Recorder(CERTAIN["A"])
    judged = reward("judge", recorder)
    assert [value(judged, TEXT, answer) for answer in ("x", "y", "x", "x")] == [pytest.approx(1.0)] * 4
    assert len(recorder.asked) == 2
    assert judged.judge is not None
    assert judged.judge.calls == 2


@pytest.mark.parametrize("text", ["[get_weather(city='Zürich', n=3)]", "naïve – “quotes” 😀\n\ttab", "   "])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = build_tokenizer()
    table = TokenBytes(json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.get_vocab())
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(table.of(ids)) == text.encode()
    assert table.of([0, 2, 99_999]) == [b"", b"", b""]


def test_sentencepiece_tokens_are_read_too_and_other_kinds_refused() -> None:
    state = {"decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}}
    table = TokenBytes(state, {"▁city": 0, "<0xC3>": 1, "<0xBC>": 2, "r": 3})
    assert b"".join(table.of([0, 1, 2, 3])).decode() == " cityür"
    with pytest.raises(ConfigError, match="WordPiece"):
        TokenBytes({"decoder": {"type": "WordPiece"}}, {"a": 0})
