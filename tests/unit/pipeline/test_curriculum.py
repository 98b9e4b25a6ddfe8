"""Buckets by fall-through over tools, their compact JSON, and calls."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from itrain_contract.stagespec import BucketLimits, Curriculum
from itrain_pipeline.data.curriculum import bucket_of, tools_text
from itrain_pipeline.evals import bfcl


def tools(count: int, chars: int) -> list[dict[str, Any]]:
    """`count` tools whose compact JSON has exactly `chars` characters."""
    made = [{"name": f"t{i}", "description": ""} for i in range(count)]
    made[0]["description"] = "é" * (chars - len(tools_text(made)))
    assert len(tools_text(made)) == chars
    return made


@pytest.mark.parametrize(
    ("count", "chars", "calls", "bucket"),
    [
        (1, 999, 1, "easy"),
        (1, 999, 0, "easy"),
        (1, 1000, 1, "medium"),
        (2, 999, 1, "medium"),
        (1, 999, 2, "medium"),
        (3, 1999, 3, "medium"),
        (3, 2000, 3, "hard"),
        (4, 500, 1, "hard"),
        (1, 500, 4, "hard"),
    ],
)
def test_one_limit_that_does_not_hold_falls_through_to_the_next_bucket(
    count: int, chars: int, calls: int, bucket: str
) -> None:
    assert bucket_of(tools(count, chars), calls, Curriculum()) == bucket


def test_the_limits_come_from_the_spec() -> None:
    wide = Curriculum(easy=BucketLimits(max_tools=9, max_tool_chars=9000, max_calls=9))
    assert bucket_of(tools(4, 5000), 4, wide) == "easy"


def test_bfcls_answered_questions_fall_into_the_measured_buckets() -> None:
    """762 / 785 / 954 of 2,501; with a blank behind every separator it would be 756 / 772 / 973."""
    counts = Counter(
        bucket_of(item.functions, len(item.possible_answers), Curriculum())
        for item in bfcl.load_items()
        if item.possible_answers
    )
    assert sum(counts.values()) == 2501
    assert (counts["easy"], counts["medium"], counts["hard"]) == (762, 785, 954)
