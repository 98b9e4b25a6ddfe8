"""The training bench, small: that it measures what it says, not how much."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_bench.training.simpo import simpo_figures
from itrain_bench.training.workload import Workload, make_passes, make_trees
from itrain_pipeline.learn.passes import naive_tokens
from itrain_testing.cluster.access import ROOT

TINY = Workload(
    trees=2, pairs_per_tree=2, repeats=1, prompt=40, longest_step=6, vocabulary=400, hidden=32, layers=2, pass_pairs=2
)


def test_every_arm_has_the_same_pairs_loss_and_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ("crds/src", "pipeline/src", "tests/bench", "tests/support")
    monkeypatch.setenv("PYTHONPATH", ":".join(str(ROOT / path) for path in paths))
    said: list[str] = []
    figures = simpo_figures(TINY, tmp_path / "bench", said.append)
    assert figures.keys() >= {
        "simpo_pair_speedup",
        "simpo_tree_speedup",
        "simpo_tree_peak_memory_ratio",
        "grad_max_abs_diff",
    }
    assert len(said) == 4
    assert float(figures["grad_max_rel_diff"]) < 1e-5
    losses = [float(figures[f"simpo_{arm}_loss"]) for arm in ("trl", "separate", "pair", "tree")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    pairs = [pair for tree in make_trees(TINY) for pair in tree]
    assert figures["simpo_trl_naive_tokens"] == sum(map(naive_tokens, pairs))
    tokens = [float(figures[f"simpo_{arm}_tokens"]) for arm in ("trl", "separate", "pair", "tree")]
    assert tokens[0] == tokens[1] > 1.8 * tokens[2] > 3 * tokens[3]


def test_passes_are_whole_trees_with_as_many_pairs_in_every_arm() -> None:
    passes = make_passes(Workload(trees=6, pairs_per_tree=2, repeats=1, prompt=20))
    assert [sum(map(len, rows)) for rows in passes] == [4, 4, 4]
    alone = make_passes(Workload(trees=2, pairs_per_tree=9, repeats=1, prompt=20))
    assert [len(rows) for rows in alone] == [1, 1]
