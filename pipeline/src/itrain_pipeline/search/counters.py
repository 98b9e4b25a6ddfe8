"""What a shard counts: sums over its trees, and what became of its samples. Everything adds up over shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from itrain_pipeline.search.bounds import limit_tokens
from itrain_pipeline.search.forest import ForestStats
from itrain_pipeline.search.mcts import StopReason
from itrain_pipeline.search.treerecord import TreeRecord

SUMMED = (
    "simulations",
    "freed_simulations",
    "extra_simulations",
    "nodes",
    "requests",
    "sequences",
    "judge_calls",
    "memo_hits",
    "duplicate_requests",
    "merged_actions",
    "prompt_tokens",
    "decoded_tokens",
)
"""Fields of a tree record whose sum over the trees is a counter of the shard."""


def tree_counters(records: Sequence[TreeRecord]) -> dict[str, int]:
    """Sums, the limit, and the trees by the reason for which they ended (`stopped_…`)."""
    reasons = Counter(record.reason for record in records)
    return {
        "trees": len(records),
        "trees_with_right_answer": sum(record.reached is True for record in records),
        "trees_missed": sum(record.reached is False for record in records),
        "trees_without_pair": sum(not record.pairs for record in records),
        **{name: sum(getattr(record, name) for record in records) for name in SUMMED},
        "limit_tokens": sum(map(limit_tokens, records)),
        **{f"stopped_{reason}": reasons[reason] for reason in get_args(StopReason)},
    }


def forest_counters(stats: ForestStats, samples: int, trees: int) -> dict[str, int]:
    """Failures by kind, and the rest of the samples; `lost_trees` is what no other counter explains, so 0."""
    unsearched = samples - trees - stats.failed - stats.unneeded - (stats.launched - stats.ended)
    return {
        "samples": samples,
        "failed_trees": stats.failed,
        "failed_permanent": stats.kinds["PermanentError"],
        "failed_retryable": stats.kinds["RetryableError"],
        "unsearched_trees": unsearched,
        "unneeded_trees": stats.unneeded,
        "lost_trees": stats.launched - stats.ended,
        "retried_requests": stats.retries,
    }
