"""Writes the CRD (for kubectl and for the chart) and the field reference: `python -m itrain_contract.crdgen`.

Generated files are committed and never edited; `make verify` makes them again and expects no difference.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from itrain_contract import names
from itrain_contract.immutability import IMMUTABLE_FIELDS
from itrain_contract.reference import reference_page
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.status import ITrainRunStatus
from itrain_contract.structural import structural_schema

CRD_FILE = Path("crds/itrainruns.itrain.dev.yaml")
CHART_CRD_FILE = Path("charts/itrain/templates/crd.yaml")
REFERENCE_FILE = Path("docs/reference.md")

HEADER = "# Generated from crds/src/itrain_contract by `make generate`; do not edit.\n"

COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Iter", "string", ".status.iterationText", 0),
    ("Stage", "string", ".status.stage", 0),
    ("Progress", "string", ".status.progressText", 0),
    ("Best", "string", ".status.bestText", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Attempt", "integer", ".status.attempt", 1),
    ("Queue", "string", ".spec.queue.name", 1),
    ("Reason", "string", ".status.reason", 1),
    ("GPU-hours", "string", ".status.gpuHours", 1),
)

ENDED = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Succeeded', 'Failed']"
ROOT_RULES = (
    {
        "rule": f"self.metadata.name.matches('{names.RUN_NAME_PATTERN}')",
        "message": "metadata.name must be lower-case letters, digits and '-', beginning with a letter",
    },
    {
        "rule": f"size(self.metadata.name) <= {names.RUN_NAME_MAX_LENGTH}",
        "message": f"metadata.name must have at most {names.RUN_NAME_MAX_LENGTH} characters: its Jobs carry it",
    },
    {
        "rule": f"!({ENDED}) || self.spec.iterations.max == oldSelf.spec.iterations.max",
        "message": "iterations.max cannot change after the run has ended: create a new run with resumeFrom",
    },
)


def transition_rules() -> list[dict[str, str]]:
    """What an edit may not do; the same rules stand in `itrain_contract.immutability`."""
    rules = [
        {"rule": f"self.{name} == oldSelf.{name}", "message": f"{name} is immutable: create a new run"}
        for name in IMMUTABLE_FIELDS
    ]
    raise_only = {
        "rule": "self.iterations.max >= oldSelf.iterations.max",
        "message": "iterations.max may rise but not fall: use stopWhen or suspend to end early",
    }
    return [*rules, raise_only]


def build_crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a plain dict."""
    spec = structural_schema(ITrainRunSpec)
    for at, stage in enumerate(spec["properties"]["stages"]["properties"].values()):
        for name in ("template", "resources", "retry") if at else ("template",):
            _describe_once(stage["properties"][name])
    spec["x-kubernetes-validations"] = [*spec.get("x-kubernetes-validations", []), *transition_rules()]
    schema = {
        "type": "object",
        "description": "One iterative post-training run: warm-up, then score, search, train and evaluate, repeated.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural_schema(ITrainRunStatus),
        },
        "x-kubernetes-validations": list(ROOT_RULES),
    }
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [version],
        },
    }


def _describe_once(schema: dict[str, Any]) -> None:
    """Remove the descriptions below an object that stands elsewhere with them: a CRD has 256 KiB."""
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    for node in below:
        node.pop("description", None)
        _describe_once(node)


def _column(name: str, kind: str, path: str, priority: int) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def crd_text() -> str:
    return HEADER + yaml.safe_dump(build_crd(), sort_keys=False, width=116, allow_unicode=True)


CHART_METADATA = """\
metadata:
  labels:
    {{- include "itrain.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""


def chart_crd_text() -> str:
    """The CRD as a template of the chart: with its labels, kept at an uninstall, left out where others apply it."""
    literal = crd_text().replace("{{", '{{ "{{" }}')
    body = literal.replace("metadata:\n", CHART_METADATA, 1)
    return f"{{{{- if .Values.crds.enabled }}}}\n{body}{{{{- end }}}}\n"


def generated_files() -> dict[Path, str]:
    """Every generated file by its path from the repository's root."""
    return {CRD_FILE: crd_text(), CHART_CRD_FILE: chart_crd_text(), REFERENCE_FILE: reference_page()}


def main(argv: list[str]) -> int:
    """Write the files; with `--check` only say which would change (exit 1)."""
    stale = []
    for path, text in generated_files().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if "--check" not in argv:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(("stale: " if "--check" in argv else "generated: ") + ", ".join(stale) + "\n")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
