"""YAML text to a validated ITrainRun, with every problem named at once: field, value, what is allowed, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from itrain_contract.base import SpecModel
from itrain_contract.names import API_VERSION, KIND, RUN_NAME_MAX_LENGTH, RUN_NAME_PATTERN
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stagespec import ENGINE_PATTERN
from itrain_contract.yamltext import MAX_CHARACTERS, SpecLoader, read_documents

MAX_PROBLEMS = 100
"""Told at once; a file with more is no run."""
AnyModel = TypeVar("AnyModel", bound=BaseModel)
RunName = Annotated[str, StringConstraints(min_length=1, max_length=RUN_NAME_MAX_LENGTH, pattern=RUN_NAME_PATTERN)]


class Metadata(SpecModel):
    """The part of metadata that a file may hold; the API server adds the rest."""

    model_config = {**SpecModel.model_config, "extra": "ignore"}

    name: RunName
    namespace: Annotated[str, StringConstraints(max_length=63)] = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class ITrainRun(SpecModel):
    """A run as a user writes it."""

    api_version: Literal["itrain.dev/v1alpha1"]
    kind: Literal["ITrainRun"]
    metadata: Metadata
    spec: ITrainRunSpec
    status: Annotated[dict[str, Any], Field(exclude=True)] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecProblem:
    """One thing that is wrong with a spec, in words that tell what to do."""

    field: str
    got: str
    allowed: str
    remedy: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{self.field}: got {self.got}, allowed: {self.allowed}{remedy}"


class SpecError(ValueError):
    """A file that is not a valid ITrainRun."""

    def __init__(self, source: str, problems: list[SpecProblem]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


def load_run(path: Path) -> ITrainRun:
    """The run in a YAML file; raises SpecError, or OSError when the file cannot be read."""
    return parse_run(read_text(path), source=str(path))


def read_text(path: Path) -> str:
    """The text of a YAML file; SpecError for one that is no UTF-8 or larger than any run, OSError as ever."""
    with path.open("rb") as data:
        found = data.read(4 * MAX_CHARACTERS + 1)
    try:
        return found[: 4 * MAX_CHARACTERS].decode("utf-8")
    except UnicodeDecodeError as error:
        problem = SpecProblem(field="YAML", got=f"byte {error.start} that is no UTF-8", allowed="UTF-8 text")
        raise SpecError(str(path), [problem]) from error


def parse_run(text: str, *, source: str = "<text>") -> ITrainRun:
    """The run in a YAML text; raises SpecError with every problem found."""
    documents = parse_documents(text, source=source)
    if len(documents) != 1:
        got = f"{len(documents)} documents"
        raise SpecError(source, [SpecProblem(field="YAML", got=got, allowed="one ITrainRun in a file")])
    try:
        return validate_run(documents[0])
    except SpecError as error:
        raise SpecError(source, with_lines(error.problems, text)) from error.__cause__


def parse_documents(text: str, *, source: str) -> list[Any]:
    """The documents of a YAML text that hold anything, as plain data; raises SpecError for what is no YAML."""
    try:
        return [d for d in read_documents(text) if d is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        got = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise SpecError(source, [SpecProblem(field="YAML", got=got, allowed="well-formed YAML", line=line)]) from error


def validate_run(data: object) -> ITrainRun:
    """The run in parsed YAML or JSON; raises SpecError with every problem found."""
    allowed = "a mapping with apiVersion, kind, spec"
    return validate_model(ITrainRun, _as_the_server_reads(data), allowed=allowed, strict=True)


def validate_model(
    model: type[AnyModel], data: object, *, allowed: str = "a mapping", strict: bool | None = None
) -> AnyModel:
    """Parsed YAML or JSON as a model; raises SpecError with every problem found.

    `allowed` describes the whole; `strict` refuses text for a number, as the API server does.
    """
    if not isinstance(data, dict):
        raise SpecError("<object>", [SpecProblem(field="YAML", got=type(data).__name__, allowed=allowed)])
    try:
        return model.model_validate(data, strict=strict)
    except ValidationError as error:
        found = error.errors()
        problems = [_problem(details, model) for details in found[:MAX_PROBLEMS]]
        if len(found) > MAX_PROBLEMS:
            more = f"{len(found) - MAX_PROBLEMS} more problems"
            problems.append(SpecProblem(field="YAML", got=more, allowed=f"none; the first {MAX_PROBLEMS} are named"))
        raise SpecError("<object>", problems) from error


def _as_the_server_reads(value: Any) -> Any:
    """Nulls in mappings are dropped, so that defaults apply, and a whole number may be written 42.0."""
    if isinstance(value, dict):
        return {key: _as_the_server_reads(below) for key, below in value.items() if below is not None}
    if isinstance(value, list):
        return [_as_the_server_reads(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_lines(problems: list[SpecProblem], text: str) -> list[SpecProblem]:
    """The problems with the lines of a text of one document in which they lie."""
    lines = _lines(text)
    return [_with_line(problem, lines) for problem in problems]


def _with_line(problem: SpecProblem, lines: dict[str, int]) -> SpecProblem:
    path = problem.field
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return SpecProblem(
        field=problem.field,
        got=problem.got,
        allowed=problem.allowed,
        remedy=problem.remedy,
        line=lines.get(path),
    )


def _lines(text: str) -> dict[str, int]:
    """Line of every field path of the (single) document."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = f"{path}.{key.value}" if path else str(key.value)
                found.setdefault(below, key.start_mark.line + 1)
                walk(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                found.setdefault(f"{path}[{index}]", value.start_mark.line + 1)
                walk(value, f"{path}[{index}]")

    root = yaml.compose(text, Loader=SpecLoader)
    if root is not None:
        walk(root, "")
    return found


def _path(location: tuple[int | str, ...]) -> str:
    """`spec.data.extra[0].uri` from pydantic's location, whose steps may be Python names or aliases."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else str(step))
    return text


def _model_at(location: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model below `model` that holds the last step of a location."""
    for step in location[:-1]:
        if isinstance(step, int):
            continue
        field = next((f for name, f in model.model_fields.items() if step in (name, f.alias)), None)
        inner = _inner_model(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _inner_model(arg)) is not None), None)


