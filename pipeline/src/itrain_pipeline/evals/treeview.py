"""A searched tree as rows for a template: chains joined, control characters made visible, numbers as texts. Pure.

Everything here is what a model or a data set said: it stays text, and cannot turn the page around.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from itrain_pipeline.evals.trees import ShownTree
from itrain_pipeline.records import Example
from itrain_pipeline.search.treerecord import NodeRecord

MOST_CHARS = 600
"""Of a step, a question or a truth."""
MOST_PROMPT_CHARS = 20_000
"""Of one message or one tool."""
MOST_INDENTS = 6
"""Deeper levels stand below each other: a page has an edge."""
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that show nothing, or turn the direction of what follows."""

REASONS = {
    "agreed": "all completions were one answer",
    "separated": "the order of the steps was settled",
    "quota": "it had its quota of pairs",
    "exhausted": "there was nothing left to expand",
    "decided": "nothing right could still be found, or everything was",
    "budget": "its simulations were spent",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """One step, or a chain of steps without a branch. `bar` is Q from -1 to 1 as (left, width) in per cent."""

    depth: int
    last: bool
    guides: tuple[int, ...]
    """Levels above whose lines go on below this row: their steps have further siblings."""
    steps: tuple[str, ...]
    visits: int
    q: str
    prior: str
    reward: str
    bar: tuple[float, float]
    role: str
    ending: str
    standing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeCard:
    """What is shown of one tree."""

    iteration: int
    title: str
    sample: str
    question: str
    truth: str
    summary: str
    rows: tuple[TreeRow, ...]
    hidden: int
    """Nodes that the record left out."""
    prompt_title: str
    messages: tuple[tuple[str, str], ...]
    tools: tuple[tuple[str, str], ...]


def tree_card(tree: ShownTree) -> TreeCard:
    record, example = tree.record, tree.example
    messages = (
        () if example is None else tuple((m.role, visible(m.content, MOST_PROMPT_CHARS)) for m in example.messages)
    )
    tools = () if example is None else tuple(map(_tool, example.tools))
    return TreeCard(
        iteration=tree.iteration,
        title=tree.why.value[0].upper() + tree.why.value[1:],
        sample=visible(record.sample_id),
        question=visible(record.question),
        truth=visible(record.truth),
        summary=_summary(tree),
        rows=tree_rows(record.drawn),
        hidden=max(0, record.nodes - len(record.drawn)),
        prompt_title=_prompt_title(record.prompt_length, example),
        messages=messages,
        tools=tools,
    )


def _summary(tree: ShownTree) -> str:
    record = tree.record
    counted = ((record.simulations, "simulation"), (record.requests, "request"), (record.decoded_tokens, "token"))
    asked = ", ".join(_plural(count, thing) for count, thing in counted)
    pairs = _plural(record.pairs, "pair") if record.pairs else "no pair"
    ended = REASONS.get(record.reason, record.reason)
    return f"{asked} written; {pairs}; best answer {_signed(record.best_reward)}. It ended because {ended}."


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _prompt_title(tokens: int, example: Example | None) -> str:
    if example is None:
        return ""
    length = f"{tokens or len(example.prompt_ids):,} tokens"
    said, tools = _plural(len(example.messages), "message"), _plural(len(example.tools), "tool")
    return f"The whole prompt: {length}, {said}, {tools}"


def _tool(tool: object) -> tuple[str, str]:
    """Name and definition; what has no name is a tool."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else {}
    name = inner.get("name") if isinstance(inner, dict) else None
    text = json.dumps(tool, ensure_ascii=False, indent=1, default=str)
    return visible(str(name or "tool")), visible(text, MOST_PROMPT_CHARS)


def tree_rows(nodes: Sequence[NodeRecord]) -> tuple[TreeRow, ...]:
    """Rows in tree order, the root first. A step with one child that all its visits went to is joined with it."""
    children: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        children.setdefault(node.parent, []).append(place)
    rows: list[TreeRow] = []
    waiting: list[tuple[int, int, bool, tuple[int, ...]]] = [(place, 0, True, ()) for place in children.get(-1, [])[:1]]
    while waiting:
        place, depth, last, guides = waiting.pop()
        chain = [place]
        while _joins(nodes, chain[-1], children):
            chain.append(children[chain[-1]][0])
        end = chain[-1]
        shown = min(depth, MOST_INDENTS)
        rows.append(_row([nodes[at] for at in chain], depth=shown, last=last, guides=guides))
        below = children.get(end, [])
        lines = guides if last or depth != shown else (*guides, depth)
        waiting += [(child, depth + 1, child == below[-1], lines) for child in reversed(below)]
    return tuple(rows)


def _joins(nodes: Sequence[NodeRecord], place: int, children: dict[int, list[int]]) -> bool:
    """Whether a step says nothing that its only child does not say too. The root stands alone."""
    below, node = children.get(place, []), nodes[place]
    if len(below) != 1 or node.parent == -1 or node.ending:
        return False
    child = nodes[below[0]]
    return child.visits == node.visits and not child.role and child.standing == node.standing


def _row(chain: Sequence[NodeRecord], *, depth: int, last: bool, guides: tuple[int, ...]) -> TreeRow:
    first, end = chain[0], chain[-1]
    width = 50 * min(abs(end.q), 1.0)
    root = first.parent == -1
    return TreeRow(
        depth=depth,
        last=last,
        guides=guides,
        steps=() if root else tuple(visible(node.text) for node in chain),
        visits=first.visits,
        q=_signed(end.q),
        prior="" if root else f"{first.prior:.2f}",
        reward="" if end.reward is None else _signed(end.reward),
        bar=(50.0 if end.q >= 0 else 50.0 - width, width),
        role=first.role,
        ending=end.ending,
        standing="" if root else end.standing,
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def visible(text: str, most: int = MOST_CHARS) -> str:
    """At most `most` characters, none of which is invisible: control and direction marks are written out."""
    kept = text[:most]
    shown = "".join(c if c in "\n\t" or unicodedata.category(c) not in HIDDEN else f"⟨U+{ord(c):04X}⟩" for c in kept)
    left = len(text) - len(kept)
    return f"{shown} … ({left:,} more characters)" if left else shown
