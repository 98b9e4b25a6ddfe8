"""What ends a training that ruins the model, decided on its own log (method document, section 4). Pure; no torch.

Two signs: the mean logprob of the chosen steps falls (SimPO only asks that the rejected ones fall further), and greedy
answers to a fixed set of training prompts stop being readable calls. Both are compared with where the training began.
A history is the rows of a training log, of which checkpoints keep a copy: a resumed training knows its start.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from itrain_contract.stagespec import TrainGuards
from itrain_pipeline.records import Example
from itrain_pipeline.toolcalls.parse import parse

CHOSEN, VALIDITY = "chosen_logprob", "validity"
"""Keys of the two figures in a row of the log."""
WINDOW = 8
"""Rows of the log whose mean is compared: single global batches differ by their pairs."""
LEAST_ROWS = 8
"""Rows before the chosen logprob is judged at all."""
MAX_PROBE_TOKENS = 128
"""Longest answer of a probe, whatever its ground truth."""

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Prompts that are answered greedily, and how an answer ends and is read."""

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    call_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Limits as the spec has them (`stages.train.guards`); `probe` None where there is nothing to ask."""

    chosen_logprob_drop: float
    validity_drop: float
    probe_steps: int
    probe: Probe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A guard that says stop: `field` of the spec, the figure now and at the start, and the fall that is allowed."""

    field: str
    what: str
    step: int
    value: float
    start: float
    limit: float
    remedy: str

    def text(self, steps: int) -> str:
        """One line for the user; `steps` are those of the whole training."""
        fall = self.start - self.value
        return (
            f"train.guards.{self.field} stopped the training after step {self.step} of {steps}: {self.what} is "
            f"{self.value:.3f}, {fall:.3f} below its start of {self.start:.3f}; allowed is a fall of "
            f"{self.limit:g}. {self.remedy}, or allow more with train.guards.{self.field}; nothing of this training is "
            "kept, the adapter before it stays as it is"
        )


def check_guards(history: History, guards: Guards) -> Verdict | None:
    """The first guard that the newest row violates, or None."""
    return check_chosen(history, guards.chosen_logprob_drop) or check_validity(history, guards.validity_drop)


def check_chosen(history: History, limit: float) -> Verdict | None:
    """Compare the mean of the last rows with that of the first ones; 0 allows any fall.

    With fewer than 2 · WINDOW rows the windows are halves, so that no row is in both.
    """
    found = [row for row in history if CHOSEN in row]
    if not limit or len(found) < LEAST_ROWS:
        return None
    start, now = chosen_windows(found)
    if start - now <= limit:  # false for NaN as well
        return None
    return Verdict(
        field="chosenLogprobDrop",
        what="the mean logprob of the chosen steps",
        step=int(found[-1]["step"]),
        value=now,
        start=start,
        limit=limit,
        remedy="Lower train.learningRate or give train.nllWeight a value",
    )


def chosen_windows(history: History) -> tuple[float, float]:
    """Mean chosen logprob of the first and of the last rows, at least one each."""
    values = [float(row[CHOSEN]) for row in history if CHOSEN in row]
    width = max(1, min(WINDOW, len(values) // 2))
    return math.fsum(values[:width]) / width, math.fsum(values[-width:]) / width


def check_validity(history: History, limit: float) -> Verdict | None:
    """Compare the newest probe with the first."""
    found = [row for row in history if VALIDITY in row]
    if not found:
        return None
    start, now = float(found[0][VALIDITY]), float(found[-1][VALIDITY])
    if start - now <= limit + 1e-9:  # shares like 11/16 are exact, a limit like 0.3 is not
        return None
    return Verdict(
        field="validityDrop",
        what="the share of readable calls among the probe's greedy answers",
        step=int(found[-1]["step"]),
        value=now,
        start=start,
        limit=limit,
        remedy="Lower train.learningRate or train.epochs",
    )


def guard_figures(history: History) -> dict[str, float]:
    """What the guards saw, by name, for the stage's result: the start, the end, and the lowest point."""
    figures: dict[str, float] = {}
    if any(CHOSEN in row for row in history):
        start, now = chosen_windows(history)
        figures["chosen_logprob_drop"] = start - now
    found = [float(row[VALIDITY]) for row in history if VALIDITY in row]
    if found:
        figures |= {"validity_first": found[0], "validity": found[-1], "validity_lowest": min(found)}
    return figures


def probe_is_due(step: int, steps: int, guards: Guards) -> bool:
    """After every `probe_steps` steps and after the last one."""
    return guards.probe is not None and (step % guards.probe_steps == 0 or step == steps)


def plan_guards(limits: TrainGuards, examples: Iterable[Example], *, call_format: str, seed: int) -> Guards:
    """The guards of a training on these examples; without a call among them nothing is probed."""
    return Guards(
        chosen_logprob_drop=limits.chosen_logprob_drop,
        validity_drop=limits.validity_drop,
        probe_steps=limits.probe_steps,
        probe=choose_probe(examples, limits.probe_rows, call_format=call_format, seed=seed)
        if limits.probe_rows
        else None,
    )


def choose_probe(examples: Iterable[Example], rows: int, *, call_format: str, seed: int) -> Probe | None:
    """The `rows` shortest of four times as many prompts drawn by `seed` among those whose answer is a call.

    An answer may take twice the tokens of the longest ground truth among them, up to MAX_PROBE_TOKENS. None where no
    answer of up to MAX_PROBE_TOKENS is a call.
    """
    calls = (e for e in examples if e.has_call and e.prompt_ids and len(e.answer_ids) <= MAX_PROBE_TOKENS)
    drawn = nsmallest(4 * rows, calls, key=lambda e: hashlib.sha256(f"{seed}/{e.id}".encode()).digest())
    chosen = sorted(drawn, key=lambda e: (len(e.prompt_ids) + len(e.answer_ids), e.id))[:rows]
    if not chosen:
        return None
    return Probe(
        prompts=tuple(e.prompt_ids for e in chosen),
        max_new_tokens=min(MAX_PROBE_TOKENS, 2 * max(len(e.answer_ids) for e in chosen)),
        call_format=call_format,
    )


def guards_from_dict(data: dict[str, Any] | None) -> Guards | None:
    """The inverse of `dataclasses.asdict` after a way through JSON."""
    if data is None:
        return None
    probe = data["probe"]
    if probe is not None:
        probe = Probe(**{**probe, "prompts": tuple(map(tuple, probe["prompts"]))})
    return Guards(**{**data, "probe": probe})


def valid_share(texts: Sequence[str], call_format: str) -> float:
    """Share of answers that are calls which the parser can read."""
    return sum(bool(parse(text, call_format).calls) for text in texts) / len(texts)