def _problem(details: ErrorDetails, model: type[BaseModel]) -> SpecProblem:
    """One pydantic error in the words of a user of YAML."""
    location, context = details["loc"], details.get("ctx", {})
    field, got = _path(location), _short(details.get("input"))
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_field(location, field, model)
    if kind == "missing":
        return SpecProblem(field=field, got="nothing", allowed="a value", remedy=f"set {field}")
    if kind == "value_error":
        message = str(context.get("error", details["msg"]))
        rule, _, remedy = message.partition(": ")
        return SpecProblem(field=field or "spec", got=got, allowed=rule, remedy=remedy)
    if model is ITrainRun and field == "metadata.name":
        return SpecProblem(
            field=field,
            got=got,
            allowed=f"at most {RUN_NAME_MAX_LENGTH} lower-case letters, digits and '-', first a letter",
            remedy="rename the run: its Jobs, pods and hostnames carry this name",
        )
    return SpecProblem(field=field, got=got, allowed=_allowed(kind, context, details["msg"]), remedy=_remedy(field))


def _remedy(field: str) -> str:
    fixed = {"apiVersion": f"write apiVersion: {API_VERSION}", "kind": f"write kind: {KIND}"}
    return fixed.get(field, f"change {field}")


def _unknown_field(location: tuple[int | str, ...], field: str, root: type[BaseModel]) -> SpecProblem:
    model = _model_at(location, root)
    known = sorted(f.alias or name for name, f in model.model_fields.items()) if model else []
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    remedy = f"did you mean {close[0]}?" if close else "remove it"
    return SpecProblem(field=field, got="an unknown field", allowed=", ".join(known) or "no fields", remedy=remedy)


PATTERNS = {ENGINE_PATTERN: "auto, vllm, transformers or package.module:factory"}
"""Patterns that are easier said than read."""
_ALLOWED: dict[str, Callable[[dict[str, Any]], str]] = {
    "literal_error": lambda c: "one of " + str(c["expected"]).replace(" or ", ", ").replace("'", ""),
    "greater_than_equal": lambda c: f"at least {c['ge']}",
    "greater_than": lambda c: f"more than {c['gt']}",
    "less_than_equal": lambda c: f"at most {c['le']}",
    "less_than": lambda c: f"less than {c['lt']}",
    "string_pattern_mismatch": lambda c: PATTERNS.get(c["pattern"], f"text that matches {c['pattern']}"),
    "string_too_long": lambda c: f"at most {c['max_length']} characters",
    "string_too_short": lambda c: f"at least {c['min_length']} characters",
    "too_long": lambda c: f"at most {c['max_length']} items",
    "too_short": lambda c: f"at least {c['min_length']} items",
    "int_type": lambda _: "a whole number",
    "int_parsing": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "float_parsing": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "string_type": lambda _: "text",
    "bool_type": lambda _: "true or false",
    "bool_parsing": lambda _: "true or false",
    "model_type": lambda _: "a mapping",
    "dict_type": lambda _: "a mapping",
    "list_type": lambda _: "a list",
}
"""What a field may be, by pydantic's error type."""


def _allowed(kind: str, context: dict[str, Any], message: str) -> str:
    say = _ALLOWED.get(kind)
    return say(context) if say else message.removeprefix("Input should be ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
