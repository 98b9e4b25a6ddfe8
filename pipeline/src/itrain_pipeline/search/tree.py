"""The search tree: a node is a state, reached from its parent by one step of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from itrain_pipeline.ports import FinishReason

Steps = tuple[tuple[int, ...], ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """`visits` and `value_sum` hold finished visits only; `in_flight` those under way (WU-UCT, arXiv 1810.11755).

    `ending` says how an answer ended here: `stop` is terminal; `length` was cut, is not a finished answer and leaves
    no room to go on. A node is `expanded` once, so that no (state, seed) is ever asked for twice.
    """

    step_ids: tuple[int, ...] = ()
    parent: Node | None = None
    level: int = 0
    mean_logprob: float = 0.0
    ending: FinishReason | None = None
    expanded: bool = False
    reward: float | None = None
    """Reward of the answer that ended here."""
    visits: int = 0
    value_sum: float = 0.0
    in_flight: int = 0
    expanding: bool = False
    """Its completions are under way: whoever comes here waits for them instead of asking again."""
    right: bool = False
    """A right answer was sampled through here."""
    wrong: bool = False
    """No right answer begins like this."""
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        return self.ending == "stop"

    @property
    def q(self) -> float:
        """Mean value; 0.0 before the first visit."""
        return self.value_sum / self.visits if self.visits else 0.0

    @property
    def closed(self) -> bool:
        """There is nothing to ask for here: asked already, ended, or contradicted."""
        return self.expanded or self.ending is not None or self.wrong

    def open_below(self) -> bool:
        """Whether something can still be asked for here or below; what is wrong has nothing right below it."""
        return not self.closed or (not self.wrong and any(child.open_below() for child in self.children.values()))

    def path(self) -> Iterator[Node]:
        """The node and its ancestors, root last."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def answer_ids(self) -> tuple[int, ...]:
        """Token ids of all steps from the root to here: exactly those sampled."""
        steps = [node.step_ids for node in self.path()]
        return tuple(token for step in reversed(steps) for token in step)

    def walk(self) -> Iterator[Node]:
        """The subtree, parents before children, children in the order in which they were found."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def name(self) -> str:
        """Position by child numbers, `0.2.1`; empty for the root."""
        numbers = [list(n.parent.children.values()).index(n) for n in self.path() if n.parent is not None]
        return ".".join(map(str, reversed(numbers)))


def thread_chain(
    node: Node, steps: Steps, logprobs: Sequence[float], ending: FinishReason, *, depth: int, merge: bool = True
) -> Node:
    """Add one completion below `node`, step by step; known beginnings and identical steps are shared.

    `steps` join to the completion's ids, `logprobs` has one entry per id. What lies deeper than `depth` levels from
    the root becomes one last step. Returns the node where the answer ended. Without `merge` every completion is a
    branch of its own, as if identical actions were different ones.
    """
    at = 0
    for step in _limit_levels(steps, depth - node.level):
        child = node.children.get(step) if merge else None
        if child is None:
            span = logprobs[at : at + len(step)]
            child = Node(step_ids=step, parent=node, level=node.level + 1, mean_logprob=sum(span) / len(span))
            node.children[step if merge else (*step, -1 - len(node.children))] = child
        node, at = child, at + len(step)
    if not node.children:
        node.ending = ending
    return node


def _limit_levels(steps: Steps, levels: int) -> Steps:
    """At most `levels` steps: the last takes what remains."""
    if levels < 1:
        raise ValueError("a node at the last level cannot have children")
    if len(steps) <= levels:
        return steps
    rest = tuple(token for step in steps[levels - 1 :] for token in step)
    return (*steps[: levels - 1], rest)


def enter(node: Node) -> None:
    """Count a visit under way on the whole path."""
    for ancestor in node.path():
        ancestor.in_flight += 1


def leave(node: Node) -> None:
    """Take it back: it arrived, or it failed."""
    for ancestor in node.path():
        ancestor.in_flight -= 1


def back_up(node: Node, value: float) -> None:
    """One finished visit of `node` and all its ancestors; Q stays the mean of the values."""
    for ancestor in node.path():
        ancestor.visits += 1
        ancestor.value_sum += value
