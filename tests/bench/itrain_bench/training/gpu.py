"""`python -m itrain_bench.training.gpu`: an 8B-shaped model with random weights on one GPU, in one flat JSON file.

SimPO on the same pairs by TRL's CPOTrainer and by our forms of rows, and perplexity by the plain loop and by the score
stage's batches. All arms share one model in bf16 with a LoRA adapter in fp32; training has gradient checkpointing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from itrain_bench.training.__main__ import OUT, say, versions
from itrain_bench.training.answers import AnswerWorkload, make_rows
from itrain_bench.training.arm import Rows, Step, our_step, trl_step
from itrain_bench.training.child import Figures, largest_difference
from itrain_bench.training.ppl import every_position, ours
from itrain_bench.training.workload import Workload, make_passes, with_random_b
from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import new_adapter

GIB = 2**30
REFERENCE = "trl"
ARMS = (REFERENCE, "separate", "pair", "tree", "pair_flex", "tree_flex")
TWO = Workload(trees=8, pairs_per_tree=2, repeats=2, vocabulary=128_256, hidden=4096, layers=32)
FOUR = dataclasses.replace(TWO, trees=6, pairs_per_tree=4, pass_pairs=8)
WIDE = dataclasses.replace(TWO, trees=16, pass_pairs=32, repeats=1)
"""As many pairs in a pass as TRL's logits leave room for on 80 GB."""
PARTS = {"": TWO, "pairs_4_": FOUR, "pass_32_": WIDE}
ROWS = AnswerWorkload(rows=32, repeats=1, vocabulary=128_256, hidden=4096, layers=32)
TARGETS = {"simpo_tree_speedup": 2.5, "pass_32_simpo_tree_speedup": 2.5, "pass_32_simpo_tree_memory_saved": 0.6}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_bench.training.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT.with_stem("train-gpu"))
    parser.add_argument("--only", action="append", choices=[*PARTS, "ppl"], default=[], help="a part; '': the first")
    parser.add_argument("--small", action="store_true", help="a model of a few million parameters")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    smaller = {"vocabulary": 4000, "hidden": 256, "layers": 2} if arguments.small else {}
    model = open_policy(dataclasses.replace(TWO, **smaller))
    figures: Figures = {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda), **versions()}
    figures |= {"model_parameters": sum(p.numel() for p in model.parameters()), "model_gib": gib_now()}
    say(f"{figures['gpu']}: {figures['model_parameters']:,} parameters, {figures['model_gib']:.1f} GiB")
    parts = arguments.only or [*PARTS, "ppl"]
    for prefix, workload in PARTS.items():
        if prefix not in parts:
            continue
        found = simpo_figures(model, dataclasses.replace(workload, **smaller))
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
        write(arguments.out, figures)
    if "ppl" in parts:
        figures |= ppl_figures(model.get_base_model().eval(), dataclasses.replace(ROWS, **smaller))
        write(arguments.out, figures)
    for name, least in TARGETS.items():
        if name not in figures:
            continue
        met = "met" if float(figures[name]) >= least else "not met"
        say(f"{name}: {figures[name]:.2f}, wanted {least}: {met}")
    print(arguments.out)
    return 0


