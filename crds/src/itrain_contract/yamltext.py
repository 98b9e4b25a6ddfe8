"""YAML as plain data: what `kubectl` reads, within bounds that no run needs and a hostile text would exceed."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError

MAX_CHARACTERS: Final = 3 << 19
"""1.5 MiB: what etcd takes in one request."""
MAX_NODES: Final = 100_000
"""Values of one document, those behind an alias counted each time it stands there."""
MAX_DEPTH: Final = 64
MAX_NUMBER: Final = 400
"""Characters of a number."""
_INT, _FLOAT, _MAP = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "map"))


class SpecLoader(yaml.SafeLoader):
    """YAML as `kubectl` reads it: `1e-4` is a number, and a key stands once. Plain data only."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._composed = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As ever, and no further than the bounds."""
        self._composed, self._depth = self._composed + 1, self._depth + 1
        if self._depth > MAX_DEPTH or self._composed > MAX_NODES:
            bound = (
                f"that are nested deeper than {MAX_DEPTH}"
                if self._depth > MAX_DEPTH
                else f"beyond the first {MAX_NODES}"
            )
            raise ConstructorError(None, None, f"values {bound}", self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As ever; `ConstructorError` for a scalar that its tag cannot be, where PyYAML raises whatever it met."""
        if node.tag in (_INT, _FLOAT) and len(node.value) > MAX_NUMBER:
            raise ConstructorError(None, None, f"a number of {len(node.value)} characters", node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"a value that is no {kind}", node.start_mark) from error


SpecLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
SpecLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _mapping(loader: SpecLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable):
            raise ConstructorError(None, None, "a key that is a list or a mapping", key_node.start_mark)
        if key in seen:
            raise ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


SpecLoader.add_constructor(_MAP, _mapping)


def read_documents(text: str) -> list[Any]:
    """Every document of a text, empty ones as None; `yaml.YAMLError` for what is no YAML or exceeds a bound."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters, allowed are {MAX_CHARACTERS}")
    documents = []
    loader = SpecLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            _measure(node, {})
            documents.append(loader.construct_document(node))
    finally:
        loader.dispose()
    return documents


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(values, depth) of a node with its aliases written out; raises where either is out of bounds."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (0, MAX_DEPTH + 1)  # until it is known: an alias inside of itself has no end
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    measured = [_measure(child, known) for child in children]
    values, depth = 1 + sum(v for v, _ in measured), 1 + max((d for _, d in measured), default=0)
    if depth > MAX_DEPTH:
        raise ConstructorError(None, None, f"values that are nested deeper than {MAX_DEPTH}", node.start_mark)
    if values > MAX_NODES:
        problem = f"more than {MAX_NODES} values, aliases written out"
        raise ConstructorError(None, None, problem, node.start_mark)
    known[id(node)] = values, depth
    return values, depth
