"""How much of a benchmark stands in the training data: the same question, the same tool. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itrain_pipeline.evals.errors import parameter_names
from itrain_pipeline.records import Message

Item = tuple[Sequence[Message], Sequence[Mapping[str, Any]]]
"""(messages, tools) of one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Counts of distinct questions and distinct tool signatures of a benchmark, and those seen in training."""

    questions: int
    questions_seen: int
    tools: int
    tools_seen: int

    def __str__(self) -> str:
        return (
            f"{self.questions_seen} of {self.questions} questions and {self.tools_seen} of {self.tools} tool "
            "signatures are in the training data"
        )


def overlap(benchmark: Iterable[Item], training: Iterable[Item]) -> Overlap:
    """Exact overlap: the last user turn without case and punctuation; a tool's name with its parameter names."""
    questions, tools = _keys(benchmark)
    seen_questions, seen_tools = _keys(training)
    return Overlap(
        questions=len(questions),
        questions_seen=len(questions & seen_questions),
        tools=len(tools),
        tools_seen=len(tools & seen_tools),
    )


def _keys(items: Iterable[Item]) -> tuple[set[str], set[tuple[str, frozenset[str]]]]:
    questions: set[str] = set()
    tools: set[tuple[str, frozenset[str]]] = set()
    for messages, shown in items:
        asked = next((m.content for m in reversed(messages) if m.role == "user"), "")
        questions.add(" ".join(re.findall(r"\w+", asked.lower())))
        tools.update((str(tool.get("name")), parameter_names(tool)) for tool in shown)
    return questions - {""}, tools
