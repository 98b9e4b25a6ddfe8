"""API-Bank's two published files: their names, and how many questions of each category they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LEVEL_1, LEVEL_2, SEARCH = "level_1", "level_2_call", "level_2_search"
CATEGORIES: Final = (LEVEL_1, LEVEL_2, SEARCH)
FILES: Final[Mapping[str, Mapping[str, int]]] = {
    "level-1-api.json": {LEVEL_1: 399},
    "level-2-api.json": {LEVEL_2: 90, SEARCH: 45},
}


def file_of(uri: str) -> str:
    """The last part of a URI, its query left out."""
    return uri.partition("?")[0].rpartition("/")[2]


def items(uri: str) -> dict[str, int]:
    """Questions by category of the one file that `uri` names, or of both in a folder."""
    named = file_of(uri)
    return {
        category: count
        for file, counts in FILES.items()
        if named not in FILES or named == file
        for category, count in counts.items()
    }
