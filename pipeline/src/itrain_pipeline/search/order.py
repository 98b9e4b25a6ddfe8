"""The order in which samples are searched: those with a long common beginning (the same tools) side by side.

What one prompt computed is then still known when the next one comes, however small the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from itrain_pipeline.records import Example

SHARED = 0.5
"""Two prompts are neighbours when they have this share of the shorter one in common, beyond what all prompts share."""


def neighbours(examples: Sequence[Example]) -> list[Example]:
    """Groups of neighbours in the order of their first members, each in the given order: hardest groups first."""
    rank = {example.id: place for place, example in enumerate(examples)}
    groups: list[list[Example]] = []
    by_prompt = sorted(examples, key=lambda e: (e.prompt_ids, rank[e.id]))
    everybody = common_length(by_prompt[0].prompt_ids, by_prompt[-1].prompt_ids) if by_prompt else 0
    for example in by_prompt:
        if groups and _share(groups[-1][-1].prompt_ids, example.prompt_ids, everybody) >= SHARED:
            groups[-1].append(example)
        else:
            groups.append([example])
    ranked = [sorted(group, key=lambda e: rank[e.id]) for group in groups]
    return [example for group in sorted(ranked, key=lambda g: rank[g[0].id]) for example in group]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    limit = min(len(first), len(second))
    return next((at for at in range(limit) if first[at] != second[at]), limit)


def _share(first: Sequence[int], second: Sequence[int], start: int) -> float:
    shorter = min(len(first), len(second)) - start
    return (common_length(first, second) - start) / shorter if shorter > 0 else 0.0
