"""Seeds by name: the same place in the same search always samples the same, whatever ran before or beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def derive_seed(*, run_seed: int, iteration: int, sample_id: str, answer_ids: Sequence[int], visit: int) -> int:
    """63 bits of sha256 over the run, the iteration, the sample, the node (its answer's ids so far) and the visit."""
    path = ",".join(map(str, answer_ids))
    text = f"{run_seed}\x1f{iteration}\x1f{sample_id}\x1f{path}\x1f{visit}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
