"""Accuracies, standard errors and BFCL's groups, each against a sum by hand."""

from __future__ import annotations

import math

import pytest

from itrain_contract.bfcl import CATEGORIES, ITEMS
from itrain_pipeline.evals.metrics import (
    Rate,
    Score,
    always_refuse,
    bfcl_v3,
    bfcl_v4,
    count_errors,
    count_rates,
    difference_se,
    flat_metrics,
    mean_score,
    paired_gain,
    pooled,
    score_groups,
)
from itrain_pipeline.records import Prediction

FULL = dict(ITEMS)


def test_a_rate_has_the_binomial_standard_error() -> None:
    rate = Rate(correct=16, n=64)
    assert rate.accuracy == 0.25
    assert rate.se == pytest.approx(math.sqrt(0.25 * 0.75 / 64)) == pytest.approx(0.0541265877)
    assert Rate(correct=5, n=5).se == 0.0


def test_no_items_have_no_accuracy() -> None:
    assert math.isnan(Rate(correct=0, n=0).accuracy)
    with pytest.raises(ValueError, match="3 correct of 2"):
        Rate(correct=3, n=2)


def test_pooling_adds_counts() -> None:
    assert pooled([Rate(correct=1, n=2), Rate(correct=3, n=8)]) == Rate(correct=4, n=10)


def test_v3_weighs_categories_as_the_papers_leaderboard_did() -> None:
    """Non-live = mean of 5 with simple itself a mean of 3; Live by count."""
    rates = {name: Rate(correct=n // 2, n=n) for name, n in FULL.items()}
    rates["simple_java"] = Rate(correct=100, n=100)
    groups = bfcl_v3(rates)
    assert groups["non_live"] is not None
    assert groups["non_live"].value == pytest.approx(((0.5 + 1.0 + 0.5) / 3 + 4 * 0.5) / 5)
    rates["live_relevance"] = Rate(correct=16, n=16)
    live = bfcl_v3(rates)["live"]
    assert live is not None
    assert live.value == pytest.approx((129 + 526 + 8 + 12 + 442 + 16) / 2251)
    assert live.n == 2251


def test_a_missing_category_makes_its_group_missing_not_zero() -> None:
    rates = {name: Rate(correct=n, n=n) for name, n in FULL.items() if name != "parallel"}
    assert bfcl_v3(rates)["non_live"] is None
    assert bfcl_v3(rates)["live"] is not None
    assert bfcl_v3(rates)["overall"] is None
    assert bfcl_v4(rates)["non_live"] is None


def test_v4_keeps_relevance_out_of_live_and_non_live() -> None:
    rates = {name: Rate(correct=n, n=n) for name, n in FULL.items()}
    rates["irrelevance"] = Rate(correct=0, n=240)
    rates["live_irrelevance"] = Rate(correct=442, n=884)
    groups = bfcl_v4(rates)
    assert groups["non_live"] is not None
    assert groups["live"] is not None
    assert groups["irrelevance"] is not None
    assert (groups["non_live"].value, groups["live"].value, groups["irrelevance"].value) == (1.0, 1.0, 0.25)
    assert "overall" not in groups


def test_always_refusing_scores_what_the_evaluation_document_says() -> None:
    """Non-live 1/5 = 20.0 %, Live 884/2251 = 39.3 % under v3 (39.2 with the older counts)."""
    groups = bfcl_v3(always_refuse({name: Rate(correct=0, n=n) for name, n in FULL.items()}))
    assert set(FULL) == set(CATEGORIES)
    assert groups["non_live"] is not None
    assert groups["live"] is not None
    assert groups["non_live"].value == pytest.approx(0.2)
    assert groups["live"].value == pytest.approx(884 / 2251)


def test_the_standard_error_of_a_mean_is_the_root_of_summed_squares_over_k() -> None:
    mean = mean_score([Score(value=0.2, se=0.03, n=10), Score(value=0.4, se=0.04, n=30)])
    assert mean == Score(value=pytest.approx(0.3), se=pytest.approx(0.025), n=40)
    assert mean_score([]) is None
    assert difference_se(Score(value=0.2, se=0.03, n=1), Score(value=0.4, se=0.04, n=1)) == pytest.approx(0.05)


def test_a_paired_gain_counts_what_changed() -> None:
    """3 gained, 1 lost of 10: gain 0.2, variance (4/10 − 0.04)/10."""
    before = {str(i): i < 5 for i in range(10)}
    after = {**before, "5": True, "6": True, "7": True, "0": False}
    gain = paired_gain(before, after)
    assert gain == Score(value=pytest.approx(0.2), se=pytest.approx(math.sqrt(0.36 / 10)), n=10)
    assert paired_gain({"a": True}, {"b": True}) is None


def test_predictions_are_counted_by_category_and_class() -> None:
    rows = [
        Prediction(benchmark="dev", category=c, id=str(i), point="base", output="", correct=e is None, error_class=e)
        for i, (c, e) in enumerate([("call", None), ("call", "format"), ("no_call", "hallucinated_call")])
    ]
    assert count_rates(rows) == {"call": Rate(correct=1, n=2), "no_call": Rate(correct=0, n=1)}
    assert count_errors(rows) == {"format": 1, "hallucinated_call": 1}


def prediction(benchmark: str, category: str, item: int, correct: bool) -> Prediction:
    return Prediction(
        benchmark=benchmark, category=category, id=f"{category}_{item}", point="base", output="", correct=correct
    )


def test_every_metric_has_its_standard_error_and_its_count() -> None:
    rows = [prediction("dev", "call", i, i < 3) for i in range(4)] + [prediction("dev", "no_call", 0, True)]
    rows += [prediction("bfcl", "simple_python", i, i < 1) for i in range(2)]
    flat = flat_metrics(score_groups(rows))
    assert flat == {
        "dev/accuracy": 0.8,
        "dev/accuracy_se": round(math.sqrt(0.8 * 0.2 / 5), 6),
        "dev/n": 5,
        "dev/call_accuracy": 0.75,
        "dev/call_accuracy_se": round(math.sqrt(0.75 * 0.25 / 4), 6),
        "dev/call_n": 4,
        "dev/no_call_accuracy": 1.0,
        "dev/no_call_accuracy_se": 0.0,
        "dev/no_call_n": 1,
        "bfcl/accuracy": 0.5,
        "bfcl/accuracy_se": round(math.sqrt(0.25 / 2), 6),
        "bfcl/n": 2,
        "bfcl/simple_python/accuracy": 0.5,
        "bfcl/simple_python/accuracy_se": round(math.sqrt(0.25 / 2), 6),
        "bfcl/simple_python/n": 2,
    }


def test_the_v3_groups_appear_once_they_are_whole() -> None:
    rows = [prediction("bfcl", name, i, i == 0) for name in CATEGORIES for i in range(2)]
    scores = score_groups(rows)
    assert scores["bfcl/non_live"].value == pytest.approx(0.5)
    assert scores["bfcl/live"] == Score(value=0.5, se=pytest.approx(math.sqrt(0.25 / 12)), n=12)
    assert "bfcl/multi_turn" not in scores
    assert "bfcl/overall" not in scores
