"""The dev split: whole components of shared tools, never single rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itrain_pipeline.data.splits import components, split_dev
from itrain_pipeline.errors import DataError
from itrain_pipeline.records import Example, Message


def example(row: int, *names: str) -> Example:
    return Example(
        id=f"train-{row:06d}-1",
        messages=(Message(role="user", content="?"),),
        tools=tuple({"name": name} for name in names),
        answer="x",
        calls=(),
        bucket="easy",
        source="s",
    )


def groups(examples: list[Example]) -> list[str]:
    return [one.id for one in examples]


def test_rows_are_linked_over_other_rows() -> None:
    assert components([["a"], ["b"], ["a", "c"], [], ["c"], []]) == [[0, 2, 4], [1], [3], [5]]


def test_small_components_fill_dev_and_the_largest_trains() -> None:
    rows = [example(i, "big", f"own{i}") for i in range(90)] + [example(90 + i, f"small{i // 2}") for i in range(10)]
    train, dev = split_dev(rows, groups(rows), 0.05, seed=1)
    assert len(dev) == 6
    assert not {t["name"] for e in train for t in e.tools} & {t["name"] for e in dev for t in e.tools}
    assert {e.id for e in rows[:90]} <= {e.id for e in train}
    assert [e.id for e in train] == sorted(e.id for e in train)
    assert (train, dev) == split_dev(rows, groups(rows), 0.05, seed=1)
    assert dev != split_dev(rows, groups(rows), 0.05, seed=2)[1]


def test_turns_of_one_dialogue_stay_together_without_tools() -> None:
    rows = [example(i) for i in range(12)]
    train, dev = split_dev(rows, [f"d{i // 3}" for i in range(12)], 0.25, seed=1)
    assert len(dev) == 3
    assert len(train) == 9
    assert len({int(e.id.split("-")[1]) // 3 for e in dev}) == 1


@pytest.mark.parametrize("rows", [[example(i, "same") for i in range(50)], [], [example(0, "a")]])
def test_too_few_components_are_an_error_that_names_the_remedy(rows: list[Example]) -> None:
    with pytest.raises(DataError, match=r"data\.devFraction.*share no tool.*data\.dev"):
        split_dev(rows, groups(rows), 0.1, seed=1)


def test_a_component_much_larger_than_wanted_is_not_given_away() -> None:
    rows = [example(i, "a") for i in range(50)] + [example(50 + i, "b") for i in range(40)]
    with pytest.raises(DataError, match="the small ones give 0 dev rows where 9 are wanted"):
        split_dev(rows, groups(rows), 0.1, seed=1)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.lists(st.integers(0, 15), max_size=3), min_size=1, max_size=40), fraction=st.floats(0.05, 0.5))
def test_no_tool_is_on_both_sides_and_no_row_is_lost(names: list[list[int]], fraction: float) -> None:
    rows = [example(i, *(f"t{n}" for n in own)) for i, own in enumerate(names)]
    try:
        train, dev = split_dev(rows, groups(rows), fraction, seed=3)
    except DataError:
        return
    assert sorted(e.id for e in (*train, *dev)) == [e.id for e in rows]
    assert not {t["name"] for e in train for t in e.tools} & {t["name"] for e in dev for t in e.tools}
    assert train
    assert dev
