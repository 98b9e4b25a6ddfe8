"""The rows that stages exchange, and how they are written.

Every record is a frozen dataclass; files are JSON lines (UTF-8, one object a line, keys in field order), so that
equal records give equal bytes and a pair set can be named by its sha256.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Role = Literal["system", "user", "assistant", "tool"]
Bucket = Literal["easy", "medium", "hard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One parsed call. `arguments` keeps the written order and holds JSON values only."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One assistant turn with a target: its history as context and the ground truth.

    `prompt_ids` end where the answer begins; `answer_ids` include the end-of-turn token. Every later stage uses these
    ids as they are, so score, rollout, train and evaluate cannot render differently.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    answer: str
    calls: tuple[ToolCall, ...]
    bucket: Bucket
    source: str
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()

    @property
    def has_call(self) -> bool:
        return bool(self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that `prepare` could not use: where it stood and why."""

    source: str
    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredExample:
    """Perplexity of a ground-truth answer; `logprobs` are its tokens' natural-log probabilities."""

    id: str
    perplexity: float
    tokens: int
    has_call: bool
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a preference pair comes from; enough to make it again."""

    sample_id: str
    iteration: int
    adapter_sha256: str
    template_sha256: str
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """One step preference at one node of one tree (method document, section 3).

    `prompt_ids + shared_ids` is the context; `chosen_ids` and `rejected_ids` are only the diverging steps. No
    end-of-turn token is added after a partial step.
    """

    id: str
    prompt_ids: tuple[int, ...]
    shared_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_q: float
    rejected_q: float
    chosen_visits: int
    rejected_visits: int
    lineage: Lineage


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One evaluated item, with the raw output."""

    benchmark: str
    category: str
    id: str
    point: str
    output: str
    correct: bool
    error_class: str | None = None
    detail: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Names its question, whatever the point."""
        return self.benchmark, self.category, self.id


R = TypeVar("R")


def to_json(record: Any) -> str:
    """One line of JSON for a record; equal records give equal text."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def from_dict(cls: type[R], data: dict[str, Any]) -> R:
    """The record of type `cls` that `to_json` wrote; raises `TypeError` or `KeyError` on another shape."""
    if cls is Example:
        data = {
            **data,
            "messages": tuple(Message(**m) for m in data["messages"]),
            "tools": tuple(data["tools"]),
            "calls": tuple(ToolCall(**c) for c in data["calls"]),
        }
    if cls is PreferencePair:
        data = {**data, "lineage": Lineage(**data["lineage"])}
    return cls(**{key: tuple(value) if _is_ids(key) else value for key, value in data.items()})


def _is_ids(key: str) -> bool:
    return key.endswith("_ids") or key == "logprobs"


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Write records to `path`, whole or not at all; returns the number of rows."""
    from itrain_pipeline.files import atomic_writer

    count = 0
    with atomic_writer(path) as out:
        for record in records:
            out.write((to_json(record) + "\n").encode())
            count += 1
    return count


def read_jsonl(path: Path, cls: type[R]) -> Iterator[R]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from_dict(cls, json.loads(line))
