"""What is lost and what is not when runs are deleted: a run applied again from its file goes on from its artifacts.

A real API server and a real S3 server; the pods run by their status alone, and what they would write is written here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from itrain_contract.layout import RunLayout
from itrain_contract.spec import ResumeFrom
from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.ports import Store
from itrain_pipeline.stages.resume import find_adapter
from itrain_pipeline.store import open_store
from itrain_testing.cluster.access import eventually
from itrain_testing.operatorprocess import OperatorProcess
from itrain_testing.s3server import S3Server
from itrain_testing.simkubelet import PodRun, SimulatedNode
from itrain_testing.watchrun import STAGES, WatchedRun

REVISION = "r1"
WITH_ADAPTER = (StageKind.WARMUP, StageKind.TRAIN)
WEIGHTS = save({"lora_A.weight": np.zeros((2, 3), np.float32)})


def write_artifacts(store: Store, layout: RunLayout, ref: StageRef) -> None:
    """What a stage leaves in storage, as far as a later run reads it."""
    prefix = layout.attempt(ref, 1)
    outputs = {}
    if ref.kind in WITH_ADAPTER:
        config = json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "revision": str(ref)}).encode()
        for name, data in (("adapter_config.json", config), ("adapter_model.safetensors", WEIGHTS)):
            outputs[f"adapter/{name}"] = store.put_bytes(data, f"{prefix}adapter/{name}")
    info = {StageKind.PREPARE: {"model_revision": REVISION}, StageKind.EXPORT: {"best_point": "iteration-1"}}
    result = StageResult(
        kind=ref.kind,
        iteration=ref.iteration,
        attempt=1,
        digest="d" * 64,
        outputs=outputs,
        info=info.get(ref.kind, {}),
        started=1.0,
    )
    store.put_bytes(result.model_dump_json(by_alias=True).encode(), f"{prefix}result.json")


def everything(store: Store, prefix: str) -> dict[str, bytes | None]:
    return {uri: store.get_bytes(uri) for uri in store.list(prefix)}


def test_a_deleted_run_leaves_its_artifacts_and_one_applied_again_goes_on_from_them(
    run: WatchedRun, node: SimulatedNode, operator: OperatorProcess, server: S3Server, tmp_path: Path
) -> None:
    storage = f"{server.create_bucket(run.namespace)}runs"
    store = open_store(storage, server.environ)
    written: set[StageRef] = set()

    def layout_now() -> RunLayout:
        return RunLayout(storage=storage, name="run", uid=run.raw()["metadata"]["uid"])

    def writes(ref: StageRef, attempt: int, index: int) -> PodRun:
        if ref not in written:
            written.add(ref)
            write_artifacts(store, layout_now(), ref)
        return PodRun()

    node.script = writes
    run.apply(storage={"uri": storage})
    run.wait(phase="Succeeded")
    layout = layout_now()
    kept = everything(store, layout.root)
    assert len(kept) == len(STAGES) + 2 * 2

    run.delete("itr", "run", "--wait=true")
    eventually(lambda: run.job_names() == [], what="the Jobs of the deleted run are gone")
    assert everything(store, layout.root) == kept

    node.script = lambda ref, attempt, index: PodRun()
    run.apply(storage={"uri": storage}, resumeFrom={"runName": "run"})
    run.wait(phase="Succeeded")
    assert run.job_names() == [name for name in STAGES if "warmup" not in name]
    given = run.cluster.get("configmap", "run-i0-prepare-a1", namespace=run.namespace)["data"]
    (text,) = given.values()
    stage_input = StageInput.model_validate_json(text)
    origin = ResumeFrom.model_validate(stage_input.spec["resumeFrom"])
    taken = find_adapter(origin, stage_input.run.storage, REVISION, store, tmp_path / "taken")
    assert json.loads((taken.folder / "adapter_config.json").read_text())["revision"] == "i1/train"
    assert everything(store, layout.root) == kept
