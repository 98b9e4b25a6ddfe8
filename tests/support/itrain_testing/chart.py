"""The chart as a test sees it: rendered, and every object held against the schema of its API.

    PYTHONPATH=tests/support python -m itrain_testing.chart

lints the chart with every file of charts/itrain/ci and runs its helm-unittest suites.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from itrain_testing import charttools
from itrain_testing.cluster.binaries import kubernetes_version

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts/itrain"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "itrain", "itrain-system"
MONITORING = "monitoring.coreos.com"

Object = dict[str, Any]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The CRD is long, and libyaml ten times as fast."""


class ChartError(Exception):
    """Helm refused: its words."""


IMAGE_VALUES = CHART / "ci/default-values.yaml"
"""The one value that has no default."""


def render(*values: Path, extra: Object | None = None, chart: Path = CHART) -> list[Object]:
    """Every object of `helm template`, the operator's image named unless the values name another; raises ChartError."""
    command = ["template", RELEASE, str(chart), "--namespace", NAMESPACE, "--kube-version", kubernetes_version()]
    for file in (IMAGE_VALUES, *values):
        command += ["--values", str(file)]
    if extra is not None:
        command += ["--values", "-"]
    return [document for document in yaml.load_all(_helm(*command, given=json.dumps(extra)), Loader) if document]


def notes(values: Path) -> str:
    """What `helm install` says in the end."""
    command = ["install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client", "--values", str(values)]
    return _helm(*command).partition("\nNOTES:\n")[2]


def _helm(*arguments: str, given: str | None = None) -> str:
    command = [str(charttools.helm()), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChartError(done.stderr.strip())
    return done.stdout


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def the(objects: Iterable[Object], kind: str, name: str = RELEASE) -> Object:
    """The one object of this kind and name."""
    (found,) = [found for found in of_kind(objects, kind) if found["metadata"]["name"] == name]
    return found


def problems(rendered: Object) -> list[str]:
    """What the API server would find wrong with an object, unknown fields included; empty when it is fine."""
    validator = _validator(rendered["apiVersion"], rendered["kind"])
    who = f"{rendered['kind']} {rendered['metadata']['name']}"
    return [f"{who}: {error.json_path}: {error.message[:300]}" for error in validator.iter_errors(rendered)]


@functools.cache
def _validator(api_version: str, kind: str) -> jsonschema.Draft7Validator:
    group, _, version = api_version.rpartition("/")
    if group == MONITORING:
        return jsonschema.Draft7Validator(_custom_schema(kind, version))
    definitions = _kubernetes_definitions()
    wanted = {"group": group, "version": version, "kind": kind}
    for name, schema in definitions.items():
        if wanted in schema.get("x-kubernetes-group-version-kind", []):
            return jsonschema.Draft7Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})
    raise LookupError(f"Kubernetes {kubernetes_version()} knows no {kind} of {api_version}")


@functools.cache
def _kubernetes_definitions() -> dict[str, Object]:
    """Closed: an unknown field is an error, as with kubectl's strict validation."""
    swagger = json.loads(charttools.kubernetes_openapi().read_text(encoding="utf-8"))
    definitions: dict[str, Object] = swagger["definitions"]
    for name, schema in definitions.items():
        if "properties" in schema:
            schema["additionalProperties"] = False
        if name.endswith((".IntOrString", ".Quantity")):
            schema["type"] = ["string", "number"]
    return definitions


def _custom_schema(kind: str, version: str) -> Object:
    file = charttools.prometheus_operator_crds() / f"{MONITORING}_{kind.lower()}s.yaml"
    versions = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == version]
    closed = _closed(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    return closed


def _closed(schema: Object) -> Object:
    if "properties" in schema:
        below = {name: _closed(inner) for name, inner in schema["properties"].items()}
        return {**schema, "properties": below, "additionalProperties": False}
    return {**schema, "items": _closed(schema["items"])} if "items" in schema else schema


def main() -> int:
    """The chart's checks that are programs of their own; 1 when one of them fails."""
    helm, failed = str(charttools.helm()), 0
    for file in CI_VALUES:
        failed += _run(helm, "lint", "--strict", "--quiet", str(CHART), "--values", str(file))
    failed += _run(str(charttools.helm_unittest()), str(CHART), "--strict")
    return 1 if failed else 0


def _run(*command: str) -> int:
    return int(subprocess.run(command, check=False).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
