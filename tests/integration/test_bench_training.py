"""The training bench, small: that it measures what it says, not how much."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_bench.training.answers import AnswerWorkload, make_rows, padded_tokens
from itrain_bench.training.ppl import ppl_figures
from itrain_bench.training.sft import StepClock, sft_figures
from itrain_bench.training.simpo import simpo_figures
from itrain_bench.training.workload import Workload, make_passes, make_trees
from itrain_pipeline.learn.passes import naive_tokens
from itrain_testing.cluster.access import ROOT

TINY = Workload(
    trees=2, pairs_per_tree=2, repeats=1, prompt=40, longest_step=6, vocabulary=400, hidden=32, layers=2, pass_pairs=2
)


TINY_ANSWERS = AnswerWorkload(
    rows=8, repeats=2, prompt=60, shortest_answer=2, longest_answer=6, vocabulary=400, hidden=32, layers=2
)


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the children import."""
    paths = ("crds/src", "pipeline/src", "tests/bench", "tests/support")
    monkeypatch.setenv("PYTHONPATH", ":".join(str(ROOT / path) for path in paths))


def test_every_arm_has_the_same_pairs_loss_and_gradient(tmp_path: Path) -> None:
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


def test_both_sft_arms_have_the_same_rows_and_losses_and_ours_less_padding(tmp_path: Path) -> None:
    said: list[str] = []
    figures = sft_figures(TINY_ANSWERS, tmp_path / "bench", said.append)
    assert figures.keys() >= {"sft_speedup", "sft_speedup_wall", "sft_peak_memory_ratio", "sft_trl_peak_mib"}
    assert len(said) == 2
    lengths = [len(row.prompt_ids) + len(row.answer_ids) for row in make_rows(TINY_ANSWERS, TINY_ANSWERS.rows)]
    assert figures["sft_trl_tokens"] == padded_tokens(lengths, 2)
    assert sum(lengths) <= float(figures["sft_ours_tokens"]) < float(figures["sft_trl_tokens"])
    assert 0 < float(figures["sft_loss_max_abs_diff"]) < 1e-4 < float(figures["sft_ours_loss"])


def test_every_perplexity_arm_has_the_same_logprobs(tmp_path: Path) -> None:
    said: list[str] = []
    figures = ppl_figures(TINY_ANSWERS, (400,), tmp_path / "bench", said.append)
    assert figures.keys() >= {"ppl_speedup_400", "ppl_speedup_400_wall", "ppl_peak_memory_ratio_400"}
    assert len(said) == 3
    assert float(figures["ppl_logprob_max_abs_diff"]) < 1e-4
    lengths = [len(row.prompt_ids) + len(row.answer_ids) for row in make_rows(TINY_ANSWERS, TINY_ANSWERS.rows)]
    assert figures["ppl_400_loop_tokens"] == figures["ppl_400_sliced_tokens"] == sum(lengths)
    assert float(figures["ppl_400_ours_tokens"]) >= sum(lengths)


def test_a_step_clock_leaves_the_first_step_out_and_takes_the_fastest_repetition() -> None:
    clock = StepClock()
    clock.walls, clock.cpus = [100.0, 103.0, 105.0, 107.0, 108.0], [9.0, 10.0, 11.0, 13.0, 15.0]
    assert clock.figures(2) == {"seconds": 3.0, "cpu_seconds": 2.0}


def test_padding_is_counted_by_the_longest_row_of_each_pass() -> None:
    assert padded_tokens([3, 5, 2], 2) == 12
