"""SimPO: the same pairs and model as two rows per pair, a row per pair, a row per tree, and by TRL's CPOTrainer."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from itrain_bench.training.child import Figures, Say
from itrain_bench.training.workload import Workload, write_model

REFERENCE = "trl"
ARMS = (REFERENCE, "separate", "pair", "tree")
LEAST_MEMORY = "trl_one"


def simpo_figures(workload: Workload, folder: Path, say: Say, arms: Sequence[str] = ARMS) -> Figures:
    """Figures by name. Speed-ups and memory ratios are against TRL; `_over_separate` is against our own two rows per
    pair, whose output head sees the scored rows only too: what sharing alone brings."""
    folder.mkdir(parents=True)
    model = write_model(workload, folder / "model")
    found: dict[str, dict[str, float]] = {}
    gradients: dict[str, torch.Tensor] = {}
    for arm in arms:
        found[arm], gradients[arm] = run_arm(arm, workload, model, folder / arm)
        told = found[arm]
        say(f"simpo {arm}: {told['seconds']:.1f} s, {told['tokens']:,.0f} tokens, peak {told['peak_mib']:,.0f} MiB")
    return {**sizes(workload), **compare(found, gradients)}


def run_arm(arm: str, workload: Workload, model: Path, folder: Path) -> tuple[dict[str, float], torch.Tensor]:
    """One child process."""
    folder.mkdir()
    job = {
        "arm": arm,
        "workload": dataclasses.asdict(workload),
        "model": str(model),
        "scratch": str(folder / "scratch"),
        "gradient": str(folder / "gradient.pt"),
        "figures": str(folder / "figures.json"),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    subprocess.run(
        [sys.executable, "-m", "itrain_bench.training.arm", str(path)], check=True, stdout=subprocess.DEVNULL
    )
    return json.loads(Path(job["figures"]).read_text()), torch.load(job["gradient"])


def compare(found: dict[str, dict[str, float]], gradients: dict[str, torch.Tensor]) -> Figures:
    """The arms' own figures, and what follows from them."""
    reference, separate = found[REFERENCE], found["separate"]
    figures: Figures = {f"simpo_{arm}_{name}": value for arm, told in found.items() for name, value in told.items()}
    for form in ("pair", "tree"):
        told = found[form]
        figures |= {
            f"simpo_{form}_speedup": reference["seconds"] / told["seconds"],
            f"simpo_{form}_speedup_cpu": reference["cpu_seconds"] / told["cpu_seconds"],
            f"simpo_{form}_speedup_over_separate": separate["seconds"] / told["seconds"],
            f"simpo_{form}_speedup_over_separate_cpu": separate["cpu_seconds"] / told["cpu_seconds"],
            f"simpo_{form}_token_ratio": told["naive_tokens"] / told["tokens"],
            f"simpo_{form}_peak_memory_ratio": told["peak_mib"] / reference["peak_mib"],
            f"simpo_{form}_peak_memory_ratio_over_loaded": _grown(told) / _grown(reference),
        }
    if least := found.get(LEAST_MEMORY):
        figures["simpo_tree_peak_memory_ratio_to_trl_one"] = found["tree"]["peak_mib"] / least["peak_mib"]
    expected = gradients[REFERENCE]
    worst = max(float((gradient - expected).abs().max()) for gradient in gradients.values())
    return figures | {"grad_max_abs_diff": worst, "grad_max_rel_diff": worst / float(expected.abs().max())}


def _grown(told: dict[str, float]) -> float:
    """Memory that training took on top of a process that has loaded everything."""
    return max(told["peak_mib"] - told["loaded_mib"], 1.0)


def sizes(workload: Workload) -> Figures:
    """What the figures are of."""
    return {
        "simpo_threads": 1,
        **{f"simpo_{name}": value for name, value in dataclasses.asdict(workload).items()},
    }
