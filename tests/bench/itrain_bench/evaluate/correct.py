"""Whether the judging is right: gold answers through parser and official checkers, and planted mistakes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from itrain_pipeline.evals.bfcl import judge, load_items
from itrain_pipeline.evals.bfcl_data import BfclItem
from itrain_pipeline.evals.dialogues import Sandbox, read_turns
from itrain_pipeline.toolcalls.parse import parse
from itrain_pipeline.toolcalls.serialise import serialise
from itrain_testing.bfclgold import gold_answer, gold_dialogues
from itrain_testing.planting import count_planted

Figures = dict[str, float | int | str]
NAMES = ("parameter_name", "tool_name")
"""Classes of which a part cannot be told from another: a renamed optional parameter is an extra one."""


def gold_figures(items: Sequence[BfclItem]) -> Figures:
    """Gold answers of single-turn items, written in our call format and read again by our parser."""
    begun = time.perf_counter()
    asked = [item for item in items if item.possible_answers]
    valid = 0
    for item in asked:
        read = parse(serialise(gold_answer(item), "pythonic"), "pythonic")
        valid += judge(item, read.calls, well_formed=read.error is None).correct
    return {
        "gold_ast_valid": valid,
        "gold_ast_items": len(asked),
        "gold_ast_s": time.perf_counter() - begun,
    }


def dialogue_figures(every: int = 1) -> Figures:
    """Every n-th gold dialogue, through the sandbox."""
    gold = dict(list(gold_dialogues().items())[::every])
    begun = time.perf_counter()
    with Sandbox() as sandbox:
        valid = sum(sandbox.judge(name, read_turns(turns, "pythonic")).valid for name, turns in gold.items())
    return {
        "gold_multiturn_valid": valid,
        "gold_multiturn_items": len(gold),
        "gold_multiturn_s": time.perf_counter() - begun,
    }


def mutation_figures(items: Sequence[BfclItem]) -> Figures:
    """`attribution_min` is the least share of a class that gets its name, without the two of `NAMES`."""
    begun = time.perf_counter()
    tally = count_planted(items)
    shares = {kind: tally.share(kind) for kind in tally.planted}
    return {
        "mutations": tally.planted.total(),
        "mutation_leaks": len(tally.leaks),
        "attribution_min": min(share for kind, share in shares.items() if kind not in NAMES),
        "attribution_names_min": min(share for kind, share in shares.items() if kind in NAMES),
        **{f"planted_{kind}": count for kind, count in tally.planted.items()},
        **{f"attribution_{kind}": share for kind, share in shares.items()},
        "mutations_s": time.perf_counter() - begun,
    }


def correct_figures(every: int = 1) -> Figures:
    items = load_items()[::every]
    return {**gold_figures(items), **dialogue_figures(every), **mutation_figures(items)}
