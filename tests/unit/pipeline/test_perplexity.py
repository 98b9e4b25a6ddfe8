"""Perplexity: equal to the naive loop, batches, what is not a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.logprobs import row_sums, scored_logprobs
from itrain_pipeline.learn.perplexity import plan_token_batches, row_length, score_batch, to_perplexity
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


def test_only_scored_positions_reach_the_output_head(model: Any) -> None:
    seen: list[tuple[int, ...]] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    try:
        score_batch(model, examples := make_examples(6))
    finally:
        handle.remove()
    assert seen == [(1, sum(len(e.answer_ids) for e in examples), model.config.vocab_size)]
    assert model(input_ids=torch.tensor([[1, 30, 40]])).logits.shape[1] == 3  # the hook is gone


def test_a_scored_first_token_is_refused(model: Any) -> None:
    ids = torch.tensor([[1, 30]])
    with pytest.raises(ValueError, match="nothing predicts it"):
        scored_logprobs(model, model, ids, torch.ones_like(ids), torch.tensor([[True, True]]))


def test_sums_by_row_count_scored_tokens_only() -> None:
    scored = torch.tensor([[False, True, True], [False, False, False], [False, False, True]])
    sums, counts = row_sums(torch.tensor([1.0, 2.0, 4.0]), scored)
    assert sums.tolist() == [3.0, 0.0, 4.0]
    assert counts.tolist() == [2, 0, 1]
