"""Rare words of toolworld: enumerations whose phrase says nothing of the value's spelling.

The quickstart's model met none of them. A value stands in the tool's schema, but which phrase asks for it must be
learned, phrase by phrase: what the long tail of tool-call data is made of. All splits share them, as they share the
other concepts' phrases; tools and open values stay apart.
"""

from __future__ import annotations

from typing import Final

from itrain_pipeline.data.toolworld_words import Concept


def _rare(key: str, names: tuple[str, str], description: str, *choices: tuple[str, str]) -> Concept:
    return Concept(key=key, json_type="string", kind="choice", names=names, description=description, choices=choices)


RARE_CONCEPTS: Final[tuple[Concept, ...]] = (
    _rare(
        "seat", ("seat", "spot"), "seat",
        ("with a view outside", "window"), ("where I can get out", "aisle"),
        ("right between two others", "middle"), ("with nobody beside me", "single"),
    ),
    _rare(
        "payment", ("payment", "pay"), "how it is paid",
        ("with my plastic", "card"), ("with notes and coins", "cash"),
        ("straight from my bank", "transfer"), ("with a paper slip", "cheque"),
    ),
    _rare(
        "repeat", ("repeat", "rhythm"), "how often it repeats",
        ("each morning anew", "daily"), ("once in seven days", "weekly"),
        ("twelve times a year", "monthly"), ("only this one time", "never"),
    ),
    _rare(
        "colour", ("colour", "paint"), "colour",
        ("like fresh grass", "green"), ("like a clear sky", "blue"),
        ("like blood", "red"), ("like snow", "white"),
    ),
    _rare(
        "season", ("season", "quarter"), "season",
        ("when it snows", "winter"), ("when buds open", "spring"),
        ("when it is hottest", "summer"), ("when leaves fall", "autumn"),
    ),
    _rare(
        "access", ("access", "visibility"), "who can see it",
        ("for all eyes", "public"), ("for my eyes only", "private"),
        ("for my colleagues", "team"), ("for those I name", "invited"),
    ),
)  # fmt: skip
