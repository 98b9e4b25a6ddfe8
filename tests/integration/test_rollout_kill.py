"""A rollout process killed in the middle of its trees: the next one goes on, and the pairs are the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.names import ENV_CACHE_DIR, ENV_SHARD
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import RunIdentity, StageInput, StageResult, UpstreamResult, build_stage_input
from itrain_contract.stages import StageKind, StageRef
from itrain_testing.rollout_inputs import toolworld_examples, upstream_results
from itrain_testing.stageports import DIGEST

ROWS = 10
PATIENCE_S = 240


def write_run(folder: Path, storage: Path, in_flight: int) -> tuple[StageInput, Path]:
    """A run whose prepare and score are done; its rollout input, in memory and as a file."""
    upstream = []
    for number, result in enumerate(upstream_results(folder, toolworld_examples(ROWS), score_shards=1)):
        prefix = folder / f"upstream-{number}"
        prefix.mkdir(exist_ok=True)
        whole = result.model_copy(update={"shard": None})
        (prefix / "result.json").write_text(whole.model_dump_json(by_alias=True))
        upstream.append(
            UpstreamResult(kind=whole.kind, iteration=whole.iteration, prefix=f"{prefix.as_uri()}/", digest=DIGEST)
        )
    rollout = {
        "treesInFlight": in_flight,
        "maxAnswerTokens": 64,
        "certainty": "none",
        "pairsPerNode": 2,
        "temperature": 1.3,
        "maxOverlap": 1.0,
        "shards": 1,
    }
    spec = ITrainRunSpec.model_validate(
        {
            "model": {"uri": "builtin://toolworld"},
            "data": {"uri": "builtin://toolworld"},
            "storage": {"uri": str(storage)},
            "stages": {"rollout": rollout, "score": {"fraction": 1.0}},
        }
    )
    made = build_stage_input(
        run=RunIdentity(name="small", uid="12345678", storage=storage.as_uri()),
        spec=spec,
        ref=StageRef(kind=StageKind.ROLLOUT, iteration=1),
        attempt=1,
        shards=1,
        upstream=tuple(upstream),
    )
    path = storage / "input.json"
    path.write_text(made.model_dump_json(by_alias=True))
    return made, path


def start(path: Path, cache: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, ENV_SHARD: "0", ENV_CACHE_DIR: str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "itrain_pipeline", "rollout", "--input", str(path)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def parts(made: StageInput) -> list[Path]:
    return sorted(Path(made.work_prefix.removeprefix("file://")).glob("shard-0/trees/part-*.jsonl"))


def journal(made: StageInput) -> list[Any]:
    """What was put into the work area, in the order in which it was."""
    return [json.loads(line) for part in parts(made) for line in part.read_text().splitlines()]


def outputs(made: StageInput) -> tuple[dict[str, str], StageResult]:
    """sha256 by output name, from the result that was written last."""
    result = StageResult.model_validate_json(
        (Path(made.output_prefix.removeprefix("file://")) / "shard-0" / "result.json").read_bytes()
    )
    return {name: ref.sha256 for name, ref in result.outputs.items()}, result


@pytest.mark.e2e
@pytest.mark.parametrize(("in_flight", "kills"), [(1, (2, 5)), (3, (1, 3))])
def test_a_killed_rollout_resumes_to_the_same_pairs(tmp_path: Path, in_flight: int, kills: tuple[int, ...]) -> None:
    """One tree at a time: the same bytes. Many: which trees are done when it is killed differs, the pairs do not."""
    runs = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        runs[name] = write_run(tmp_path, tmp_path / name, 1 if name == "whole" else in_flight)
    whole, path = runs["whole"]
    assert start(path, tmp_path / "cache").wait(PATIENCE_S) == 0

    killed, path = runs["killed"]
    finished_before = []
    for kill_after in kills:
        process = start(path, tmp_path / "cache")
        deadline = time.monotonic() + PATIENCE_S
        while len(parts(killed)) < kill_after:
            assert process.poll() is None, "the rollout ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -9
        finished_before.append(len(parts(killed)))
    rows = journal(killed)
    assert start(path, tmp_path / "cache").wait(PATIENCE_S) == 0

    (wanted, uninterrupted), (found, resumed) = outputs(whole), outputs(killed)
    assert found["pairs.jsonl"] == wanted["pairs.jsonl"]
    assert uninterrupted.counters["nodes"] > 3 * ROWS
    assert resumed.counters["trees"] == uninterrupted.counters["trees"] == ROWS
    assert resumed.counters["pairs"] == uninterrupted.counters["pairs"] > 0
    assert resumed.counters["duplicate_requests"] == resumed.counters["lost_trees"] == 0
    # What was finished before a kill was not searched again: every sample stands in the journal once.
    assert len(rows) >= max(finished_before)
    searched = [row["record"]["sample_id"] for row in journal(killed)]
    assert len(searched) == len(set(searched)) == ROWS
    if in_flight == 1:
        assert found == wanted
        for name in ("decoded", "prefill_computed", "prefill_cached"):  # counted over all attempts
            assert resumed.counters[name] == uninterrupted.counters[name]
    assert resumed.counters["decoded_tokens"] == uninterrupted.counters["decoded_tokens"]
