"""Where the operator's settings come from: a YAML file, and ITRAIN_* variables for single values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_origin

from itrain_contract.base import SpecModel
from itrain_contract.loading import SpecError, SpecProblem, parse_documents, validate_model, with_lines
from itrain_contract.structural import is_model, unwrap_optional
from itrain_operator.settings import OperatorSettings

ENV_CONFIG = "ITRAIN_OPERATOR_CONFIG"
DEFAULT_CONFIG = Path("/etc/itrain/operator.yaml")
SERVICE_LINK = re.compile(r"^(tcp|udp|sctp)://")
"""What Kubernetes puts into the environment for a Service; one named `itrain-metrics` would set ITRAIN_METRICS_PORT."""

FieldPath = tuple[str, ...]


def load_settings(environ: Mapping[str, str]) -> OperatorSettings:
    """The settings of this process. Raises SpecError that names every wrong field, with what is allowed.

    The default file may be missing; one that ITRAIN_OPERATOR_CONFIG names may not.
    """
    named = environ.get(ENV_CONFIG)
    path = Path(named) if named else DEFAULT_CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if named:
            problem = SpecProblem(field=ENV_CONFIG, got=repr(named), allowed="a file", remedy="there is no such file")
            raise SpecError("environment", [problem]) from error
        text = ""
    return parse_settings(text, environ, source=str(path))


def parse_settings(text: str, environ: Mapping[str, str], *, source: str = "<text>") -> OperatorSettings:
    """Settings from a YAML text (which may be empty), single values replaced by the environment's."""
    documents = parse_documents(text, source=source)
    if len(documents) > 1:
        problem = SpecProblem(field="YAML", got=f"{len(documents)} documents", allowed="at most one")
        raise SpecError(source, [problem])
    data = documents[0] if documents else {}
    set_by: dict[str, str] = {}
    if isinstance(data, dict):
        for path, name in override_names():
            if name in environ and not SERVICE_LINK.match(environ[name]):
                data = _with(data, path, environ[name])
                set_by[".".join(path)] = name
    try:
        return validate_model(OperatorSettings, data, allowed="a mapping of settings")
    except SpecError as error:
        problems = with_lines(error.problems, text) if text.strip() else error.problems
        told = [replace(p, field=set_by[p.field], line=None) if p.field in set_by else p for p in problems]
        told = [replace(p, field="settings") if p.field == "spec" else p for p in told]
        raise SpecError(source, told) from error.__cause__


def override_names() -> Iterator[tuple[FieldPath, str]]:
    """Every scalar setting by its path (`("lease", "renewSeconds")`) and the variable that overrides it."""
    for path in _scalars(OperatorSettings, ()):
        words = (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", step) for step in path)
        yield path, "_".join(("ITRAIN", *words)).upper()


def _scalars(model: type[SpecModel], above: FieldPath) -> Iterator[FieldPath]:
    for name, field in model.model_fields.items():
        path = (*above, field.alias or name)
        inner = unwrap_optional(field.annotation)
        if is_model(inner):
            yield from _scalars(inner, path)
        elif get_origin(inner) not in (list, dict):
            yield path


def _with(data: Mapping[str, Any], path: FieldPath, value: str) -> dict[str, Any]:
    """`data` with one value replaced; what is no mapping on the way stays, for validation to name."""
    below = data.get(path[0])
    if len(path) == 1:
        return {**data, path[0]: value}
    if below is not None and not isinstance(below, Mapping):
        return dict(data)
    return {**data, path[0]: _with(below or {}, path[1:], value)}
