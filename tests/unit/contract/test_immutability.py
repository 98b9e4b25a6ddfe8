"""Edits of a run that are refused, in the same words as the API server's rules."""

from __future__ import annotations

from typing import Any

import pytest

from itrain_contract.immutability import changes_refused
from itrain_contract.names import Phase
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.template import Template, merge_templates

REQUIRED: dict[str, Any] = {"model": {"uri": "hf://o/m"}, "data": {"uri": "./r.json"}, "storage": {"uri": "s3://b/p"}}


def spec(**more: Any) -> ITrainRunSpec:
    return ITrainRunSpec.model_validate({**REQUIRED, **more})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": {"uri": "hf://o/n"}}, "spec.model"),
        ({"data": {"uri": "./s.json"}}, "spec.data"),
        ({"storage": {"uri": "s3://b/q"}}, "spec.storage"),
        ({"seed": 7}, "spec.seed"),
        ({"adapter": {"rank": 8}}, "spec.adapter"),
        ({"iterations": {"max": 2}}, "spec.iterations.max"),
    ],
)
def test_what_defines_a_run_cannot_change(change: dict[str, Any], field: str) -> None:
    (problem,) = changes_refused(spec(), spec(**change), Phase.RUNNING)
    assert problem.field == field
    assert problem.remedy


def test_iterations_may_rise_until_the_run_has_ended() -> None:
    more = spec(iterations={"max": 4})
    assert changes_refused(spec(), more, Phase.RUNNING) == []
    for phase in (Phase.SUCCEEDED, Phase.FAILED):
        assert [p.field for p in changes_refused(spec(), more, phase)] == ["spec.iterations.max"]


def test_scheduling_and_method_fields_may_change() -> None:
    edited = spec(suspend=True, stages={"train": {"learningRate": 0.001, "gpus": 4}})
    assert changes_refused(spec(), edited, Phase.RUNNING) == []


def test_a_stage_template_is_merged_over_the_runs() -> None:
    run = Template.model_validate({"nodePool": "volta", "labels": {"a": "1", "b": "1"}, "env": [{"name": "X"}]})
    stage = Template.model_validate({"nodePool": "current", "labels": {"b": "2"}})
    merged = merge_templates(run, stage)
    assert (merged.node_pool, merged.labels) == ("current", {"a": "1", "b": "2"})
    assert [variable.name for variable in merged.env] == ["X"]
    assert merge_templates(None, None) == Template()
