"""What no engine takes, and how it says so. That both engines ask these questions: tests/engines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from itrain_pipeline.engine.checks import check_finite, check_ids, check_new_name, check_params, prompt_room
from itrain_pipeline.errors import ConfigError, PermanentError
from itrain_pipeline.ports import SamplingParams


@pytest.mark.parametrize(("length", "room"), [(1, 7), (6, 2), (7, 1)])
def test_the_room_is_what_the_context_leaves(length: int, room: int) -> None:
    assert prompt_room([9] * length, context=8, vocabulary=10) == room


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "a prompt needs at least one token"),
        ([1] * 8, "a prompt of 8 tokens leaves no room in a context of 8"),
        ([1] * 11, "a prompt of 11 tokens leaves no room in a context of 8"),
        ([0, 10, 11], "a prompt with the id 10, outside of the model's vocabulary of 10"),
        ([9, -1], "a prompt with the id -1, outside of the model's vocabulary of 10"),
    ],
)
def test_a_prompt_that_cannot_be_computed_is_named(prompt: Sequence[int], words: str) -> None:
    with pytest.raises(PermanentError) as raised:
        prompt_room(prompt, context=8, vocabulary=10)
    assert str(raised.value) == words


def test_no_ids_are_none_too_many() -> None:
    check_ids("judgement", [], vocabulary=10)


@pytest.mark.parametrize(("seeds", "max_tokens"), [((), 5), ((1,), 0), ((1,), -3)])
def test_a_request_for_nothing_is_refused(seeds: tuple[int, ...], max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=r"a request needs seeds and max_tokens >= 1, got SamplingParams\(seeds="):
        check_params(SamplingParams(seeds=seeds, max_tokens=max_tokens))
    check_params(SamplingParams(seeds=(1,), max_tokens=1))


def test_a_name_is_used_once() -> None:
    check_new_name("b", {"a"})
    with pytest.raises(ConfigError, match="adapter name 'a' was already used in this engine: every load needs a new"):
        check_new_name("a", {"a"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logprobs_are_numbers(value: float) -> None:
    check_finite([-0.5, -1000.0])
    with pytest.raises(PermanentError, match="not finite"):
        check_finite([-0.5, value])
