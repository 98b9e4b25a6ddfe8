"""The generated CRD: structural, bounded, with defaults that validate, and of one mind with the Python types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from itrain_contract.crdgen import build_crd, generated_files, main
from itrain_contract.immutability import IMMUTABLE_FIELDS
from itrain_contract.loading import load_run
from itrain_contract.spec import ITrainRunSpec

ROOT = Path(__file__).parents[3]
VERSION = build_crd()["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]
DECIDED_BY_CEL = {
    "storage-both",
    "storage-none",
    "storage-read-only",
    "quorum",
    "name-pattern",
    "name-length",
    "zero3-with-nf4",
} | {
    "loop-half-disabled",
    "api-bank-without-data",
    "bf16-on-volta",
}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


NODES = [(path, node) for path, node in nodes(SCHEMA) if path not in ("", ".metadata", ".apiVersion", ".kind")]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """As kubectl's strict field validation reads it: unknown fields are errors; OpenAPI bounds as JSON Schema ones."""
    out = {k: v for k, v in schema.items() if not k.startswith("x-")}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if out.pop(exclusive, False):
            out[exclusive] = out.pop(bound)
    if "properties" in out:
        out["properties"] = {k: closed(v) for k, v in out["properties"].items()}
        out["additionalProperties"] = False
    if "items" in out:
        out["items"] = closed(out["items"])
    return out


SPEC_VALIDATOR = jsonschema.Draft202012Validator(closed(SCHEMA["properties"]["spec"]))


def test_generated_files_are_fresh() -> None:
    for path, text in generated_files().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is stale: run make generate"


def test_check_says_what_is_stale_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("path", "node"), NODES, ids=[path for path, _ in NODES])
def test_every_node_is_structural_and_bounded(path: str, node: dict[str, Any]) -> None:
    if node.get("x-kubernetes-int-or-string"):
        assert "type" not in node
        return
    assert node["type"] in ("object", "array", "string", "integer", "number", "boolean")
    assert not {"$ref", "anyOf", "oneOf", "allOf", "title", "const", "nullable"} & set(node)
    assert not isinstance(node.get("additionalProperties"), bool)
    if node["type"] == "array":
        assert "maxItems" in node
    if node["type"] == "string" and "enum" not in node:
        assert "maxLength" in node or node.get("format") == "date-time"
    if node["type"] == "object" and "properties" not in node:
        assert "maxProperties" in node
    if node["type"] == "object":
        assert ("properties" in node) != ("additionalProperties" in node)


def test_defaults_validate_against_their_own_schema() -> None:
    checked = 0
    for path, node in NODES:
        if "default" in node:
            jsonschema.Draft202012Validator(closed(node)).validate(node["default"])
            checked += 1
            assert path
    assert checked > 80


def test_the_crd_fits_into_a_client_side_apply() -> None:
    assert len(json.dumps(build_crd())) < 200 * 1024
    assert (ROOT / "crds/itrainruns.itrain.dev.yaml").stat().st_size < 256 * 1024


@pytest.mark.parametrize("path", sorted((ROOT / "crds/examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_pass_the_generated_schema(path: Path) -> None:
    run = load_run(path)
    SPEC_VALIDATOR.validate(run.spec.model_dump(mode="json", by_alias=True, exclude_none=True))


@pytest.mark.parametrize("path", sorted((ROOT / "tests/data/broken").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_schema_refuses_what_python_refuses_unless_cel_decides(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]
    valid = SPEC_VALIDATOR.is_valid(spec)
    assert valid == (path.stem.partition("-")[2] in DECIDED_BY_CEL)


def test_immutable_fields_have_transition_rules() -> None:
    rules = [rule["rule"] for rule in SCHEMA["properties"]["spec"]["x-kubernetes-validations"]]
    for name in IMMUTABLE_FIELDS:
        assert f"self.{name} == oldSelf.{name}" in rules


def test_every_python_rule_is_said_in_cel() -> None:
    def count(model: type) -> int:
        return len(getattr(model, "RULES", ()))

    rules = SCHEMA["properties"]["spec"]["x-kubernetes-validations"]
    assert len(rules) == count(ITrainRunSpec) + len(IMMUTABLE_FIELDS) + 1


def test_printer_columns_name_plain_fields_that_exist() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        node: dict[str, Any] = {"properties": {**SCHEMA["properties"], "metadata": {"properties": {}}}}
        steps = column["jsonPath"].strip(".").split(".")
        if steps[0] == "metadata":
            continue
        for step in steps:
            node = node["properties"][step]
        assert node["type"] == column["type"]


def test_the_status_is_a_subresource_and_the_kind_is_namespaced() -> None:
    spec = build_crd()["spec"]
    assert VERSION["subresources"] == {"status": {}}
    assert (spec["scope"], spec["names"]["shortNames"], spec["names"]["categories"]) == ("Namespaced", ["itr"], ["all"])
