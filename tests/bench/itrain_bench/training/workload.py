"""What all arms of the SimPO bench are given: a random model in a folder, and pairs of random trees by seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.collate import PairRow
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.simpo import SimpoSettings
from itrain_testing.tiny_model import build_tokenizer

SETTINGS = SimpoSettings(beta=2.5, gamma=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sizes of model and pairs. All arms put `pass_pairs` pairs through the model at once, whole trees of them."""

    trees: int
    pairs_per_tree: int
    repeats: int
    prompt: int = 800
    """Mean tokens of a prompt; they vary by a fifth."""
    longest_step: int = 24
    pass_pairs: int = 4
    vocabulary: int = 32_000
    hidden: int = 256
    layers: int = 12
    seed: int = 0


def write_model(workload: Workload, folder: Path) -> Path:
    """A random Llama; the tokenizer is there because TRL's trainer insists on one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(workload.seed)
    config = LlamaConfig(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden,
        intermediate_size=11 * workload.hidden // 4,
        num_hidden_layers=workload.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    build_tokenizer().save_pretrained(folder)
    return folder


def open_policy(folder: Path) -> Any:
    """The model with an adapter whose B is not 0, in fp32; the same in every arm."""

    model = new_adapter(load_model(folder, precision="fp32"), AdapterSpec(rank=8, alpha=16), seed=0)
    return with_random_b(model, std=0.02)


def with_random_b(model: Any, *, std: float) -> Any:
    """PEFT starts with B = 0, under which A has no gradient."""
    import torch

    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return model


def make_trees(workload: Workload) -> list[list[PairRow]]:
    """Pairs along a path of each tree, as a search finds them: at a node a better and a worse step, and on from the
    better one."""
    rng = random.Random(workload.seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, workload.vocabulary) for _ in range(count))

    trees = []
    for _ in range(workload.trees):
        context = ids(round(workload.prompt * rng.uniform(0.8, 1.2)))
        pairs = []
        for _ in range(workload.pairs_per_tree):
            better, worse = (ids(rng.randint(4, workload.longest_step)) for _ in range(2))
            pairs.append(PairRow(context_ids=context, chosen_ids=better, rejected_ids=worse))
            context = (*context, *better)
        trees.append(pairs)
    return trees


def make_passes(workload: Workload) -> list[list[list[PairRow]]]:
    """The trees, as many to a pass as have `pass_pairs` pairs; at least one."""
    trees = make_trees(workload)
    count = max(1, workload.pass_pairs // workload.pairs_per_tree)
    return [trees[first : first + count] for first in range(0, len(trees), count)]
