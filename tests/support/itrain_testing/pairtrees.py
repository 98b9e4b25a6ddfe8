"""Random trees of steps with pairs at their nodes, as hypothesis strategies."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import strategies as st

from itrain_pipeline.learn.collate import PairRow

WORDS = range(7, 300)


def random_tree(
    rng: random.Random, *, prompt: int, pairs: int, longest: int = 6, words: range = WORDS
) -> list[PairRow]:
    """Up to `pairs` pairs at the nodes of one tree, some of them several at a node, some sharing a step."""
    nodes: list[tuple[int, ...]] = [tuple(rng.choice(words) for _ in range(prompt))]
    found: list[PairRow] = []
    for _ in range(pairs):
        context = rng.choice(nodes)
        steps = [_step(rng, longest, words) for _ in range(rng.randrange(2, 4))]
        if found and rng.random() < 0.3:  # a step that is there already, at the same node
            context, steps[0] = found[-1].context_ids, found[-1].chosen_ids
        if rng.random() < 0.3:  # a step that begins as its sibling does
            steps[1] = (*steps[0][: rng.randrange(len(steps[0]) + 1)], *steps[1])
        found.append(PairRow(context_ids=context, chosen_ids=steps[0], rejected_ids=steps[1]))
        nodes += [(*context, *step) for step in steps]
    return found


def with_truth(rng: random.Random, tree: list[PairRow], *, longest: int = 9, words: range = WORDS) -> list[PairRow]:
    """The same pairs with one right answer to their prompt, in half of the trees along some chosen step. In a third of
    the trees a row of the answer alone stands beside them."""
    prompt = min((pair.context_ids for pair in tree), key=len)
    prompt = prompt[: rng.randrange(1, len(prompt) + 1)]
    truth = _step(rng, longest, words)
    if rng.random() < 0.5:
        pair = rng.choice(tree)
        truth = (*pair.context_ids[len(prompt) :], *pair.chosen_ids, *truth)
    alone = [PairRow(prompt_ids=prompt, truth_ids=truth)] if rng.random() < 0.3 else []
    return [*(replace(pair, prompt_ids=prompt, truth_ids=truth) for pair in tree), *alone]


def _step(rng: random.Random, longest: int, words: range) -> tuple[int, ...]:
    return tuple(rng.choice(words) for _ in range(rng.randrange(1, longest + 1)))


def pair_trees(
    *, most: int, words: range = WORDS, truths: bool | None = False
) -> st.SearchStrategy[list[list[PairRow]]]:
    """One to `most` trees of one to five pairs, their prompts of 1 to 12 tokens. `truths`: with right answers, without,
    or either (None)."""

    def build(seed: int, shapes: list[tuple[int, int]]) -> list[list[PairRow]]:
        rng = random.Random(seed)
        trees = [random_tree(rng, prompt=prompt, pairs=pairs, words=words) for prompt, pairs in shapes]
        wanted = rng.random() < 0.5 if truths is None else truths
        return [with_truth(rng, tree, words=words) for tree in trees] if wanted else trees

    shape = st.tuples(st.integers(1, 12), st.integers(1, 5))
    return st.builds(build, st.integers(0, 2**32), st.lists(shape, min_size=1, max_size=most))
