"""Preference pairs: at every node with two or more visited children, best against worst by Q."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.records import Lineage, PreferencePair
from itrain_pipeline.search.tree import Node

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPair:
    """Two steps from one node; `gap` is how much better the one is."""

    node: Node
    best: Node
    worst: Node
    gap: float
    rank: int = 0
    """0 for the worst step of its node, 1 for the next, and so on."""


def step_pairs(root: Node, settings: RolloutStage, decode: Decode, *, certain: bool = False) -> list[StepPair]:
    """The tree's pairs that pass the filters: the `pairs_per_tree` widest gaps, in tree order.

    `certain`: the better step lies on a right answer, the worse one begins none (`search/certainty.py`).
    """
    found = [pair for pair in _candidates(root, settings, certain) if passes(pair, settings, decode)]
    widest = sorted(range(len(found)), key=lambda i: (-found[i].gap, i))[: settings.pairs_per_tree]
    return [found[i] for i in sorted(widest)]


def _candidates(root: Node, settings: RolloutStage, certain: bool) -> Iterator[StepPair]:
    for node in root.walk():
        visited = [child for child in node.children.values() if child.visits >= settings.min_visits]
        better = [child for child in visited if child.right or not certain]
        if not better:
            continue
        best = max(better, key=lambda n: n.q)
        worse = [child for child in visited if child is not best and (child.wrong or not certain)]
        for rank, worst in enumerate(sorted(worse, key=lambda n: n.q)[: settings.pairs_per_node]):
            yield StepPair(node=node, best=best, worst=worst, gap=best.q - worst.q, rank=rank)


def passes(pair: StepPair, settings: RolloutStage, decode: Decode) -> bool:
    """The filters: gap, value of the better step, overlap of the two texts."""
    return (
        pair.gap > 0  # equal values prefer nothing, whatever minGap says
        and pair.gap >= settings.min_gap
        and pair.best.q >= settings.min_best
        and word_overlap(decode(pair.best.step_ids), decode(pair.worst.step_ids)) <= settings.max_overlap
    )


def word_overlap(first: str, second: str) -> float:
    """Shared words over all words of the longer text, words counted as often as they stand: 1.0 for equal texts."""
    a, b = Counter(first.split()), Counter(second.split())
    longer = max(a.total(), b.total())
    return (a & b).total() / longer if longer else 1.0


def build_pair(pair: StepPair, *, prompt_ids: tuple[int, ...], lineage: Lineage) -> PreferencePair:
    """Only the diverging steps are chosen and rejected; what they share is context. Nothing is appended to a step."""
    place = f"{pair.node.name() or 'root'}{f'~{pair.rank}' if pair.rank else ''}"
    return PreferencePair(
        id=f"{lineage.sample_id}/i{lineage.iteration}/{place}",
        prompt_ids=prompt_ids,
        shared_ids=pair.node.answer_ids(),
        chosen_ids=pair.best.step_ids,
        rejected_ids=pair.worst.step_ids,
        chosen_q=pair.best.q,
        rejected_q=pair.worst.q,
        chosen_visits=pair.best.visits,
        rejected_visits=pair.worst.visits,
        lineage=lineage,
    )
