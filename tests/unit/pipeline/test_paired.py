"""The paired comparison against sums by hand, a simulation, and published figures."""

from __future__ import annotations

import random
import time

import pytest

from itrain_pipeline.evals.paired import (
    binomial,
    bootstrap_interval,
    compare_items,
    difference_chances,
    sign_test,
    wilson,
)


def simulated(gained: int, lost: int, n: int, rng: random.Random, draws: int) -> tuple[float, float]:
    """The bootstrap as the textbook has it: draw items again, take the difference, sort."""
    items = [1] * gained + [-1] * lost + [0] * (n - gained - lost)
    found = sorted(sum(rng.choices(items, k=n)) / n for _ in range(draws))
    return found[round(0.025 * draws)], found[round(0.975 * draws)]


def test_two_items_can_be_drawn_in_four_ways() -> None:
    """One gained, one unchanged: both, either one first, neither: 2, 1, 1, 0."""
    assert difference_chances(1, 0, 2) == pytest.approx({2: 0.25, 1: 0.5, 0: 0.25})


def test_a_gain_and_a_loss_are_never_drawn_as_one_item() -> None:
    """Every item differs, so that two draws differ by 2, 0, 0 or −2."""
    found = difference_chances(1, 1, 2)
    assert {d: p for d, p in found.items() if p > 1e-12} == pytest.approx({2: 0.25, 0: 0.5, -2: 0.25})


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 5), (3, 1, 12), (40, 25, 300), (7, 0, 7), (200, 400, 2501)])
def test_the_chances_add_up_and_have_the_sample_s_mean(gained: int, lost: int, n: int) -> None:
    found = difference_chances(gained, lost, n)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-9)
    assert sum(d * p for d, p in found.items()) == pytest.approx(gained - lost, abs=1e-6)


@pytest.mark.parametrize(("gained", "lost", "n"), [(12, 4, 80), (30, 21, 186), (2, 1, 16)])
def test_the_interval_is_that_of_a_simulation(gained: int, lost: int, n: int) -> None:
    """10,000 seeded draws find the same ends, but for one item of Monte Carlo error."""
    simulation = simulated(gained, lost, n, random.Random(7), 10_000)
    assert bootstrap_interval(gained, lost, n) == pytest.approx(simulation, abs=1.01 / n)


def test_the_interval_turns_around_with_the_order_of_the_models() -> None:
    low, high = bootstrap_interval(9, 3, 60)
    assert bootstrap_interval(3, 9, 60) == pytest.approx((-high, -low), abs=1e-9)


def test_items_that_never_differ_give_an_interval_without_width() -> None:
    assert bootstrap_interval(0, 0, 40) == (0.0, 0.0)


def test_the_largest_benchmark_takes_no_time() -> None:
    began = time.process_time()
    bootstrap_interval(400, 300, 2501)
    assert time.process_time() - began < 2.0


def test_binomial_chances() -> None:
    assert binomial(2, 0.5) == pytest.approx({0: 0.25, 1: 0.5, 2: 0.25})
    assert (binomial(5, 0.0), binomial(5, 1.0), binomial(0, 0.5)) == ({0: 1.0}, {5: 1.0}, {0: 1.0})


def test_the_sign_test_counts_the_ways_of_a_coin() -> None:
    """5 of 5 heads or tails: 2/32. 9 of 10: 2 · (1 + 10)/1024."""
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(1, 9) == pytest.approx(22 / 1024)
    assert (sign_test(0, 0), sign_test(3, 3)) == (1.0, 1.0)


def test_wilson_s_interval() -> None:
    """10 of 20: (0.5 ± 1.96 · √(0.25/20 + 1.96²/1600)) about the middle; and none of 10 still has an upper end."""
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_only_shared_items_are_compared() -> None:
    found = compare_items({"a": True, "b": False, "x": True}, {"a": True, "b": True, "y": False})
    assert found is not None
    assert (found.n, found.first, found.second, found.gained, found.lost) == (2, 0.5, 1.0, 1, 0)
    assert found.difference == 0.5
    assert compare_items({"a": True}, {"b": True}) is None
