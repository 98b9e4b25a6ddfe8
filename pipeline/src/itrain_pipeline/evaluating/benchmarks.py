"""What is asked: the benchmarks of a command, opened, with a dev set from rows of a training format."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.stagespec import Curriculum
from itrain_pipeline.data.examples import Conversion, convert, drop_duplicates
from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.asking import Key
from itrain_pipeline.evals.benchmark import Benchmark, Item, Opening, open_benchmark
from itrain_pipeline.evals.devset import DevSet
from itrain_pipeline.evals.questions import PromptRenderer, Question, build_questions
from itrain_pipeline.evals.scripts import Script
from itrain_pipeline.store import open_store

MAX_REJECTED = 0.05
"""Share of a dev set's rows that may be of no use, as in a run."""


def open_benchmarks(arguments: argparse.Namespace, scratch: Path) -> list[Benchmark]:
    """The benchmarks in their order. Raises ConfigError and DataError as `open_benchmark` does."""
    places = pairs("--data", arguments.data)
    categories = {
        name: tuple(listed.split(",")) for name, listed in pairs("--categories", arguments.categories).items()
    }
    for option, given in (("--data", places), ("--categories", categories)):
        for name in given.keys() - set(arguments.benchmark):
            raise ConfigError(f"{option} names {name!r}, which is no --benchmark of this command")
    store = open_store(str(scratch))

    def read(uri: str) -> list[object]:
        return list(read_rows(uri, "messages", store=store, scratch=scratch / "data"))

    opened: list[Benchmark] = []
    for name in dict.fromkeys(arguments.benchmark):
        if name == "dev":
            opened.append(open_dev(places.get(name, ""), arguments, scratch))
            continue
        opening = Opening(
            categories=categories.get(name, ()), limit=arguments.limit, uri=places.get(name, ""), read=read
        )
        try:
            opened.append(open_benchmark(name, opening))
        except ConfigError as error:
            raise ConfigError(str(error).replace("stages.evaluate.", "--")) from error
    for at, benchmark in enumerate(opened):
        if any(benchmark.name == other.name for other in opened[:at]):
            raise ConfigError(f"--benchmark: two benchmarks call themselves {benchmark.name!r}")
    return opened


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE options by name; a list of categories without a name is BFCL's."""
    found: dict[str, str] = {}
    for one in given:
        name, mark, value = one.partition("=")
        if not mark and option == "--categories":
            name, value = "bfcl", one
        elif not mark:
            raise ConfigError(f"{option}: got {one!r}, expected NAME=URI")
        if name in found or not value:
            raise ConfigError(f"{option}: {name!r} has {'two values' if name in found else 'no value'}")
        found[name] = value
    return found


def open_dev(uri: str, arguments: argparse.Namespace, scratch: Path) -> DevSet:
    """Rows of a training format as a dev set. Raises DataError where more than `MAX_REJECTED` of them are of no use."""
    if not uri:
        raise ConfigError("--benchmark dev needs its rows: --data dev=URI, with --dev-format")
    rows = list(read_rows(uri, arguments.dev_format, store=open_store(str(scratch)), scratch=scratch / "dev"))
    made = convert(
        rows,
        Conversion(
            source=uri,
            prefix="dev",
            data_format=arguments.dev_format,
            call_format=arguments.call_format,
            turns="all",
            curriculum=Curriculum(),
        ),
    )
    if len(made.rejected) > MAX_REJECTED * len(rows) or not made.examples:
        first = f": row {made.rejected[0].row}: {made.rejected[0].reason}: {made.rejected[0].detail}"
        raise DataError(
            f"{uri}: {len(made.rejected)} of {len(rows)} rows are of no use as {arguments.dev_format}"
            f"{first[:300] if made.rejected else ''}"
        )
    if made.rejected:
        sys.stderr.write(f"{uri}: {len(made.rejected)} of {len(rows)} rows are of no use and left out\n")
    unique, _ = drop_duplicates(made.examples)
    if arguments.limit:
        kinds = ([e for e in unique if e.has_call == call][: arguments.limit] for call in (True, False))
        kept = {example.id for kind in kinds for example in kind}
        unique = [example for example in unique if example.id in kept]
    return DevSet(examples=unique)


def collect(
    benchmarks: Sequence[Benchmark], renderer: PromptRenderer
) -> tuple[list[Question], dict[Key, Item], dict[str, str]]:
    """All questions, the items behind them, and what stands beside their figures.

    Raises DataError where there is none, or two share an id.
    """
    questions: list[Question] = []
    items: dict[Key, Item] = {}
    info: dict[str, str] = {}
    for benchmark in benchmarks:
        found = benchmark.items()
        for item in found:
            key = (benchmark.name, item.category, item.id)
            if key in items:
                raise DataError(f"{benchmark.name}/{item.category}: two questions have the id {item.id!r}")
            items[key] = item
        questions += build_questions(benchmark, found, renderer)
        info |= benchmark.info()
    if not questions:
        raise DataError(f"nothing to evaluate: {', '.join(b.name for b in benchmarks)} hold no questions")
    return questions, items, info


def _scripted(script: Script | None) -> list[Any]:
    """What a dialogue shows after its first prompt."""
    if script is None:
        return []
    turns = [[[m.role, m.content] for m in turn] for turn in script.turns]
    return [turns, {str(turn): tools for turn, tools in script.added.items()}, script.instruction, script.again]


def common_settings(
    arguments: argparse.Namespace, items: Mapping[Key, Item], info: Mapping[str, str]
) -> dict[str, Any]:
    asked = [
        [*key, [[m.role, m.content] for m in item.messages], item.tools, item.prompt_ids, *_scripted(item.script)]
        for key, item in items.items()
    ]
    digest = hashlib.sha256(json.dumps(asked, ensure_ascii=False, default=str).encode("utf-8", "replace")).hexdigest()
    return {
        "benchmarks": list(dict.fromkeys(arguments.benchmark)),
        "categories": sorted(arguments.categories),
        "limit": arguments.limit,
        "call_format": arguments.call_format,
        "max_new_tokens": arguments.max_new_tokens,
        **info,
        "questions_sha256": digest,
    }
