"""A pydantic model's JSON schema as a Kubernetes structural schema (OpenAPI v3).

What Kubernetes asks: a type at every node, no $ref, no unions but int-or-string, no `additionalProperties: false`,
defaults that validate, and cross-field rules as CEL in `x-kubernetes-validations`.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from itrain_contract.base import SpecModel

Schema = dict[str, Any]
KEPT = (
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
)


def structural_schema(model: type[SpecModel]) -> Schema:
    """The schema of a model and of everything below it."""
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for name, field in model.model_fields.items():
        alias = field.alias or name
        properties[alias] = _field_schema(model, name, field)
        if field.is_required():
            required.append(alias)
    schema: Schema = {"type": "object", "properties": properties}
    if model.__doc__:
        schema["description"] = _sentence(model.__doc__)
    if required:
        schema["required"] = required
    rules = model.RULES
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": rule.cel, "message": rule.message} for rule in rules]
    return schema


def _field_schema(model: type[SpecModel], name: str, field: FieldInfo) -> Schema:
    inner = unwrap_optional(field.annotation)
    schema = structural_schema(inner) if is_model(inner) else _leaf(model, name, inner)
    if meaning := _meaning(model, name):
        schema["description"] = _sentence(meaning)
    default = default_of(field)
    if default is not None:
        schema["default"] = default
    return schema


def _meaning(model: type[SpecModel], name: str) -> str | None:
    """Of a field that only has another default than in the class above, the words that stand there."""
    above = (base.model_fields[name] for base in model.__mro__ if is_model(base) and name in base.model_fields)
    return next((field.description for field in above if field.description), None)


def _leaf(model: type[SpecModel], name: str, annotation: Any) -> Schema:
    """A field that is no model itself: pydantic's own schema of it, with models inside replaced by ours."""
    origin = typing.get_origin(annotation)
    raw = _raw_property(model, name)
    if origin is list:
        schema = {key: value for key, value in raw.items() if key in KEPT}
        schema["items"] = _item(typing.get_args(annotation)[0], raw.get("items", {}))
        return {"type": "array", **schema} | _list_type(typing.get_args(annotation)[0])
    if origin is dict:
        schema = {key: value for key, value in raw.items() if key in KEPT}
        schema["additionalProperties"] = _plain(raw["additionalProperties"])
        return schema
    return _plain(raw)


def _list_type(item: Any) -> Schema:
    key = getattr(strip_annotated(item), "LIST_MAP_KEY", None)
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]} if key else {}


def _item(annotation: Any, raw: Schema) -> Schema:
    inner = strip_annotated(annotation)
    text_pattern = getattr(inner, "TEXT_PATTERN", None)
    if text_pattern:  # a model that is written as one text
        return {"type": "string", "pattern": text_pattern, "maxLength": 2048}
    return structural_schema(inner) if is_model(inner) else _plain(raw)


@functools.cache
def _model_schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema(by_alias=True)


def _raw_property(model: type[BaseModel], name: str) -> Schema:
    """pydantic's schema of one property, references resolved and `null` alternatives removed."""
    whole = _model_schema(model)
    definitions = whole.get("$defs", {})
    alias = model.model_fields[name].alias or name

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        if "anyOf" in node and "x-kubernetes-int-or-string" not in node:
            kept = [option for option in node["anyOf"] if option.get("type") != "null"]
            if len(kept) == 1:
                return resolve({**{k: v for k, v in node.items() if k != "anyOf"}, **resolve(kept[0])})
        return {key: resolve(value) for key, value in node.items()}

    resolved: Schema = resolve(whole["properties"][alias])
    return resolved


def _plain(raw: Schema) -> Schema:
    """The structural part of a scalar's schema; exclusive bounds in OpenAPI v3's form."""
    if raw.get("x-kubernetes-int-or-string"):
        return {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    schema = {key: value for key, value in raw.items() if key in KEPT}
    if "const" in raw:
        schema["enum"] = [raw["const"]]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in raw:
            schema |= {bound: raw[exclusive], exclusive: True}
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    if schema.get("type") == "number":
        schema["format"] = "double"
    return schema


def default_of(field: FieldInfo) -> Any:
    """The default as the API server fills it in; None where there is none.

    `{}` lets nested defaults apply, but the server judges a default by the rules of its object before it fills it in:
    an object with rules has its default written out.
    """
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None:
        return None
    if isinstance(value, BaseModel):
        every_field_has_one = not any(f.is_required() for f in type(value).model_fields.values())
        if every_field_has_one and value == type(value)() and not getattr(value, "RULES", ()):
            return {}
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, list):
        return [v.model_dump(mode="json", by_alias=True, exclude_none=True) if is_model(type(v)) else v for v in value]
    return getattr(value, "value", value)


def unwrap_optional(annotation: Any) -> Any:
    """`X` of `X | None`; Annotated layers removed."""
    annotation = strip_annotated(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kept = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if len(kept) == 1:
            return strip_annotated(kept[0])
    return annotation


def strip_annotated(annotation: Any) -> Any:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def is_model(annotation: Any) -> typing.TypeGuard[type[SpecModel]]:
    return isinstance(annotation, type) and issubclass(annotation, SpecModel)


def _sentence(text: str) -> str:
    return " ".join(text.split())