def write(path: Path, figures: Figures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


def open_policy(workload: Workload) -> Any:
    """Llama-3-8B's shape (or a smaller one's) with random weights in bf16, and an adapter whose B is not 0."""
    from transformers import LlamaConfig, LlamaForCausalLM

    big = workload.hidden >= 4096
    config = LlamaConfig(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden,
        intermediate_size=14336 if big else 3 * workload.hidden,
        num_hidden_layers=workload.layers,
        num_attention_heads=32 if big else 4,
        num_key_value_heads=8 if big else 2,
        max_position_embeddings=8192,
        rope_theta=500_000.0,
    )
    torch.manual_seed(workload.seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            base = LlamaForCausalLM(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    model = new_adapter(base, AdapterSpec(rank=16, alpha=32), seed=0)
    with_random_b(model, std=0.01)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    return model.train()


def simpo_figures(model: Any, workload: Workload) -> Figures:
    """Seconds of the fastest of the repeats, tokens and peak memory of each arm; ratios against TRL's."""
    passes: list[Rows] = list(make_passes(workload))
    pairs = sum(len(tree) for rows in passes for tree in rows)
    told: dict[str, dict[str, float]] = {}
    gradients: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory(prefix="itrain-bench-") as scratch:
        for arm in ARMS:
            step = arm_step(model, arm, Path(scratch))
            told[arm], gradients[arm] = measure(model, passes, step, pairs, workload.repeats)
            say(f"simpo {arm}: {told[arm]['seconds']:.2f} s, {told[arm]['tokens']:,.0f} tokens, "
                f"peak {told[arm]['peak_gib']:.1f} GiB")  # fmt: skip
    figures: Figures = {f"simpo_{arm}_{name}": value for arm, found in told.items() for name, value in found.items()}
    reference = told[REFERENCE]
    for arm, found in told.items():
        figures |= {
            f"simpo_{arm}_speedup": reference["seconds"] / found["seconds"],
            f"simpo_{arm}_memory_saved": 1 - found["peak_gib"] / reference["peak_gib"],
            f"simpo_{arm}_memory_saved_over_loaded": 1 - found["grown_gib"] / reference["grown_gib"],
            f"simpo_{arm}_gradient_cosine": cosine(gradients[arm], gradients[REFERENCE]),
        }
    return {**{f"simpo_{name}": value for name, value in dataclasses.asdict(workload).items()}, **figures}


def cosine(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found, expected, dim=0))


def arm_step(model: Any, arm: str, scratch: Path) -> Step:
    flex = arm.endswith("_flex")
    model.get_base_model().set_attn_implementation("flex_attention" if flex else "sdpa")
    return trl_step(model, scratch) if arm == REFERENCE else our_step(model, arm.removesuffix("_flex"))


def measure(
    model: Any, passes: Sequence[Rows], step: Step, pairs: int, repeats: int
) -> tuple[dict[str, float], torch.Tensor]:
    """One pass over all pairs to warm up (kernels are compiled for its shapes), then `repeats` that count."""
    before = gib_now()
    walls = []
    for repeat in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        if repeat == 1:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        began = time.perf_counter()
        tokens, loss = 0, 0.0
        for rows in passes:
            with torch.autocast("cuda", torch.bfloat16):
                sums, computed = step(rows)
            (sums / pairs).backward()
            loss += float(sums.detach()) / pairs
            tokens += computed
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / GIB
    gradient = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])
    model.zero_grad(set_to_none=True)
    found = {"seconds": min(walls[1:]), "first_seconds": walls[0], "tokens": float(tokens), "loss": loss}
    return {**found, "peak_gib": peak, "grown_gib": peak - before}, gradient


def ppl_figures(model: Any, workload: AnswerWorkload) -> Figures:
    """`ppl_speedup_128k` against one row at a time with the loss of every position; both in bf16."""
    model.set_attn_implementation("sdpa")
    rows = make_rows(workload, workload.rows)
    figures: Figures = {"ppl_rows": workload.rows}
    values: dict[str, list[float]] = {}
    for name, score in (("loop", every_position), ("ours", ours)):
        torch.cuda.empty_cache()
        walls = []
        for repeat in range(workload.repeats + 1):
            if repeat == 1:
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            values[name], tokens = score(model, rows)
            torch.cuda.synchronize()
            walls.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() / GIB
        figures |= {f"ppl_{name}_seconds": min(walls[1:]), f"ppl_{name}_tokens": tokens, f"ppl_{name}_peak_gib": peak}
        say(f"perplexity {name}: {min(walls[1:]):.2f} s, peak {peak:.1f} GiB")
    return figures | {
        f"ppl_speedup_{workload.vocabulary // 1000}k": float(figures["ppl_loop_seconds"])
        / float(figures["ppl_ours_seconds"]),
        "ppl_logprob_max_abs_diff": largest_difference(values["loop"], values["ours"]),
    }


def gib_now() -> float:
    return torch.cuda.memory_allocated() / GIB


if __name__ == "__main__":
    sys.exit(main())
