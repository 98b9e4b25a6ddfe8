"""`python -m itrain_bench.learning.plot JSON PNG`: the arms of a learning bench and their errors, as a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = {
    "base": "base",
    "sft": "SFT",
    "warmup": "warm-up",
    "more_sft": "SFT, all steps",
    "hard_sft": "SFT on the hardest",
    "no_search": "no search, 1",
    "best_of_n": "best of n, 1",
    "iteration_1": "iteration 1",
    "iteration_2": "iteration 2",
    "iteration_3": "iteration 3",
}
COMPARED = {"warmup": "warm-up", "more_sft": "SFT, all steps", "iteration": "last iteration"}


def main(source: str, target: str) -> int:
    figures: dict[str, Any] = json.loads(Path(source).read_text())
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    arms = [arm for arm in NAMES if f"acc_{arm}" in figures]
    draw_arms(left, figures, arms)
    draw_errors(right, figures)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    return 0


def draw_arms(axes: Any, figures: Mapping[str, Any], arms: list[str]) -> None:
    places = range(len(arms))
    axes.barh(
        places, [figures[f"acc_{arm}"] for arm in arms], xerr=[figures[f"se_{arm}"] for arm in arms], color="#9db8d9"
    )
    for kind, marker in (("rare", "o"), ("ordinary", "D")):
        axes.plot(
            [figures[f"acc_{arm}_{kind}"] for arm in arms], places, marker, color="#333333", label=f"{kind} tasks", ms=5
        )
    axes.set_yticks(places, [NAMES[arm] for arm in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        f"exact calls, per cent of {figures['dev_tasks']} tasks, {figures['seeds']} seeds (± standard error)"
    )
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_errors(axes: Any, figures: Mapping[str, Any]) -> None:
    prefix = "errors_warmup_"
    classes = sorted(
        (name.removeprefix(prefix) for name in figures if name.startswith(prefix)),
        key=lambda name: -figures[prefix + name],
    )[:6]
    height = 0.8 / len(COMPARED)
    for number, (arm, label) in enumerate(COMPARED.items()):
        counts = [figures[f"errors_{arm}_{name}"] for name in classes]
        axes.barh([at + (number - 1) * height for at in range(len(classes))], counts, height, label=label)
    axes.set_yticks(range(len(classes)), [name.replace("_", " ") for name in classes])
    axes.invert_yaxis()
    axes.set_xlabel("wrong answers by class, all seeds")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
