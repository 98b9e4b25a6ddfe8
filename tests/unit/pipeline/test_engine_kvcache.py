"""The radix tree of known prefixes, and sampling by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.engine.kvcache import KvSlab, RadixCache
from itrain_pipeline.engine.sampling import sample_tokens


def slab_of(tokens: tuple[int, ...]) -> KvSlab:
    """A slab whose row 0 holds, for every token, a value that depends on all ids up to it (as real ones do)."""
    slab = KvSlab(layers=1, heads=1, dim=1, dtype=torch.float64, device=torch.device("cpu"))
    slab.reserve(1, len(tokens) + 1)
    for i in range(len(tokens)):
        slab.kv[:, :, 0, :, i] = mark(tokens[: i + 1])
    return slab


def mark(prefix: tuple[int, ...]) -> float:
    return float(sum((i + 1) * 31 * (t + 1) for i, t in enumerate(prefix)))


def known(cache: RadixCache, tokens: tuple[int, ...]) -> list[float]:
    return [value for block in cache.match(tokens) for value in block[0, 0, 0, :, 0].tolist()]


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=10)


@given(SEQUENCES, st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple))
@settings(deadline=None)
def test_the_longest_known_prefix_is_found_with_its_own_values(
    sequences: list[tuple[int, ...]], asked: tuple[int, ...]
) -> None:
    cache = RadixCache(10_000)
    for tokens in sequences:
        cache.insert(tokens, slab_of(tokens), 0)
    longest = max(
        next((i for i, (a, b) in enumerate(zip(s, asked, strict=False)) if a != b), min(len(s), len(asked)))
        for s in sequences
    )
    assert known(cache, asked) == [mark(asked[: i + 1]) for i in range(longest)]
    assert len(cache) == len({s[: i + 1] for s in sequences for i in range(len(s))})


@given(SEQUENCES)
@settings(deadline=None)
def test_the_oldest_leaves_go_first_and_the_newest_entry_stays(sequences: list[tuple[int, ...]]) -> None:
    cache = RadixCache(8)
    for tokens in sequences:
        cache.insert(tokens, slab_of(tokens), 0)
        assert len(cache) <= 8
        assert known(cache, tokens) == [mark(tokens[: i + 1]) for i in range(len(tokens))]


def test_rows_fork_and_survive_growth() -> None:
    slab = slab_of((1, 2, 3))
    slab.reserve(3, 200)
    slab.fork(0, [1, 2], 2)
    assert slab.read(2, 0, 3)[0, 0, 0, :, 0].tolist() == [mark((1,)), mark((1, 2)), 0.0]


def test_a_uniform_number_picks_the_token_whose_interval_holds_it() -> None:
    # p = (0.1, 0.2, 0.3, 0.4): cumulative 0.1, 0.3, 0.6, 1.0
    logits = torch.tensor([[math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]]).repeat(5, 1)
    ids, logprobs = sample_tokens(
        logits, temperature=[1.0] * 5, top_p=[1.0] * 5, uniform=[0.05, 0.1001, 0.29, 0.31, 0.9999]
    )
    assert ids == [0, 1, 1, 2, 3]
    assert logprobs == pytest.approx([math.log(p) for p in (0.1, 0.2, 0.2, 0.3, 0.4)], abs=1e-6)


def test_temperature_reshapes_the_draw_and_not_the_logprob() -> None:
    # At T = 0.5 the odds 1 : 3 become 1 : 9, so 0.2 falls to the second token only there.
    logits = torch.tensor([[math.log(0.25), math.log(0.75)]]).repeat(3, 1)
    ids, logprobs = sample_tokens(logits, temperature=[1.0, 0.5, 0.0], top_p=[1.0] * 3, uniform=[0.2, 0.2, 0.2])
    assert ids == [0, 1, 1]
    assert logprobs == pytest.approx([math.log(0.25), math.log(0.75), math.log(0.75)], abs=1e-6)


def test_top_p_keeps_the_fewest_tokens_that_reach_it_and_always_one() -> None:
    logits = torch.tensor([[math.log(p) for p in (0.2, 0.5, 0.3)]]).repeat(4, 1)
    # top_p 0.7 keeps 0.5 and 0.3 (0.625 and 0.375 of the rest); 0.01 keeps the first alone.
    ids, _ = sample_tokens(logits, temperature=[1.0] * 4, top_p=[0.7, 0.7, 0.01, 1.0], uniform=[0.6, 0.65, 0.99, 0.19])
    assert ids == [1, 2, 1, 0]


def test_a_row_with_a_logit_that_is_not_finite_is_marked() -> None:
    ids, _ = sample_tokens(
        torch.tensor([[0.0, float("nan")], [0.0, 1.0]]), temperature=[1.0, 1.0], top_p=[1.0, 1.0], uniform=[0.5, 0.5]
    )
    assert ids[0] == -1
    assert ids[1] in (0, 1)
