"""What makes the search cheap, each a switch: all on by default, turned off one at a time by measurements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Levers:
    """Frozen and typed; nothing in a spec sets these, and with all of them off the search is the textbook's."""

    fork: bool = True
    """One request for all completions of a node, forked from one prefill; else one request for each."""
    merge: bool = True
    """Identical actions are one node with all their visits; else every completion is a branch of its own."""
    memo: bool = True
    """A text is judged once in a tree; else whenever it ends an answer."""
    judge_together: bool = True
    """Judgements of siblings are in the engine's batch at once; else one after the other."""
    early_stop: bool = True
    """A tree ends when nothing more is to be learnt; else with its budget."""
    prune: bool = True
    """Branches in which nothing can be asked for, or nothing right can follow, leave the candidates."""
    hand_over: bool = True
    """Simulations that a tree did not need go to trees that still disagree."""
    neighbours: bool = True
    """Samples with the same tools are searched one after the other."""
    simulations_in_flight: int = 1
    """Simulations of one tree at a time (WU-UCT). More than one fills an engine with few trees, and makes a tree
    depend on which answer came first."""


ALL_OFF = Levers(
    fork=False,
    merge=False,
    memo=False,
    judge_together=False,
    early_stop=False,
    prune=False,
    hand_over=False,
    neighbours=False,
)
