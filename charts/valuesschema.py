"""Writes charts/itrain/values.schema.json: `python charts/valuesschema.py`. Below `settings` it is the operator's own.

JSON Schema draft 7, which every Helm understands. Closed: a field that is misspelt is refused by its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itrain_operator.settings import OperatorSettings

FILE = Path("charts/itrain/values.schema.json")
Schema = dict[str, Any]

BOOLEAN: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
"""The API server knows its fields."""
NAME_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"
OPTIONAL_NAME: Schema = {"type": "string", "maxLength": 253, "pattern": NAME_PATTERN}
STRING_MAP: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number"]}}
USER_ID: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 2_147_483_647}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65_535}
DURATION: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(s|m)$"}
RESERVED = "^(ITRAIN_.*|POD_NAMESPACE|POD_UID)$"


def closed(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object with these properties and no others."""
    made: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return made | ({"required": list(required)} if required else {})


def list_of(item: Schema, **bounds: Any) -> Schema:
    return {"type": "array", "items": item, **bounds}


def either(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


ENV_VAR = closed(
    ("name",),
    name={"type": "string", "minLength": 1, "not": {"pattern": RESERVED}},
    value={"type": "string"},
    valueFrom=closed(
        secretKeyRef=closed(("name", "key"), name=OPTIONAL_NAME, key={"type": "string"}, optional=BOOLEAN),
        configMapKeyRef=closed(("name", "key"), name=OPTIONAL_NAME, key={"type": "string"}, optional=BOOLEAN),
        fieldRef=closed(("fieldPath",), fieldPath={"type": "string"}, apiVersion={"type": "string"}),
        resourceFieldRef=ANY_OBJECT,
    ),
)
TOLERATION = closed(
    key={"type": "string"},
    operator=either("Exists", "Equal"),
    value={"type": "string"},
    effect=either("NoSchedule", "PreferNoSchedule", "NoExecute"),
    tolerationSeconds={"type": "integer", "minimum": 0},
)
MONITOR = closed(enabled=BOOLEAN, labels=STRING_MAP, interval=DURATION)
VALUES: dict[str, Schema] = {
    "nameOverride": {**OPTIONAL_NAME, "maxLength": 50},
    "fullnameOverride": {**OPTIONAL_NAME, "maxLength": 50},
    "image": closed(
        repository={"type": "string", "pattern": r"^([^\s:@]+(:[0-9]+/[^\s:@]+)?)?$"},
        tag={"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"},
        digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
        pullPolicy=either("Always", "IfNotPresent", "Never"),
    ),
    "imagePullSecrets": list_of(closed(("name",), name={**OPTIONAL_NAME, "minLength": 1})),
    "replicas": {"type": "integer", "minimum": 0, "maximum": 9},
    "logLevel": either("debug", "info", "warning", "error"),
    "crds": closed(enabled=BOOLEAN, keep=BOOLEAN),
    "rbac": closed(create=BOOLEAN, userRoles=BOOLEAN),
    "serviceAccount": closed(create=BOOLEAN, name=OPTIONAL_NAME, annotations=STRING_MAP),
    "resources": closed(requests=QUANTITIES, limits=QUANTITIES),
    "podSecurity": closed(runAsUser=USER_ID, runAsGroup=USER_ID),
    "extraEnv": list_of(ENV_VAR),
    "podLabels": STRING_MAP,
    "podAnnotations": STRING_MAP,
    "nodeSelector": STRING_MAP,
    "tolerations": list_of(TOLERATION),
    "affinity": closed(nodeAffinity=ANY_OBJECT, podAffinity=ANY_OBJECT, podAntiAffinity=ANY_OBJECT),
    "priorityClassName": OPTIONAL_NAME,
    "runtimeClassName": OPTIONAL_NAME,
    "podDisruptionBudget": closed(enabled=BOOLEAN),
    "networkPolicy": closed(
        enabled=BOOLEAN,
        metricsFrom=list_of(closed(podSelector=ANY_OBJECT, namespaceSelector=ANY_OBJECT, ipBlock=ANY_OBJECT)),
        apiServerPorts=list_of(PORT, minItems=1),
    ),
    "metrics": closed(
        service=closed(enabled=BOOLEAN, annotations=STRING_MAP),
        serviceMonitor=MONITOR,
        podMonitor=MONITOR,
        prometheusRule=closed(enabled=BOOLEAN, labels=STRING_MAP, alertLabels=STRING_MAP),
        dashboard=closed(enabled=BOOLEAN, labels=STRING_MAP, annotations=STRING_MAP),
    ),
    "global": ANY_OBJECT,
}


def settings_schema() -> tuple[Schema, dict[str, Schema]]:
    """The operator's settings as pydantic describes them, and the definitions that they refer to."""
    whole = without_nulls(OperatorSettings.model_json_schema(by_alias=True))
    return whole, whole.pop("$defs")


def without_nulls(node: Any) -> Any:
    """A field left out and one that is null are the same to Helm, so no `anyOf` has to blur its messages."""
    if isinstance(node, list):
        return [without_nulls(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {}
    for key, value in node.items():
        if key == "properties":
            made[key] = {name: without_nulls(below) for name, below in value.items()}
        elif key == "$ref":
            made[key] = value.replace("#/$defs/", "#/definitions/")
        elif key not in ("title", "default"):
            made[key] = without_nulls(value)
    options = [option for option in made.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del made["anyOf"]
        made |= options[0]
    return {"$ref": made["$ref"]} if "$ref" in made else made


def build_schema() -> Schema:
    settings, definitions = settings_schema()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart itrain",
        "type": "object",
        "additionalProperties": False,
        "properties": {**VALUES, "settings": settings},
        "definitions": definitions,
    }


def schema_text() -> str:
    return json.dumps(build_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
