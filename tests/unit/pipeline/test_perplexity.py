"""Perplexity: equal to the naive loop, batches, what is not a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.logprobs import chunked_logprobs, row_sums, scored_logprobs
from itrain_pipeline.learn.perplexity import (
    MOST_LOGITS,
    batch_budget,
    head_rows,
    plan_token_batches,
    row_length,
    score_batch,
    to_perplexity,
)
from itrain_pipeline.records import Example
from itrain_testing.learning import make_examples, with_ids
from itrain_testing.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(write_tiny_model(tmp_path_factory.mktemp("model")), precision="fp32")


@torch.inference_mode()
def naive(model: Any, example: Example) -> list[float]:
    """Batch 1, all logits: logits[t - 1] predict token t."""
    ids = [*example.prompt_ids, *example.answer_ids]
    logprobs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [logprobs[at - 1, ids[at]].item() for at in range(len(example.prompt_ids), len(ids))]


def test_batched_scores_equal_the_naive_loop_row_by_row(model: Any) -> None:
    examples = make_examples(40)
    batches = plan_token_batches(examples, 256)
    assert max(map(len, batches)) > 1
    found = {row.id: row for batch in batches for row in score_batch(model, batch).rows}
    assert found.keys() == {example.id for example in examples}
    for example in examples:
        expected = naive(model, example)
        assert found[example.id].logprobs == pytest.approx(expected, abs=1e-5)
        assert found[example.id].perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-5)
        assert found[example.id].tokens == len(example.answer_ids)
        assert found[example.id].has_call == example.has_call


def test_the_end_of_turn_counts_and_the_prompt_does_not(model: Any) -> None:
    example = make_examples(1)[0]
    score = score_batch(model, [example]).rows[0]
    assert len(score.logprobs) == len(example.answer_ids)
    shorter = score_batch(model, [with_ids(example, example.prompt_ids, example.answer_ids[:-1])]).rows[0]
    assert score.logprobs[:-1] == pytest.approx(shorter.logprobs, abs=1e-5)
    assert score.perplexity != pytest.approx(shorter.perplexity)


def test_padding_is_masked_by_length_so_an_answer_may_hold_any_id(model: Any) -> None:
    """Trap 8: 0 pads the batch; an answer of zeros is scored like any other."""
    zeros = with_ids(make_examples(1)[0], (1, 30), (0, 0, 2))
    long = with_ids(make_examples(2)[1], range(30, 80), (40, 41))
    together = {row.id: row for row in score_batch(model, [zeros, long]).rows}
    assert together[zeros.id].logprobs == pytest.approx(naive(model, zeros), abs=1e-5)


def test_rows_that_are_not_finite_are_named_and_left_out(model: Any) -> None:
    examples = make_examples(4)
    bad = examples[1].answer_ids[0]

    class Poisoned(torch.nn.Module):
        """The model with one output logit of NaN wherever the answer's first token is asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.device = model.device

        def get_output_embeddings(self) -> Any:
            return model.get_output_embeddings()

        def forward(self, **inputs: Any) -> Any:
            out = model(**inputs)
            first = sum(len(example.answer_ids) for example in examples[:1])
            out.logits[0, first, bad] = math.nan
            return out

    batch = score_batch(Poisoned(), examples)
    assert batch.not_finite == (examples[1].id,)
    assert [row.id for row in batch.rows] == [examples[0].id, examples[2].id, examples[3].id]


def test_perplexity_of_impossible_tokens_is_not_finite_and_no_error() -> None:
    assert to_perplexity([-1.0, -3.0]) == pytest.approx(math.exp(2.0))
    assert math.isinf(to_perplexity([-math.inf]))
    assert math.isinf(to_perplexity([-1e6]))
    assert math.isnan(to_perplexity([math.inf, -math.inf]))


