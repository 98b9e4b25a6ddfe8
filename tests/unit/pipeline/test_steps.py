"""Steps: boundaries outside of strings, and token ids that come back exactly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.records import ToolCall
from itrain_pipeline.toolcalls.serialise import serialise
from itrain_pipeline.toolcalls.steps import boundaries, cut_steps


def fragments(text: str) -> list[str]:
    """The text between boundaries."""
    data = text.encode()
    marks = [0, *(mark for mark in boundaries(data) if mark < len(data)), len(data)]
    return [data[a:b].decode() for a, b in itertools.pairwise(marks)]


def steps(pieces: list[str], step_limit: int = 1, max_step_tokens: int = 50) -> list[str]:
    """Steps of an answer given as the texts of its tokens, joined again."""
    ids = range(len(pieces))
    cut = cut_steps(ids, [p.encode() for p in pieces], step_limit=step_limit, max_step_tokens=max_step_tokens)
    return ["".join(pieces[i] for i in step) for step in cut]


def test_a_pythonic_call_is_cut_behind_parenthesis_equals_and_comma() -> None:
    assert fragments("[f(a='x', bc=[1, 2]), g h()]") == [*("[f(", "a=", "'x',", " bc=", "[1,", " 2]),", " g h(", ")]")]


def test_no_boundary_lies_inside_a_string() -> None:
    assert fragments(r"""[f(a='b, c=(d\', e=', f="it's, ok")]""") == [
        *("[f(", "a=", r"'b, c=(d\', e=',", " f=", '"it\'s, ok")]')
    ]


def test_an_apostrophe_in_a_tool_name_opens_no_string() -> None:
    text = "[Get Agent's Listings(a='x, y'), Strong's(b=1)]"
    assert fragments(text) == ["[Get Agent's Listings(", "a=", "'x, y'),", " Strong's(", "b=", "1)]"]


def test_json_calls_are_cut_behind_colon_and_comma() -> None:
    text = '<tool_call>\n{"name": "a: b, c", "arguments": {"x": [1, 2]}}\n</tool_call>'
    assert fragments(text) == [
        *("<tool_call>\n", '{"name":', ' "a: b, c",', ' "arguments":', ' {"x":', " [1,", " 2]}}\n", "</tool_call>")
    ]


def test_plain_text_is_cut_at_sentences_and_commas_before_a_blank() -> None:
    text = "Well, it costs 1,000.5 dollars. Isn't it? Don't f(a=1)."
    assert fragments(text) == ["Well,", " it costs 1,000.5 dollars.", " Isn't it?", " Don't f(a=1)."]


def test_text_before_and_after_the_calls_follows_its_own_rules() -> None:
    text = "It's here. [f(a='x. y')] Done, it's. End"
    assert fragments(text) == ["It's here.", " [f(", "a=", "'x. y')] Done,", " it's.", " End"]


def test_boundaries_are_grouped_by_the_step_limit() -> None:
    pieces = ["[", "f", "(", "a", "=", "'x'", ",", " b", "=", "1", ")]"]
    assert steps(pieces, 1) == ["[f(", "a=", "'x',", " b=", "1)]"]
    assert steps(pieces, 2) == ["[f(a=", "'x', b=", "1)]"]
    assert steps(pieces, 9) == ["[f(a='x', b=1)]"]


def test_a_boundary_inside_a_token_moves_to_its_end_and_two_in_one_token_are_one() -> None:
    assert steps(["[f", "(a", "='", "x", "',", " b", "=(", "1", ",))]"], 1) == [*("[f(a", "='", "x',", " b=(", "1,))]")]


def test_a_step_has_at_most_the_given_tokens_and_then_counts_anew() -> None:
    pieces = ["[", "f", "(", "a", "=", "'", *"abcdefg", "'", ",", "b", "=", "1", ")]"]
    assert steps(pieces, 2, 4) == ["[f(a", "='ab", "cdef", "g',b", "=1)]"]


def test_special_tokens_without_bytes_belong_to_the_last_step() -> None:
    assert steps(["[f(", "a=", "1)]", ""]) == ["[f(", "a=", "1)]"]
    assert cut_steps([7, 8, 9], [b"[f(", b"a=", b""], step_limit=1, max_step_tokens=5) == ((7,), (8,), (9,))


def test_a_character_split_over_tokens_is_no_obstacle() -> None:
    data = "[f(a='é, ü', b=1)]".encode()
    singles = [data[i : i + 1] for i in range(len(data))]
    cut = cut_steps(list(data), singles, step_limit=1, max_step_tokens=50)
    assert [bytes(step).decode() for step in cut] == ["[f(", "a=", "'é, ü',", " b=", "1)]"]


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens with the bytes of 1"):
        cut_steps([1, 2], [b"a"], step_limit=1, max_step_tokens=5)


TOKENS = st.lists(
    st.one_of(st.binary(max_size=4), st.sampled_from([b"[", b"(", b"='", b"', ", b". ", b"{", b'":', b""]))
)


@settings(max_examples=300, deadline=None)
@given(pieces=TOKENS, step_limit=st.integers(1, 4), max_step_tokens=st.integers(1, 6))
def test_the_steps_joined_are_the_ids(pieces: list[bytes], step_limit: int, max_step_tokens: int) -> None:
    ids = tuple(range(100, 100 + len(pieces)))
    cut = cut_steps(ids, pieces, step_limit=step_limit, max_step_tokens=max_step_tokens)
    assert tuple(i for step in cut for i in step) == ids
    assert all(1 <= len(step) <= max_step_tokens for step in cut)


@settings(max_examples=200, deadline=None)
@given(pieces=TOKENS, more=TOKENS, step_limit=st.integers(1, 3))
def test_answers_that_begin_alike_are_cut_alike(pieces: list[bytes], more: list[bytes], step_limit: int) -> None:
    """Otherwise equal beginnings would not merge in the tree. The last step of the shorter one may go on."""
    longer = [*pieces, *more]
    short = cut_steps(range(len(pieces)), pieces, step_limit=step_limit, max_step_tokens=50)
    long = cut_steps(range(len(longer)), longer, step_limit=step_limit, max_step_tokens=50)
    assert short[: max(len(short) - 1, 0)] == long[: max(len(short) - 1, 0)]


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(STRINGS, min_size=1, max_size=3), call_format=st.sampled_from(("pythonic", "hermes", "llama")))
def test_what_strings_hold_never_adds_a_boundary(values: list[str], call_format: str) -> None:
    def count(texts: list[str]) -> int:
        call = ToolCall(name="f", arguments={f"p{i}": text for i, text in enumerate(texts)})
        return len(list(boundaries(serialise([call, call], call_format).encode())))

    assert count(values) == count(["x"] * len(values))
