"""What a run may say of its trackers: no credential, no address that is none, and nothing that changes a result."""

from __future__ import annotations

from typing import Any

import pytest

from itrain_contract.loading import SpecError, validate_run
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import TRACKED, RunIdentity, StageInput, build_stage_input
from itrain_contract.stages import StageKind, StageRef

RUN = RunIdentity(name="tiny", uid="0123456789ab", storage="s3://bucket/prefix")
PLAIN: dict[str, Any] = {"model": {"uri": "hf://o/m"}, "data": {"uri": "/rows"}, "storage": {"uri": "s3://b/p"}}
FULL: dict[str, Any] = {
    "tensorboard": True,
    "mlflow": {"uri": "https://ml.example:8443/team", "experiment": "tool calls/a", "secretRef": {"name": "ml"}},
    "wandb": {"project": "p.1", "entity": "team", "mode": "online", "secretRef": {"name": "wb"}},
}


def built(kind: StageKind, tracking: dict[str, Any] | None) -> StageInput:
    spec = ITrainRunSpec.model_validate({**PLAIN, **({"tracking": tracking} if tracking else {})})
    ref = StageRef(kind=kind, iteration=1 if kind is StageKind.TRAIN else 0)
    return build_stage_input(run=RUN, spec=spec, ref=ref, attempt=1, shards=None, upstream=())


@pytest.mark.parametrize("kind", list(StageKind))
def test_where_figures_are_sent_runs_no_stage_again(kind: StageKind) -> None:
    with_it, without = built(kind, FULL), built(kind, None)
    assert (with_it.digest, with_it.work_prefix, with_it.spec) == (without.digest, without.work_prefix, without.spec)
    assert (with_it.tracking is not None) == (kind in TRACKED)
    assert StageInput.model_validate_json(with_it.model_dump_json(by_alias=True, exclude_none=True)) == with_it


@pytest.mark.parametrize(
    ("tracking", "field"),
    [
        ({"mlflow": {"uri": "https://user:pw@ml.example"}}, "spec.tracking.mlflow.uri"),
        ({"mlflow": {"uri": "https://ml.example?token=x"}}, "spec.tracking.mlflow.uri"),
        ({"mlflow": {"uri": "file:///tmp/runs"}}, "spec.tracking.mlflow.uri"),
        ({"mlflow": {"uri": "https://ml.example/a b"}}, "spec.tracking.mlflow.uri"),
        ({"mlflow": {"uri": "https://ml.example", "experiment": ""}}, "spec.tracking.mlflow.experiment"),
        ({"mlflow": {"uri": "https://ml.example", "token": "x"}}, "spec.tracking.mlflow.token"),
        ({"mlflow": {}}, "spec.tracking.mlflow.uri"),
        ({"wandb": {"project": "a/b"}}, "spec.tracking.wandb.project"),
        ({"wandb": {"project": "p", "mode": "shared"}}, "spec.tracking.wandb.mode"),
        ({"wandb": {"project": "p", "apiKey": "x"}}, "spec.tracking.wandb.apiKey"),
        ({"tensorboard": "perhaps"}, "spec.tracking.tensorboard"),
        ({"comet": {}}, "spec.tracking.comet"),
    ],
)
def test_what_cannot_be_is_named_by_its_field(tracking: dict[str, Any], field: str) -> None:
    document = {
        "apiVersion": "itrain.dev/v1alpha1",
        "kind": "ITrainRun",
        "metadata": {"name": "a"},
        "spec": {**PLAIN, "tracking": tracking},
    }
    with pytest.raises(SpecError) as refused:
        validate_run(document)
    assert [problem.field for problem in refused.value.problems] == [field]


def test_secrets_are_those_that_are_read() -> None:
    tracking = ITrainRunSpec.model_validate({**PLAIN, "tracking": FULL}).tracking
    assert tracking is not None
    assert tracking.secrets == ("ml", "wb")
    offline = {"wandb": {**FULL["wandb"], "mode": "offline"}}
    tracking = ITrainRunSpec.model_validate({**PLAIN, "tracking": offline}).tracking
    assert tracking is not None
    assert (tracking.secrets, tracking.empty) == ((), False)
