"""What the search is to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    key: str
    text: str
    relation: Literal["<=", ">=", "=="]
    value: float

    def met(self, found: float) -> bool:
        return {"<=": found <= self.value, ">=": found >= self.value, "==": found == self.value}[self.relation]


TARGETS = (
    Target(key="p800_tokens_over_limit_ours", text="engine tokens over the limit L", relation="<=", value=1.10),
    Target(key="p800_requests_per_tree_ours", text="requests per tree", relation="<=", value=5),
    Target(key="p800_requests_per_pair_ours", text="requests per valid pair", relation="<=", value=3),
    Target(key="p800_decoded_per_pair_ours", text="decoded tokens per valid pair", relation="<=", value=150),
    Target(key="duplicates_ours", text="duplicate requests", relation="==", value=0),
    Target(key="lost_trees_ours", text="lost trees", relation="==", value=0),
    Target(key="pair_precision_ours", text="pair precision", relation=">=", value=0.98),
    Target(key="wall_per_pair_r0_over_ours", text="seconds per valid pair, R0 / ours (vLLM)", relation=">=", value=5),
    Target(key="wall_per_pair_r1_over_ours", text="seconds per valid pair, R1 / ours (vLLM)", relation=">=", value=2),
    Target(key="scale_cost_ratio", text="CPU per tree, most trees / a hundred", relation="<=", value=1.5),
    Target(key="scale_rss_growth_kib_per_tree", text="memory kept per tree, KiB", relation="<=", value=64),
)


def judge_targets(figures: Mapping[str, object]) -> dict[str, bool | None]:
    """By key: met, not met, or None where it was not measured."""
    found: dict[str, bool | None] = {}
    for target in TARGETS:
        value = figures.get(target.key)
        found[target.key] = target.met(float(value)) if isinstance(value, int | float) else None
    return found
