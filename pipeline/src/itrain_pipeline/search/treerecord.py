"""One searched tree in numbers and, clipped, as a picture: what counters are summed from and the report draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from itrain_pipeline.errors import DataError
from itrain_pipeline.search.mcts import StopReason
from itrain_pipeline.search.pairs import StepPair
from itrain_pipeline.search.puct import sibling_priors
from itrain_pipeline.search.tree import Node

MAX_NODES = 64
"""Nodes that a record draws. Those of pairs and those visited most come first, so a large tree stays readable."""
MAX_TEXT = 240
"""Characters of a step, a question or a truth that a record keeps."""

Role = Literal["", "chosen", "rejected"]
Standing = Literal["", "right", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One step as it is drawn. `parent` is its parent's place in the list, -1 for the root, which comes first."""

    parent: int
    text: str
    tokens: int
    visits: int
    q: float
    prior: float
    reward: float | None
    """Of the answer that ended here."""
    ending: str
    """`stop`, `length`, or empty where no answer ended."""
    standing: Standing
    """What the ground truth says: on a sampled right answer, the beginning of none, or empty for neither."""
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRecord:
    """One tree in numbers. Tokens are those that its requests asked for, cached or not.

    n completions of one prompt are n sequences and ask for its tokens n times. Requests are those for completions;
    judgements are counted beside them.
    """

    sample_id: str
    reason: StopReason
    simulations: int
    nodes: int
    expanded: int
    answers: int
    best_reward: float
    mean_reward: float
    pairs: int
    requests: int
    judge_calls: int
    prompt_tokens: int
    decoded_tokens: int
    sequences: int = 0
    memo_hits: int = 0
    """Answers whose value was known already."""
    duplicate_requests: int = 0
    """(prompt, seed) asked for twice: always 0, counted to be seen."""
    merged_actions: int = 0
    """Steps that were sampled again where they stood already."""
    reached: bool | None = None
    """Whether a right answer was sampled; None where the ground truth does not decide alone."""
    retries: int = 0
    freed_simulations: int = 0
    extra_simulations: int = 0
    """What it was given of those that other trees had freed."""
    prompt_length: int = 0
    node_tokens: int = 0
    """Tokens of all steps, each node once."""
    truth_tokens: int = 0
    """Of the ground truth, where the judge read it."""
    judged: int = 0
    judged_tokens: int = 0
    """Different answers that the judge read, and their tokens."""
    question: str = ""
    truth: str = ""
    drawn: tuple[NodeRecord, ...] = ()


def tree_record(data: dict[str, Any]) -> TreeRecord:
    """The record that `dataclasses.asdict` turned into JSON."""
    drawn = tuple(NodeRecord(**node) for node in data.get("drawn") or ())
    return TreeRecord(**{**data, "drawn": drawn})


def read_trees(path: Path) -> Iterator[TreeRecord]:
    """The records of a `trees.jsonl`, without fields that this version does not know. DataError for any other row."""
    known = set(TreeRecord.__dataclass_fields__)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row: Mapping[str, Any] = json.loads(line)
                yield tree_record({name: value for name, value in row.items() if name in known})
            except (json.JSONDecodeError, TypeError, AttributeError) as error:
                raise DataError(f"trees.jsonl: a row is not a TreeRecord: {error}") from error


def draw(root: Node, pairs: Sequence[StepPair], decode: Callable[[Sequence[int]], str]) -> tuple[NodeRecord, ...]:
    """At most MAX_NODES nodes, each behind its parent: those on the way to a pair, then the most visited ones."""
    roles: dict[int, Role] = {}
    for pair in pairs:
        roles[id(pair.best)], roles[id(pair.worst)] = "chosen", "rejected"
    wanted = {id(node) for pair in pairs for step in (pair.best, pair.worst) for node in step.path()}
    nodes = list(root.walk())
    ranked = sorted(range(len(nodes)), key=lambda i: (id(nodes[i]) not in wanted, -nodes[i].visits, i))
    kept = [nodes[i] for i in sorted(ranked[:MAX_NODES])]  # an ancestor ranks no lower, so none is missing
    places = {id(node): place for place, node in enumerate(kept)}
    priors = {id(child): prior for node in kept for child, prior in _priors(node)}
    return tuple(
        NodeRecord(
            parent=-1 if node.parent is None else places[id(node.parent)],
            text=clip(decode(node.step_ids)),
            tokens=len(node.step_ids),
            visits=node.visits,
            q=round(node.q, 4),
            prior=round(priors.get(id(node), 1.0), 4),
            reward=None if node.reward is None else round(node.reward, 4),
            ending=node.ending or "",
            standing="right" if node.right else "wrong" if node.wrong else "",
            role=roles.get(id(node), ""),
        )
        for node in kept
    )


def _priors(node: Node) -> list[tuple[Node, float]]:
    children = list(node.children.values())
    if not children:
        return []
    return list(zip(children, sibling_priors([child.mean_logprob for child in children]), strict=True))


def clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
