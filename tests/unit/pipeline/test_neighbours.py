"""Samples with the same tools are searched side by side; apart from that the hardest come first."""

from __future__ import annotations

from itrain_pipeline.records import Example
from itrain_pipeline.search.order import common_length, neighbours

SYSTEM = tuple(range(100, 140))


def example(name: str, *prompt: int) -> Example:
    return Example(
        id=name,
        messages=(),
        tools=(),
        answer="",
        calls=(),
        bucket="easy",
        source="test",
        prompt_ids=(*SYSTEM, *prompt),
    )


def test_those_with_the_same_tools_are_neighbours_and_groups_come_by_their_hardest() -> None:
    weather, mail = (1, 2, 3, 4), (5, 6, 7, 8)
    given = [
        example("a", *mail, 20),
        example("b", *weather, 21),
        example("c", 9, 9, 9, 9, 22),
        example("d", *weather, 22),
        example("e", *mail, 23),
    ]
    assert [e.id for e in neighbours(given)] == ["a", "e", "b", "d", "c"]


def test_what_all_prompts_share_makes_nobody_a_neighbour() -> None:
    given = [example(name, number, 50, 51) for name, number in zip("abcd", (4, 2, 3, 1), strict=True)]
    assert neighbours(given) == given


def test_nothing_is_lost_or_made_up() -> None:
    assert neighbours([]) == []
    given = [example(str(n), n % 3, n % 2, n) for n in range(30)]
    found = neighbours(given)
    assert sorted(e.id for e in found) == sorted(e.id for e in given)
    assert neighbours([example("x", 1), example("y", 1)])[0].id == "x"  # equal prompts keep their order


def test_common_beginnings() -> None:
    assert common_length((1, 2, 3), (1, 2, 4)) == 2
    assert common_length((1, 2), (1, 2, 4)) == 2
    assert common_length((), (1,)) == 0
