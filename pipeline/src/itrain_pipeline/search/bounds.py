"""The fewest tokens that an engine must read and write for a tree (method document, "Lower bounds")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Bounded(Protocol):
    """The numbers of a tree record that the bound is made of."""

    @property
    def prompt_length(self) -> int: ...
    @property
    def node_tokens(self) -> int: ...
    @property
    def truth_tokens(self) -> int: ...
    @property
    def judged(self) -> int: ...
    @property
    def judged_tokens(self) -> int: ...


def limit_tokens(tree: Bounded) -> int:
    """L = prompt + Σ node tokens, and where the judge is used + ground truth + Σ different answers + 1 a judgement.

    Every token of the tree is read or written once: no engine that finds this tree needs fewer. The rubric is shared
    by all trees, and labels and question around the answers are left out, so that the bound is one.
    """
    judged = tree.truth_tokens + tree.judged_tokens + tree.judged if tree.judged else 0
    return tree.prompt_length + tree.node_tokens + judged


def over_limit(engine_tokens: float, trees: Iterable[Bounded]) -> float:
    """How many times the limit was spent; `engine_tokens` = computed prompt tokens + decoded ones."""
    return engine_tokens / sum(map(limit_tokens, trees))