@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 200))
def test_token_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    base = make_examples(len(lengths))
    examples = [with_ids(e, (1,), [5] * length) for e, length in zip(base, lengths, strict=True)]
    batches = plan_token_batches(examples, budget)
    assert sorted(e.id for batch in batches for e in batch) == sorted(e.id for e in examples)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(row_length, batch)) <= budget


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=6),
    rows=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_any_lengths_in_any_chunks_give_the_naive_numbers(
    model: Any, lengths: list[tuple[int, int]], rows: int, seed: int
) -> None:
    base = make_examples(len(lengths), seed=seed, longest=41)
    ids = torch.randint(0, model.config.vocab_size, (len(lengths), 60), generator=torch.Generator().manual_seed(seed))
    examples = [
        with_ids(example, row[:prompt].tolist(), row[prompt : prompt + answer].tolist())
        for example, row, (prompt, answer) in zip(base, ids, lengths, strict=True)
    ]
    found = score_batch(model, examples, rows=rows).rows
    assert [row.id for row in found] == [example.id for example in examples]
    for example, row in zip(examples, found, strict=True):
        expected = naive(model, example)
        assert row.logprobs == pytest.approx(expected, abs=1e-5)
        assert row.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-5)


def seen_logits(model: Any, examples: list[Example], rows: int | None = None) -> list[tuple[int, ...]]:
    """Shapes of what the output head gave out."""
    seen: list[tuple[int, ...]] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(tuple(out.shape))
    )
    try:
        score_batch(model, examples, rows=rows)
    finally:
        handle.remove()
    return seen


def test_only_scored_positions_reach_the_output_head(model: Any) -> None:
    examples = make_examples(6)
    answer_tokens = sum(len(e.answer_ids) for e in examples)
    assert seen_logits(model, examples) == [(1, answer_tokens, model.config.vocab_size)]
    assert model(input_ids=torch.tensor([[1, 30, 40]])).logits.shape[1] == 3  # the hook is gone


@pytest.mark.parametrize("count", [1, 4, 16])
def test_the_largest_logits_are_a_chunk_however_many_rows_a_batch_has(model: Any, count: int) -> None:
    examples = make_examples(count, longest=200)
    answer_tokens = sum(len(e.answer_ids) for e in examples)
    seen = seen_logits(model, examples, rows=5)
    assert max(shape[1] for shape in seen) == min(5, answer_tokens)
    assert sum(shape[1] for shape in seen) == answer_tokens
    assert {shape[2] for shape in seen} == {model.config.vocab_size}


def test_no_tensor_of_the_scoring_is_larger_than_a_chunk_of_logits(model: Any) -> None:
    """Every result of every operation is looked at, the log-softmax and its conversion too."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    vocabulary = model.config.vocab_size

    class Shapes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[-1] == vocabulary:
                    self.most = max(self.most, leaf.numel())
            return out

    with Shapes() as shapes:
        score_batch(model, make_examples(12, longest=200), rows=5)
    assert shapes.most == 5 * vocabulary


def test_the_scaling_of_a_model_s_logits_reaches_every_chunk() -> None:
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.3,
        pad_token_id=0,
        initializer_range=0.3,
    )
    scaled = CohereForCausalLM(config).eval()
    example = max(make_examples(9), key=lambda e: len(e.answer_ids))
    found = score_batch(scaled, [example], rows=3).rows[0]
    assert found.logprobs == pytest.approx(naive(scaled, example), abs=1e-5)


@pytest.mark.parametrize(("vocabulary", "rows"), [(4_000, 16_777), (32_000, 2_097), (128_256, 523), (10**9, 1)])
def test_a_chunk_has_fewer_rows_the_more_tokens_there_are(vocabulary: int, rows: int) -> None:
    assert head_rows(vocabulary) == rows
    assert rows == 1 or rows * vocabulary <= MOST_LOGITS


def test_a_cpu_has_smaller_batches_and_a_gpu_those_of_the_user() -> None:
    assert batch_budget(16_384, "cpu") == 1024
    assert batch_budget(500, "cpu") == 500
    assert batch_budget(16_384, "cuda") == 16_384


def test_a_scored_first_token_is_refused(model: Any) -> None:
    ids = torch.tensor([[1, 30]])
    with pytest.raises(ValueError, match="nothing predicts it"):
        scored_logprobs(model, model, ids, torch.ones_like(ids), torch.tensor([[True, True]]))
    with pytest.raises(ValueError, match="nothing predicts it"):
        chunked_logprobs(model, ids, torch.tensor([[True, True]]), rows=1)


def test_sums_by_row_count_scored_tokens_only() -> None:
    scored = torch.tensor([[False, True, True], [False, False, False], [False, False, True]])
    sums, counts = row_sums(torch.tensor([1.0, 2.0, 4.0]), scored)
    assert sums.tolist() == [3.0, 0.0, 4.0]
    assert counts.tolist() == [2, 0, 1]
