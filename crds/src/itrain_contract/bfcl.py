"""BFCL's single-turn categories: what a spec may name, and how many questions each has in the pinned bfcl-eval."""

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
ITEMS: Mapping[str, int] = {**NON_LIVE_ITEMS, **LIVE_ITEMS}
"""In BFCL's order; a test holds the numbers against the package."""
CATEGORIES = tuple(ITEMS)
COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "non_live": tuple(NON_LIVE_ITEMS),
    "live": tuple(LIVE_ITEMS),
    "single_turn": CATEGORIES,
}


def opened(names: Sequence[str]) -> tuple[str, ...]:
    """The categories named, collections opened, in BFCL's order; all for no name. Unknown names are left out."""
    wanted = {one for name in names or ("single_turn",) for one in COLLECTIONS.get(name, (name,))}
    return tuple(category for category in CATEGORIES if category in wanted)
