"""The train stage as processes, one per node, on a storage folder with everything that it reads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itrain_contract import names
from itrain_contract.layout import RESULT_FILE, shard_prefix
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import (
    RunIdentity,
    StageInput,
    StageResult,
    TerminationSummary,
    UpstreamResult,
    build_stage_input,
)
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.files import sha256_file
from itrain_testing.learning import make_examples, make_pairs, prepare_result, rollout_results
from itrain_testing.stageports import DIGEST, folder_files, stage_result
from itrain_testing.tiny_model import write_random_adapter

STAGE = {
    "answerNllWeight": 0,
    "globalBatch": 4,
    "microBatch": 2,
    "learningRate": 0.002,
    "quantization": "none",
    "checkpointSteps": 1000,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class TrainWorld:
    """One train stage of a run below `folder`; its pairs are 11, so that the last batch is neither full nor even."""

    folder: Path
    model: Path
    stage: dict[str, Any]
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        adapter = write_random_adapter(self.model, self.folder / "start")
        pairs = make_pairs(11, adapter_sha256=sha256_file(adapter / "adapter_model.safetensors"))
        self._upstream = tuple(
            self._publish(result)
            for result in (
                prepare_result(self.folder, self.model, make_examples(2)),
                stage_result(StageKind.WARMUP, files=folder_files(adapter, "adapter/")),
                *rollout_results(self.folder / "rollout", pairs),
            )
        )

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def _publish(self, result: StageResult) -> UpstreamResult:
        prefix = f"file://{self.folder}/upstream/{result.kind}/"
        path = Path(shard_prefix(prefix, result.shard).removeprefix("file://"), RESULT_FILE)
        path.parent.mkdir(parents=True)
        path.write_text(result.model_dump_json(by_alias=True))
        shards = None if result.shard is None else "0-1"
        return UpstreamResult(kind=result.kind, iteration=result.iteration, prefix=prefix, digest=DIGEST, shards=shards)

    def stage_input(self, attempt: int = 1) -> StageInput:
        spec = ITrainRunSpec.model_validate(
            {
                "model": {"uri": "builtin://toolworld"},
                "data": {"uri": "builtin://toolworld"},
                "storage": {"uri": str(self.storage)},
                "adapter": {"rank": 4, "alpha": 8},
                "precision": "fp32",
                "stages": {"train": {**STAGE, **self.stage}},
            }
        )
        return build_stage_input(
            run=RunIdentity(name="small", uid="12345678", storage=f"file://{self.storage}"),
            spec=spec,
            ref=StageRef(kind=StageKind.TRAIN, iteration=1),
            attempt=attempt,
            shards=None,
            upstream=tuple(dict.fromkeys(self._upstream)),
        )

    def start(self, rank: int = 0, attempt: int = 1) -> subprocess.Popen[bytes]:
        """The stage process of one node, as its pod would start it."""
        path = self.folder / f"input-{attempt}.json"
        path.write_text(self.stage_input(attempt).model_dump_json(by_alias=True))
        environ = {
            **os.environ,
            names.ENV_SHARD: str(rank),
            names.ENV_MASTER_ADDR: "127.0.0.1",
            names.ENV_MASTER_PORT: str(self.port),
            names.ENV_TERMINATION_LOG: str(self.folder / f"termination-{rank}"),
            names.ENV_THREADS: "1",
        }
        command = [sys.executable, "-m", "itrain_pipeline", "train", "--input", str(path)]
        with self.log(rank).open("ab") as log:
            process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def log(self, rank: int) -> Path:
        return self.folder / f"node-{rank}.log"

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in sorted(self.folder.glob("node-*.log")))

    def run(self, *ranks: int, attempt: int = 1, within_s: float = 180.0) -> list[int]:
        """Exit codes of the nodes' processes, all started now."""
        return self.wait([self.start(rank, attempt) for rank in ranks], within_s)

    def wait(self, processes: list[subprocess.Popen[bytes]], within_s: float = 120.0) -> list[int]:
        until = time.monotonic() + within_s
        try:
            return [process.wait(max(0.1, until - time.monotonic())) for process in processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(self.logs()) from error

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def result(self, attempt: int = 1) -> StageResult:
        prefix = self.stage_input(attempt).output_prefix.removeprefix("file://")
        return StageResult.model_validate_json(Path(prefix, RESULT_FILE).read_bytes())

    def termination(self, rank: int) -> TerminationSummary:
        return TerminationSummary.model_validate_json((self.folder / f"termination-{rank}").read_bytes())

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that are believed."""
        found = self.storage.rglob("checkpoint-*/COMPLETE.json")
        return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in found)


MakeWorld = Callable[[str, dict[str, Any]], TrainWorld]
"""From a name and the stage's settings."""


def adapter_file(result: StageResult) -> Path:
    return Path(result.outputs["adapter/adapter_model.safetensors"].uri.removeprefix("file://"))


def wait_until(condition: Callable[[], bool], within_s: float, describe: Callable[[], str]) -> None:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(describe())
        time.sleep(0.05)
