"""The learning bench's statistics, against what is known in closed form."""

from __future__ import annotations

import math
import random

import pytest

from itrain_bench.learning.__main__ import changed, verdict
from itrain_bench.learning.learner import shuffled
from itrain_bench.learning.measure import FULL, PLAIN, summary
from itrain_bench.learning.stats import accuracy, paired_gain, standard_error
from itrain_bench.learning.tasks import HeldOut, of_kind


def answers(share: float, tasks: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(tasks)]


def test_accuracy_and_its_error_are_those_of_a_share() -> None:
    right = [True] * 30 + [False] * 70
    assert accuracy([right]) == pytest.approx(30.0)
    assert standard_error([right]) == pytest.approx(100 * math.sqrt(0.3 * 0.7 / 99), rel=1e-9)


def test_answers_that_all_seeds_share_are_no_more_certain_for_being_repeated() -> None:
    right = answers(0.4, 200, 1)
    assert standard_error([right] * 5) == pytest.approx(standard_error([right]))


def test_an_arm_gains_nothing_over_itself() -> None:
    right = [answers(0.5, 300, seed) for seed in (1, 2, 3)]
    gain = paired_gain(right, right)
    assert (gain.mean, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_with_one_seed_the_interval_is_that_of_the_paired_difference() -> None:
    better, worse = answers(0.6, 1000, 1), answers(0.5, 1000, 2)
    differences = [int(a) - int(b) for a, b in zip(better, worse, strict=True)]
    mean = sum(differences) / 1000
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 1000 / 1000)
    gain = paired_gain([better], [worse])
    assert gain.mean == pytest.approx(100 * mean)
    assert gain.low == pytest.approx(100 * (mean - 1.96 * error), abs=0.3)
    assert gain.high == pytest.approx(100 * (mean + 1.96 * error), abs=0.3)


def test_pairing_by_task_makes_a_gain_certain_that_the_single_accuracies_do_not() -> None:
    worse = answers(0.5, 1000, 1)
    better = list(worse)
    for missed in [number for number, hit in enumerate(worse) if not hit][:30]:
        better[missed] = True
    gain = paired_gain([better], [worse])
    assert gain.low > 1.5
    assert 2 * math.hypot(standard_error([better]), standard_error([worse])) > gain.mean


def test_seeds_that_disagree_leave_the_gain_open_however_many_tasks_there_are() -> None:
    everything, nothing = [True] * 2000, [False] * 2000
    gain = paired_gain([everything, nothing], [nothing, everything])
    assert gain.mean == 0.0
    assert (gain.low, gain.high) == pytest.approx((-100.0, 100.0))


def test_the_interval_repeats_and_turns_its_sign_with_the_arms() -> None:
    better = [answers(0.6, 400, seed) for seed in (1, 2, 3)]
    worse = [answers(0.5, 400, seed) for seed in (4, 5, 6)]
    gain, turned = paired_gain(better, worse), paired_gain(worse, better)
    assert gain == paired_gain(better, worse)
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))


@pytest.mark.parametrize("worse", [[[True]], [[True, False], [True, False]], [[]]])
def test_arms_of_other_shapes_are_no_pair(worse: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_gain([[True, False]] if worse != [[]] else [[]], worse)


def test_the_best_plain_arm_is_the_one_to_beat_and_kinds_are_told_apart() -> None:
    test = HeldOut(examples=(), rare=(True, True, False, False))
    plain = {
        "sft": [False, False, True, True],
        "warmup": [False, False, False, True],
        "more_sft": [True, False, True, True],
    }
    iterated = [True, True, True, False]
    arms = {"base": [False] * 4, **plain, "iteration_1": [False] * 4, "iteration_2": iterated}
    arms |= {f"{arm}_{n}": [True] * 4 for arm in ("hard_sft", "best_of_n", "no_search") for n in (1, 2)}
    figures = summary({name: [right] for name, right in arms.items()}, test, 2)
    assert figures["best_sft"] == "more_sft" in PLAIN
    assert (figures["acc_more_sft"], figures["acc_iteration_2"], figures["acc_base"]) == (75.0, 75.0, 0.0)
    assert (figures["acc_iteration_2_rare"], figures["acc_iteration_2_ordinary"]) == (100.0, 50.0)
    assert figures["gain_iterations_over_best_sft"] == 0.0
    assert figures["gain_iterations_over_hard_sft"] == -25.0
    assert "not met" in verdict(figures)
    assert of_kind([iterated], test.rare, wanted=False) == [[True, False]]


def test_shuffled_rows_come_once_before_they_come_again() -> None:
    order = shuffled(10, 7, 4, "seed")
    assert len(order) == 28
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == shuffled(10, 7, 4, "seed") != shuffled(10, 7, 4, "other")


def test_a_size_is_changed_by_name_only() -> None:
    assert changed(FULL, ["seeds=[4, 5]", "test=7"]).seeds == (4, 5)
    with pytest.raises(SystemExit, match="allowed are"):
        changed(FULL, ["sedes=[4]"])
