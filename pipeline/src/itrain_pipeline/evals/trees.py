"""Which searched trees the report shows: the widest gap, one without a good answer, one without a pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.records import Example, from_dict
from itrain_pipeline.search.treerecord import NodeRecord, TreeRecord, read_trees

Fetch = Callable[[ArtifactRef], Path]


class Why(StrEnum):
    """Why a tree is shown."""

    GAP = "the widest gap between chosen and rejected"
    FAILED = "no good answer was found"
    NO_PAIR = "no pair came of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTree:
    """A tree with the example that it was searched for; None where the data no longer holds it."""

    iteration: int
    why: Why
    record: TreeRecord
    example: Example | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The tree records of one iteration."""

    iteration: int
    records: tuple[TreeRecord, ...]


def collect_records(results: Sequence[StageResult], fetch: Fetch) -> tuple[Searched, ...]:
    """All tree records by iteration. Raises DataError for a row that is none."""
    found: dict[int, list[TreeRecord]] = {}
    for result in results:
        if result.kind == StageKind.ROLLOUT and "trees.jsonl" in result.outputs:
            found.setdefault(result.iteration, []).extend(read_trees(fetch(result.outputs["trees.jsonl"])))
    return tuple(Searched(iteration=i, records=tuple(records)) for i, records in sorted(found.items()))


def collect_trees(searched: Sequence[Searched], results: Sequence[StageResult], fetch: Fetch) -> tuple[ShownTree, ...]:
    """The chosen trees, with their examples from what prepare left."""
    chosen = [(one.iteration, why, record) for one in searched for why, record in choose(one.records)]
    examples = _examples({record.sample_id for _, _, record in chosen}, results, fetch)
    return tuple(
        ShownTree(iteration=iteration, why=why, record=record, example=examples.get(record.sample_id))
        for iteration, why, record in chosen
    )


def choose(records: Sequence[TreeRecord]) -> list[tuple[Why, TreeRecord]]:
    """At most one tree for each reason, each tree once; among equals the one with more nodes, then by id."""
    drawn = sorted((r for r in records if r.drawn), key=lambda r: (-r.nodes, r.sample_id))
    found: list[tuple[Why, TreeRecord]] = []
    orders: tuple[tuple[Why, Callable[[TreeRecord], bool], Callable[[TreeRecord], float]], ...] = (
        (Why.GAP, lambda r: widest_gap(r.drawn) > 0, lambda r: -widest_gap(r.drawn)),
        (Why.FAILED, _nothing_good, lambda r: r.best_reward),
        (Why.NO_PAIR, lambda r: not r.pairs, lambda r: -r.simulations),
    )
    for why, fits, order in orders:
        taken = {record.sample_id for _, record in found}
        fitting = sorted((r for r in drawn if r.sample_id not in taken and fits(r)), key=order)
        found += [(why, record) for record in fitting[:1]]
    return found


def _nothing_good(record: TreeRecord) -> bool:
    """No right answer where the ground truth decides, else none that was worth more than nothing."""
    standings = {node.standing for node in record.drawn}
    return "right" not in standings and ("wrong" in standings or record.best_reward <= 0.0)


def widest_gap(nodes: Sequence[NodeRecord]) -> float:
    """The largest difference of Q between a chosen and a rejected child of one node; 0.0 without such."""
    best: dict[int, float] = {}
    worst: dict[int, float] = {}
    for node in nodes:
        if node.role == "chosen":
            best[node.parent] = max(node.q, best.get(node.parent, node.q))
        elif node.role == "rejected":
            worst[node.parent] = min(node.q, worst.get(node.parent, node.q))
    return max((best[at] - worst[at] for at in best if at in worst), default=0.0)


def _examples(wanted: set[str], results: Sequence[StageResult], fetch: Fetch) -> dict[str, Example]:
    """Only the rows asked for are turned into examples: the file may hold 100,000."""
    prepare = next((r for r in results if r.kind == StageKind.PREPARE and "train.jsonl" in r.outputs), None)
    found: dict[str, Example] = {}
    if prepare is None or not wanted:
        return found
    with fetch(prepare.outputs["train.jsonl"]).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("id") in wanted:
                found[row["id"]] = from_dict(Example, row)
    return found
