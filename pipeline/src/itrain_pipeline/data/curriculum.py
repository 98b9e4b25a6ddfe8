"""Difficulty buckets: easy, medium, hard, by fall-through (method document, section 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from itrain_contract.stagespec import BucketLimits, Curriculum
from itrain_pipeline.records import Bucket


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools as compact JSON: the text whose length decides, and the one that prompts hold."""
    return json.dumps(list(tools), ensure_ascii=False, separators=(",", ":"))


def bucket_of(tools: Sequence[Mapping[str, Any]], calls: int, limits: Curriculum) -> Bucket:
    """Easy if all three limits hold, else medium if all three of medium hold, else hard.

    `calls` is the number of calls in the answer, 0 for plain text.
    """
    length = len(tools_text(tools))
    if _holds(limits.easy, len(tools), length, calls):
        return "easy"
    return "medium" if _holds(limits.medium, len(tools), length, calls) else "hard"


def _holds(limits: BucketLimits, tools: int, tool_chars: int, calls: int) -> bool:
    return tools <= limits.max_tools and tool_chars < limits.max_tool_chars and calls <= limits.max_calls
