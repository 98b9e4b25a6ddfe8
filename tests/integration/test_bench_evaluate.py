"""The evaluation bench, small: that its keys are there and its counts are right, not how fast anything is."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import itrain_testing.mutations as generator
from itrain_bench.evaluate.__main__ import AT_LEAST, AT_MOST, bench
from itrain_bench.evaluate.correct import Figures
from itrain_bench.evaluate.speed import ARMS, Size
from itrain_pipeline.evals.errors import ErrorClass

EVERY = 25


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Every 25th gold answer and mistake, and three items on the transformers engine."""
    folder = tmp_path_factory.mktemp("bench")
    return bench(
        folder, ("correct", "speed"), Size(items=3, dialogues=0), threads=1, every=EVERY, engines=("transformers",)
    )


def test_the_keys_that_are_wanted_are_there_and_flat(figures: Figures) -> None:
    assert {*AT_LEAST, *AT_MOST, "items_per_s", "items_per_s_unbatched", "tokens_per_item"} <= figures.keys()
    assert all(isinstance(value, str | int | float) for value in figures.values())
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_gold_is_right_and_planted_mistakes_are_not(figures: Figures) -> None:
    """Of every 25th item none is among the seven whose gold is defective."""
    assert figures["gold_ast_valid"] == figures["gold_ast_items"]
    assert figures["gold_multiturn_valid"] == figures["gold_multiturn_items"] == 800 / EVERY
    assert figures["mutation_leaks"] == 0
    assert int(figures["mutations"]) > 22_000 / EVERY * 0.9
    assert 0.9 <= float(figures["attribution_names_min"]) <= 1.0
    assert 0.9 <= float(figures["attribution_min"]) <= 1.0


def test_batches_compute_what_single_requests_do_and_a_cache_less(figures: Figures) -> None:
    for end in ARMS:
        assert float(figures[f"items_per_s{end}"]) > 0
    assert figures["requests"] == figures["items"] == 3
    assert float(figures["tokens_per_item"]) < float(figures["tokens_per_item_uncached"])
    assert figures["tokens_per_item_uncached"] == figures["tokens_per_item_unbatched_uncached"]


def test_the_generator_of_mistakes_shares_no_code_with_what_names_them() -> None:
    tree = ast.parse(Path(generator.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not [name for name in imported if name and name.startswith("itrain")]
    assert set(generator.PLANTERS) < {error.value for error in ErrorClass}
