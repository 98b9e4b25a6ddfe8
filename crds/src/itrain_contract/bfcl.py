"""BFCL's categories: what a spec may name, and how many questions each has in the pinned bfcl-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NON_LIVE_ITEMS = {
    "simple_python": 400,
    "simple_java": 100,
    "simple_javascript": 50,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
}
LIVE_ITEMS = {
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
    "live_irrelevance": 884,
    "live_relevance": 16,
}
MULTI_TURN_ITEMS = {
    "multi_turn_base": 200,
    "multi_turn_miss_func": 200,
    "multi_turn_miss_param": 200,
    "multi_turn_long_context": 200,
}
DIALOGUE_REQUESTS = {
    "multi_turn_base": 9.4,
    "multi_turn_miss_func": 10.4,
    "multi_turn_miss_param": 10.4,
    "multi_turn_long_context": 9.7,
}
"""Of a dialogue that goes as its solution does, one call a step, in the mean: a request for every call, and one more in
every turn for the answer that ends it. A test holds them against the package."""
DIALOGUE_PROMPT_CHARS = 22_000
"""Of a dialogue's first prompt, in the mean: the tools' JSON."""
ITEMS: Mapping[str, int] = {**NON_LIVE_ITEMS, **LIVE_ITEMS}
"""The single-turn ones in BFCL's order; a test holds the numbers against the package."""
CATEGORIES = tuple(ITEMS)
MULTI_TURN = tuple(MULTI_TURN_ITEMS)
ALL_ITEMS: Mapping[str, int] = {**ITEMS, **MULTI_TURN_ITEMS}
COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "non_live": tuple(NON_LIVE_ITEMS),
    "live": tuple(LIVE_ITEMS),
    "single_turn": CATEGORIES,
    "multi_turn": MULTI_TURN,
}


def opened(names: Sequence[str]) -> tuple[str, ...]:
    """The categories named, collections opened, in BFCL's order; the single-turn ones for no name. Unknown names are
    left out."""
    wanted = {one for name in names or ("single_turn",) for one in COLLECTIONS.get(name, (name,))}
    return tuple(category for category in (*CATEGORIES, *MULTI_TURN) if category in wanted)
