"""Which results a stage believes: those of the digest it was told, and of shards that it was told."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_contract.layout import RESULT_FILE, shard_prefix
from itrain_contract.stageio import StageResult, UpstreamResult
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import DataError
from itrain_pipeline.store import open_store
from itrain_pipeline.upstream import StoreUpstream

DIGEST = "ab" * 32


def scored(folder: Path, *, shards: str, digest: str = DIGEST[:16], present: tuple[int, ...] = (0, 2)) -> StoreUpstream:
    """Score's results of some shards in a folder, read as `shards` and `digest` tell."""
    prefix = f"{folder.as_uri()}/i1/score/a1/"
    store = open_store(folder.as_uri())
    for shard in present:
        result = StageResult(kind=StageKind.SCORE, iteration=1, attempt=1, shard=shard, digest=DIGEST)
        store.put_bytes(result.model_dump_json(by_alias=True).encode(), shard_prefix(prefix, shard) + RESULT_FILE)
    told = UpstreamResult(kind=StageKind.SCORE, iteration=1, prefix=prefix, digest=digest, shards=shards)
    return StoreUpstream(store, (told,), cache=folder / "cache")


def read_shards(upstream: StoreUpstream) -> list[int | None]:
    return [result.shard for result in upstream.results(StageKind.SCORE)]


@pytest.mark.parametrize("digest", [DIGEST, DIGEST[:16]])
def test_results_of_the_told_shards_are_read_by_the_first_digits_of_their_digest(tmp_path: Path, digest: str) -> None:
    assert read_shards(scored(tmp_path, shards="0,2", digest=digest)) == [0, 2]


def test_a_result_of_another_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="belongs to the input"):
        read_shards(scored(tmp_path, shards="0,2", digest="cd" * 8))


def test_a_missing_shard_is_an_error_unless_the_list_is_a_coarse_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_shards(scored(tmp_path / "exact", shards="0-2"))
    assert read_shards(scored(tmp_path / "coarse", shards="0-2?")) == [0, 2]
