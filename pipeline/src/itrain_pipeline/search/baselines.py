"""What a search must beat: pairs from the same number of completions, all sampled from the root.

`bestOfN` prefers the best whole answer to the worst; `firstDivergence` prefers, at the step where these two part, the
step of the better one. `mcts` goes through the same two functions, so that a stage knows one way only.
"""

from __future__ import annotations

from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.search.pairs import Decode, StepPair, passes, step_pairs
from itrain_pipeline.search.tree import Node


def method_settings(settings: RolloutStage) -> RolloutStage:
    """The same completions as one expansion of the root, and one pair of it; `mcts` is left as it is."""
    if settings.method == "mcts":
        return settings
    completions = settings.actions * settings.simulations
    changed = {"actions": completions, "simulations": 1, "pairs_per_node": 1}
    if settings.method == "bestOfN":
        changed["depth"] = 1
    return settings.model_copy(update=changed)


def method_pairs(root: Node, settings: RolloutStage, decode: Decode, *, certain: bool = False) -> list[StepPair]:
    """The pairs of a tree that was grown with `method_settings`."""
    if settings.method != "firstDivergence":
        return step_pairs(root, settings, decode, certain=certain)
    pair = first_divergence(root)
    if pair is None or not passes(pair, settings, decode) or (certain and not (pair.best.right and pair.worst.wrong)):
        return []
    return [pair]


def first_divergence(root: Node) -> StepPair | None:
    """The best and the worst answer by reward, at the node where they part; None when all answers are one."""
    ends = [node for node in root.walk() if node.ending is not None]
    if len(ends) < 2:
        return None
    best = max(ends, key=lambda node: node.q)
    worst = min(ends, key=lambda node: node.q)
    if best is worst:
        return None
    above = {id(node) for node in best.path()}
    shared = next(node for node in worst.path() if id(node) in above)
    return StepPair(
        node=shared, best=_child_towards(best, shared), worst=_child_towards(worst, shared), gap=best.q - worst.q
    )


def _child_towards(node: Node, ancestor: Node) -> Node:
    return next(n for n in node.path() if n.parent is ancestor)
