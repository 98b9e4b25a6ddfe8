"""What a spec cannot say at all, and what a stage's own words can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from itrain_contract.loading import SpecError, validate_run
from itrain_contract.stageio import TerminationSummary, printable

CRD = Path(__file__).parents[3] / "crds/itrainruns.itrain.dev.yaml"


def document(**spec: Any) -> dict[str, Any]:
    plain = {"model": {"uri": "hf://org/model"}, "data": {"uri": "/rows"}, "storage": {"uri": "/storage"}}
    return {
        "apiVersion": "itrain.dev/v1alpha1",
        "kind": "ITrainRun",
        "metadata": {"name": "a"},
        "spec": {**plain, **spec},
    }


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def test_no_field_of_the_spec_names_another_namespace_or_a_kind_of_object() -> None:
    """Secrets, claims and service accounts are named, and a name is looked up in the run's own namespace."""
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    spec = dict(nodes(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    fields = {path.rpartition(".")[2] for path in spec}
    assert not fields & {"namespace", "namespaces", "namespaceSelector", "apiVersion", "kind", "hostPath", "volumes"}
    assert not fields & {"valueFrom", "securityContext", "privileged", "hostNetwork", "hostPID", "command", "args"}
    refs = [below for path, below in spec.items() if path.lower().endswith("secretref")]
    assert len(refs) >= 5
    assert all(set(ref["properties"]) == {"name"} for ref in refs)


@pytest.mark.parametrize(
    "name", ["other/secret", "../secret", "a b", "A", "a\n", "a;b", "$(x)", "", "/", ".", "..", "a\0"]
)
@pytest.mark.parametrize(
    "field",
    [
        lambda name: {"model": {"uri": "hf://o/m", "secretRef": {"name": name}}},
        lambda name: {"data": {"uri": "s3://b/d", "secretRef": {"name": name}}},
        lambda name: {"storage": {"uri": "s3://b/s", "secretRef": {"name": name}}},
        lambda name: {"storage": {"pvc": {"claimName": name}}},
        lambda name: {"model": {"uri": "hf://o/m", "cache": {"pvc": name}}},
        lambda name: {"template": {"serviceAccountName": name}},
        lambda name: {"template": {"imagePullSecrets": [{"name": name}]}},
        lambda name: {"template": {"priorityClassName": name}},
        lambda name: {"resumeFrom": {"runName": name}},
    ],
)  # fmt: skip
def test_a_name_of_an_object_is_a_name_and_nothing_else(field: Any, name: str) -> None:
    with pytest.raises(SpecError):
        validate_run(document(**field(name)))


@pytest.mark.parametrize(
    "sub_path", ["../x", "a/../b", "a/..", "/a", ".hidden", "a//b", "a/./b", "a b", "a\0", "a\n", ".."]
)
def test_a_folder_of_a_volume_stays_in_it(sub_path: str) -> None:
    with pytest.raises(SpecError, match="subPath"):
        validate_run(document(storage={"pvc": {"claimName": "c", "subPath": sub_path}}))
    for fine in ("a", "a/b", "team-a/runs/.cache", "a..b/c", "a/"):
        validate_run(document(storage={"pvc": {"claimName": "c", "subPath": fine}}))


@pytest.mark.parametrize(
    "uri", ["/a\0", "/a\x1b[31m", "s3://b/\x07", "hf://a/b\x7f", "ftp://a/b", "a", "s3://a b", "-x"]
)
def test_an_address_holds_no_control_character_and_no_other_scheme(uri: str) -> None:
    for spec in (
        {"data": {"uri": uri}},
        {"model": {"uri": uri}},
        {"storage": {"uri": uri}},
        {"resumeFrom": {"uri": uri}},
    ):
        with pytest.raises(SpecError):
            validate_run(document(**spec))


@pytest.mark.parametrize("variable", [("A=B", "x"), ("", "x"), ("1A", "x"), ("A B", "x"), ("A;id", "x"), ("A", "\0")])
def test_an_environment_variable_has_a_plain_name_and_a_value_that_a_process_can_hold(
    variable: tuple[str, str],
) -> None:
    with pytest.raises(SpecError):
        validate_run(document(template={"env": [{"name": variable[0], "value": variable[1]}]}))


@given(text=st.text(max_size=200))
def test_what_a_stage_says_cannot_drive_a_terminal(text: str) -> None:
    said = TerminationSummary(exit_code=65, message=f"row 1: \x1b]0;owned\x07{text}\u202e").message
    assert not {c for c in said if not c.isprintable()} - {"\n", "\t"}
    assert printable(said) == said
    assert said.startswith(r"row 1: \x1b]0;owned\x07")


@pytest.mark.parametrize(
    "said",
    ["[" * 4096, '{"exitCode": ' + "9" * 4000 + "}", '{"exitCode": 0, "metrics": {"a": NaN}}', '{"exitCode":0,"x":1}'],
)
def test_a_termination_message_that_is_none_is_an_error_and_no_more(said: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        TerminationSummary.model_validate_json(said)
