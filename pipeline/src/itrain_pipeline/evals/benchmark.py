"""What a benchmark is, and how one is found by its name: the plug-in point of `evaluate` (docs/evaluation.md).

A benchmark gives items, judges one answer at a time and combines its categories. Asking, restarting, counting,
standard errors, metrics and files are the stage's, equal for every benchmark, our own two among them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from itrain_pipeline.errors import ConfigError, DataError, PermanentError, StageError
from itrain_pipeline.evals.errors import ErrorClass, Finding
from itrain_pipeline.evals.metrics import Rate, Score
from itrain_pipeline.evals.scripts import Script
from itrain_pipeline.records import Message, ToolCall
from itrain_pipeline.toolcalls.parse import ParseResult

ENTRY_POINTS: Final = "itrain.benchmarks"
"""The group under which an installed package offers factories by name."""
BUILTIN: Final[Mapping[str, str]] = {
    "bfcl": "itrain_pipeline.evals.bfcl:open_bfcl",
    "apibank": "itrain_pipeline.evals.apibank:open_apibank",
    "acebench": "itrain_pipeline.evals.acebench:open_acebench",
}
"""Names that no package can take over. The dev set is no data of its own and is made by the stage."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
CATEGORY: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question. `category` is part of a metric's name: a-z, 0-9 and `_`.

    `messages` and `tools` are rendered as the run renders everything; a leading system message is joined with the
    run's own. `prompt_ids`, where given, are asked as they are. `gold` is the judge's alone. With a `script` the item
    is a dialogue, which its world judges; `messages` are then those of its first prompt.
    """

    category: str
    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    gold: Any
    prompt_ids: tuple[int, ...] = ()
    script: Script | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model wrote, and what the run's parser read in it."""

    text: str
    parsed: ParseResult

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return self.parsed.calls

    @property
    def well_formed(self) -> bool:
        """False: the text tries a call that cannot be read."""
        return self.parsed.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Right or wrong, and the error class where it is wrong; `detail` is for people."""

    correct: bool
    error_class: ErrorClass | None = None
    detail: str = ""


@runtime_checkable
class Benchmark(Protocol):
    """Items in a fixed order and their judge. `judge` is pure: the same answer has the same verdict, in any order."""

    @property
    def name(self) -> str:
        """First part of its metrics (`<name>/accuracy`): lower case letters, digits and `_`."""

    def items(self) -> Sequence[Item]:
        """All questions; (category, id) is unique."""

    def judge(self, item: Item, answer: Answer) -> Judgement: ...

    def groups(self, rates: Mapping[str, Rate]) -> Mapping[str, Score | None]:
        """Scores over several categories by name, from rates by category; None where a category is missing.

        `accuracy` over all items and `<category>/accuracy` are there already.
        """

    def info(self) -> Mapping[str, str]:
        """What has to stand beside its figures: versions, hashes of its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a factory is given. Empty `categories` and a `limit` of 0 mean all; the limit holds for each category."""

    categories: tuple[str, ...] = ()
    limit: int = 0
    uri: str = ""
    """Where the benchmark's data lie, as the user wrote it; empty for one that carries its own."""
    read: Callable[[str], Sequence[object]] | None = field(default=None)
    """The rows of one JSON or JSON lines file by its URI, read with the source's own credentials."""

    def rows(self, name: str = "") -> list[dict[str, Any]]:
        """The rows of file `name` below `uri`, of `uri` itself without a name.

        Raises ConfigError without a `uri`, DataError for a file that is missing or a row that is no JSON object.
        """
        if not self.uri or self.read is None:
            raise ConfigError("this benchmark reads data that are not shipped: say where they lie (uri)")
        uri = join_uri(self.uri, name) if name else self.uri
        rows = []
        for number, row in enumerate(self.read(uri), 1):
            if not isinstance(row, dict):
                raise DataError(f"{uri} row {number}: expected a JSON object, found {type(row).__name__}")
            rows.append(row)
        if not rows:
            raise DataError(f"{uri} holds no rows")
        return rows

    def first(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of one category, cut to the limit."""
        return items[: self.limit] if self.limit else items


BenchmarkFactory = Callable[[Opening], Benchmark]


def join_uri(uri: str, name: str) -> str:
    """`name` below a folder's URI; a query (`?revision=…`) stays at the end."""
    folder, mark, query = uri.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def open_benchmark(name: str, opening: Opening) -> Benchmark:
    """The benchmark of that name, opened.

    Raises ConfigError where what is found is none, PermanentError for a factory that fails by itself: it would again.
    """
    factory = find_factory(name)
    try:
        made = factory(opening)
    except (StageError, OSError):
        raise
    except Exception as error:
        raise PermanentError(f"benchmark {name!r} cannot be opened: {type(error).__name__}: {error}") from error
    if not isinstance(made, Benchmark):
        raise ConfigError(
            f"benchmark {name!r}: its factory made a {type(made).__name__}, which lacks a Benchmark's parts"
        )
    if not _NAME.fullmatch(made.name):
        raise ConfigError(f"benchmark {name!r} calls itself {made.name!r}: allowed are a-z, 0-9 and _, 40 at most")
    return made


def find_factory(name: str) -> BenchmarkFactory:
    """A built-in one, an installed package's entry point, or `package.module:factory`.

    Raises ConfigError for a name that is not known, with those that are, and for one that cannot be imported.
    """
    target = BUILTIN.get(name) or (name if _DOTTED.fullmatch(name) else None)
    if target:
        module, _, attribute = target.partition(":")
        return _loaded(name, lambda: getattr(importlib.import_module(module), attribute))
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted({"dev", *BUILTIN, *found}))
        raise ConfigError(f"benchmark {name!r}: known here are {known}, and package.module:factory")
    return _loaded(name, found[name].load)


def _loaded(name: str, load: Callable[[], object]) -> BenchmarkFactory:
    try:
        factory = load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"benchmark {name!r} cannot be imported here: {error}") from error
    if not callable(factory):
        raise ConfigError(f"benchmark {name!r} is a {type(factory).__name__}, expected a factory of benchmarks")
    return factory


def judged(findings: Sequence[Finding], *notes: str) -> Judgement:
    """Right without findings; else the first one names the answer."""
    if not findings:
        return Judgement(correct=True)
    first = findings[0]
    where = ".".join(part for part in (first.tool, first.parameter) if part)
    detail = ": ".join(part for part in (*notes, where, first.detail) if part)
    return Judgement(correct=False, error_class=first.error_class, detail=detail)
