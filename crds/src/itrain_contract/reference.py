"""The field reference (docs/reference.md) from the contract's types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from itrain_contract.base import SpecModel
from itrain_contract.immutability import IMMUTABLE_FIELDS
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stagespec import Stage, Stages
from itrain_contract.status import ITrainRunStatus
from itrain_contract.structural import structural_schema

INTRO = """# Field reference

<!-- Generated from crds/src/itrain_contract by `make generate`; do not edit. -->

Every field of an `ITrainRun` (`itrain.dev/v1alpha1`), with its type, bounds and default. Fields without a default and
not marked *required* are optional. Method fields carry the values of the paper (arXiv 2501.09766) or of its code. What
lies below `affinity`, `tolerations[]` and `env[]` is as in a Pod. Whole files are in [crds/examples](../crds/examples).
"""
EVERY_STAGE = """
## Every stage

For `<stage>`: prepare, warmup, score, rollout, train, evaluate, export. These fields decide where and how often a stage
runs, never what it computes.

"""


LONGEST_DEFAULT = 160
AS_IN_A_POD = re.compile(r"(affinity|olerations\[\]|[eE]nv\[\])\.")
"""Fields that Kubernetes describes; the page names them and does not repeat them."""


def reference_page() -> str:
    """The whole page as Markdown: what all stages have stands there once."""
    return "".join(
        [
            INTRO,
            f"\n## spec\n\n{field_table('spec', ITrainRunSpec, _repeated)}",
            EVERY_STAGE + field_table("spec.stages.<stage>", Stage, lambda path: ".template." in path),
            *(f"\n## {kind}\n\n{_stage_table(kind)}" for kind in Stages.model_fields),
            f"\n## status\n\n{field_table('status', ITrainRunStatus)}",
            "\n## Rules across fields\n\n",
            *(f"- `{path}`: {rule}\n" for path, rule in _page_rules()),
        ]
    )


def _repeated(path: str) -> bool:
    return path.startswith("spec.stages.") or AS_IN_A_POD.search(path) is not None


def _stage_table(kind: str) -> str:
    """What this stage has beside what all have, and GPUs where their default is another."""
    block = type(getattr(Stages(), kind))
    shared = {field.alias or name for name, field in Stage.model_fields.items()}
    if block.model_fields["gpus"].default != Stage.model_fields["gpus"].default:
        shared.remove("gpus")
    prefix = f"spec.stages.{kind}"
    return field_table(prefix, block, lambda path: path.removeprefix(f"{prefix}.").split(".")[0] in shared)


def _page_rules() -> list[tuple[str, str]]:
    """Each rule once, and those between an edit and what was there."""
    spec = list(_rules("spec", structural_schema(ITrainRunSpec)))
    shared = {rule: path for path, rule in _rules("spec.stages.<stage>", structural_schema(Stage))}
    found: dict[str, str] = {}
    for path, rule in spec:
        found.setdefault(rule, shared.get(rule, path) if path.startswith("spec.stages") else path)
    fixed = ", ".join(f"`{name}`" for name in IMMUTABLE_FIELDS)
    return [
        *((path, rule) for rule, path in found.items()),
        ("spec", f"{fixed} cannot change: create a new run"),
        ("spec.iterations.max", "may rise but not fall, and not change after the end"),
    ]


def field_table(prefix: str, model: type[SpecModel], leave_out: Callable[[str], bool] = lambda path: False) -> str:
    """A Markdown table of every field below a model; `leave_out` tells of a path whether it stays out."""
    fields = [field for field in _walk(prefix, structural_schema(model)) if not leave_out(field[0])]
    return "| field | type | default | meaning |\n|---|---|---|---|\n" + "".join(_row(*field) for field in fields)


def _walk(prefix: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    required = set(schema.get("required", ()))
    for name, below in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path, below, name in required
        yield from _walk(path, below)
        if "items" in below:
            yield from _walk(f"{path}[]", below["items"])


def _rules(prefix: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield prefix, rule["message"]
    for name, below in schema.get("properties", {}).items():
        yield from _rules(f"{prefix}.{name}", below)


def _row(path: str, schema: dict[str, Any], required: bool) -> str:
    default = schema.get("default")
    if default is not None and "properties" in schema and "required" not in schema:
        default = {}  # every field below has its own line
    shown = "*required*" if required else ("" if default is None else f"`{json.dumps(default)}`")
    shown = shown if len(shown) <= LONGEST_DEFAULT else "a preset"
    meaning = str(schema.get("description", "")).replace("|", "\\|")
    return f"| `{path}` | {_type(schema)} | {shown} | {meaning} |\n"


def _type(schema: dict[str, Any]) -> str:
    """The type with its bounds, in few words."""
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if "additionalProperties" in schema:
        return f"map, ≤ {schema['maxProperties']}" if "maxProperties" in schema else "map"
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(schema.get("type", ""))
    return kind + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    bounds = []
    if "minimum" in schema:
        bounds.append(("> " if schema.get("exclusiveMinimum") else "≥ ") + f"{schema['minimum']:g}")
    if "maximum" in schema:
        bounds.append(("< " if schema.get("exclusiveMaximum") else "≤ ") + f"{schema['maximum']:,}")
    if "maxLength" in schema:
        bounds.append(f"≤ {schema['maxLength']} characters")
    if "maxItems" in schema:
        bounds.append(f"≤ {schema['maxItems']} items")
    return f", {', '.join(bounds)}" if bounds else ""
