"""Tree rows and forward passes as plain data: what is shared stands once, every pair is in a row once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrain_pipeline.learn.collate import PairRow
from itrain_pipeline.learn.passes import Budget, RowForm, naive_tokens, plan_passes
from itrain_pipeline.learn.treerow import RowSize, answers_of, build_tree_row, scored_answers, shared_length
from itrain_testing.pairtrees import pair_trees


def pair(context: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]) -> PairRow:
    return PairRow(context_ids=context, chosen_ids=chosen, rejected_ids=rejected)


def test_a_row_worked_by_hand() -> None:
    #   1 2 ┬ 3 4 (5)   the steps 3 4 5 and 3 6 share their 3; the second pair goes on after 3 4
    #       │ 3 (6)     in brackets: predicts nothing, so it is not in the row
    #       └ 3 4 ┬ 7 (8)
    #             └ (9)
    row = build_tree_row([pair((1, 2), (3, 4, 5), (3, 6)), pair((1, 2, 3, 4), (7, 8), (9,))])
    assert row.token_ids == (1, 2, 3, 4, 7)
    assert row.positions == (0, 1, 2, 3, 4)
    assert row.ends == (5, 5, 5, 5, 5)
    assert row.predictors == (1, 2, 3, 4)
    assert row.targets == ((0, 3), (1, 4), (1, 6), (2, 5), (2, 7), (2, 9), (3, 8))
    assert row.chosen == ((0, 1, 3), (4, 6))
    assert row.rejected == ((0, 2), (5,))
    assert row.truths == ((), ())


def test_a_right_answer_is_one_more_path_from_the_prompt_and_shares_what_it_can() -> None:
    step = PairRow(context_ids=(1, 2, 3), chosen_ids=(4, 5), rejected_ids=(6,), prompt_ids=(1, 2), truth_ids=(3, 4, 9))
    row = build_tree_row([step])
    assert row.token_ids == (1, 2, 3, 4)
    assert row.targets == ((0, 3), (1, 4), (1, 6), (2, 5), (2, 9))
    assert (row.chosen, row.rejected, row.truths) == (((1, 3),), ((2,),), ((0, 1, 4),))


def test_branches_end_where_the_next_begins_and_have_positions_of_their_own() -> None:
    row = build_tree_row([pair((1,), (2, 3, 9), (4, 5, 9))])
    assert row.token_ids == (1, 2, 3, 4, 5)
    assert row.positions == (0, 1, 2, 1, 2)
    assert row.ends == (5, 3, 3, 5, 5)


@pytest.mark.parametrize("bad", [((), (1,), (2,)), ((1,), (), (2,)), ((1,), (2,), ())])
def test_a_pair_without_context_or_answer_is_refused(bad: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        build_tree_row([pair(*bad)])
    with pytest.raises(ValueError, match="or a prompt and a right answer"):
        build_tree_row([PairRow(truth_ids=(1,))])
    with pytest.raises(ValueError, match="needs pairs"):
        build_tree_row([])


@given(pair_trees(most=1, truths=None))
def test_each_token_s_ancestors_are_the_row_in_which_it_would_stand_alone(trees: list[list[PairRow]]) -> None:
    (pairs,) = trees
    row = build_tree_row(pairs)
    for number, found in enumerate(pairs):
        sides = (row.chosen[number], row.rejected[number], row.truths[number])
        assert [bool(terms) for terms in sides] == [answer is not None for answer in answers_of(found)]
        for (context, answer), terms in zip(scored_answers(found), filter(None, sides), strict=True):
            assert tuple(row.targets[term][1] for term in terms) == answer
            for at, term in enumerate(terms):
                place = row.predictors[row.targets[term][0]]
                ancestors = [j for j in range(place + 1) if place < row.ends[j]]
                assert tuple(row.token_ids[j] for j in ancestors) == (*context, *answer[:at])
                assert [row.positions[j] for j in ancestors] == list(range(len(ancestors)))


@given(pair_trees(most=1, truths=None))
def test_no_beginning_of_an_answer_stands_in_a_row_twice(trees: list[list[PairRow]]) -> None:
    (pairs,) = trees
    row = build_tree_row(pairs)
    beginnings = {
        (*context, *answer)[:length]
        for p in pairs
        for context, answer in scored_answers(p)
        for length in range(1, len(context) + len(answer))
    }
    assert row.length == len(beginnings)
    size = RowSize()
    for found in pairs:
        size.add(found)
    assert size.tokens == row.length


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_the_shared_length_is_that_of_the_common_beginning(left: list[int], right: list[int]) -> None:
    found = shared_length(left, right)
    assert left[:found] == right[:found]
    assert left[found : found + 1] != right[found : found + 1] or found == min(len(left), len(right))


FORMS: tuple[RowForm, ...] = ("tree", "pair", "separate")


@given(
    pair_trees(most=6, truths=None), st.sampled_from(FORMS), st.integers(1, 3), st.integers(1, 7), st.integers(1, 60)
)
def test_every_step_has_its_pairs_once_in_every_form_and_for_any_number_of_processes(
    trees: list[list[PairRow]], form: RowForm, processes: int, global_batch: int, tokens: int
) -> None:
    pairs = [found for tree in trees for found in tree]
    numbers = [number for number, tree in enumerate(trees) for _ in tree]
    order = [*range(len(pairs)), *reversed(range(len(pairs)))]
    plan = plan_passes(
        pairs,
        numbers,
        order,
        form=form,
        global_batch=global_batch,
        processes=processes,
        budget=Budget(tokens=tokens, pairs=2),
    )
    width = plan.accumulation * processes
    steps = [plan.passes[first : first + width] for first in range(0, len(plan.passes), width)]
    assert [Counter(i for rows in step for row in rows for i in row.pairs) for step in steps] == [
        Counter(order[first : first + global_batch]) for first in range(0, len(order), global_batch)
    ]
    assert any(plan.passes[-width + turn] for turn in range(processes)), "the last step has passes"
    for rows in plan.passes:
        for row in rows:
            assert len({numbers[index] for index in row.pairs}) == 1
            if form != "separate":
                assert row.tokens == build_tree_row([pairs[index] for index in row.pairs]).length
        if form == "separate":
            assert sum(len(row.pairs) for row in rows) <= 2
        elif sum(len(row.pairs) for row in rows) > 1:
            assert len(rows) * max(row.tokens for row in rows) <= tokens
    assert plan.naive_tokens == sum(naive_tokens(pairs[index]) for index in order)


def test_a_tree_of_several_pairs_costs_its_distinct_tokens_and_not_two_rows_for_each() -> None:
    prompt = tuple(range(100, 180))
    pairs = [pair(prompt, (1, 2, 3), (4, 5)), pair((*prompt, 1, 2, 3), (6, 7), (8, 9))]
    sizes = {}
    for form in FORMS:
        plan = plan_passes(
            pairs, [0, 0], [0, 1], form=form, global_batch=2, processes=1, budget=Budget(tokens=500, pairs=2)
        )
        sizes[form] = plan.tokens
        assert plan.naive_tokens == (80 + 3 + 80 + 2) + (83 + 2 + 83 + 2)
    # tree: prompt, 1 2 3, 4, 6, 8; pair: two rows as long as the second; separate: four rows of 83 + 2
    assert sizes == {"tree": 80 + 3 + 1 + 1 + 1, "pair": 2 * 85, "separate": 4 * 85}
