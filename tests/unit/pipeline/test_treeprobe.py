"""Which architectures are trusted with tree rows is tried on the first tree, not looked up."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from itrain_pipeline.learn.collate import PairRow
from itrain_pipeline.learn.treemask import UnsupportedAttentionError, layer_windows
from itrain_pipeline.learn.treeprobe import first_tree, usable_form, why_not
from itrain_testing.pairtrees import random_tree

PAIRS = random_tree(random.Random(1), prompt=10, pairs=4, words=range(7, 60))
TREES = [0] * len(PAIRS)


class Forgetful(LlamaForCausalLM):
    """Code that knows its own masks only: one that is handed in is dropped without a word."""

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask.ndim == 4:
            attention_mask = torch.ones_like(attention_mask[:, 0, 0], dtype=torch.long)
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class OwnPositions(LlamaForCausalLM):
    """Code that counts positions itself."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return kind(config)


def bloom() -> Any:
    """Its positions are a bias made from a 2D mask."""
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0)
    )


@pytest.mark.parametrize("build", [llama, gpt2])
def test_rotary_and_learned_positions_take_tree_rows(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = build().train()
    assert usable_form(model, PAIRS, TREES, "tree") == "tree"
    assert usable_form(model, PAIRS, TREES, "pair") == "pair"
    assert not caplog.records
    assert model.training


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: llama(Forgetful), "differ from those of plain rows"),
        (lambda: llama(OwnPositions), "differ from those of plain rows"),
        (bloom, "Error: "),
    ],
)
def test_others_fall_back_to_two_rows_per_pair_with_one_warning(
    build: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert usable_form(build(), PAIRS, TREES, "tree") == "separate"
    (record,) = [record for record in caplog.records if record.name.startswith("itrain_pipeline")]
    assert "rows: tree falls back to separate" in record.getMessage()
    assert reason in record.getMessage()


def test_a_leak_that_rounding_could_hide_is_found_by_changing_a_token_of_another_branch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a tolerance as wide as half precision needs, a mask that is ignored is still seen."""
    monkeypatch.setattr("itrain_pipeline.learn.treeprobe.TOLERANCE", {torch.float32: 1e9})
    assert why_not(llama(), PAIRS) is None
    assert "mask is not obeyed" in (why_not(llama(Forgetful), PAIRS) or "")


def test_separate_rows_are_not_tried() -> None:
    assert usable_form(None, PAIRS, TREES, "separate") == "separate"


def test_the_tree_that_is_tried_has_several_pairs_where_there_is_one() -> None:
    pairs = [PairRow(context_ids=(n,), chosen_ids=(1,), rejected_ids=(2,)) for n in range(7)]
    assert first_tree(pairs, [0, 1, 2, 2, 2, 2, 3]) == pairs[2:5]
    assert first_tree(pairs[:3], [0, 1, 2]) == pairs[:1]


@pytest.mark.parametrize("other", ["linear_attention", "chunked_attention", "mamba"])
def test_layers_that_are_no_attention_under_a_mask_are_named(other: str) -> None:
    with pytest.raises(UnsupportedAttentionError, match=other):
        layer_windows(SimpleNamespace(layer_types=["full_attention", other]))


def test_each_type_of_layer_has_its_window() -> None:
    assert layer_windows(SimpleNamespace()) == {"full_attention": None}
    assert layer_windows(SimpleNamespace(sliding_window=9)) == {"sliding_attention": 9}
    both = SimpleNamespace(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=9)
    assert layer_windows(both) == {"full_attention": None, "sliding_attention": 9}
    unused = SimpleNamespace(layer_types=["full_attention"], sliding_window=9)
    assert layer_windows(unused) == {"full_attention": None}
