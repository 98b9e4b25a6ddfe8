"""One iteration of the learning bench's quick size: it must not leave the model worse than its warm-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_bench.learning.measure import QUICK, seed_arms
from itrain_bench.learning.stats import paired_gain

pytestmark = pytest.mark.e2e


def test_an_iteration_loses_nothing_beyond_doubt(tmp_path: Path) -> None:
    arms = seed_arms(QUICK, tmp_path, QUICK.seeds[0])
    warmed = arms.warmup()
    found = arms.variant("gate", QUICK.method(), Path(warmed["adapter"]))
    assert found["right"] != warmed["right"]
    gain = paired_gain([found["right"]], [warmed["right"]])
    assert gain.high >= 0, f"{gain.mean:+.1f} points, 95 % from {gain.low:+.1f} to {gain.high:+.1f}"
