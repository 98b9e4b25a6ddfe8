"""The base of every spec and status model, and the cross-field rules that CEL and Python share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One cross-field rule, said twice: as CEL for the API server and as a predicate for `itrain validate`.

    `transition` rules mention `oldSelf`; Python checks them in `itrain_contract.immutability`.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""


class SpecModel(BaseModel):
    """Frozen, closed, camelCase in YAML and snake_case in Python."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _cross_field_rules(self) -> Self:
        for rule in self.RULES:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self
