"""`python -m itrain_pipeline.evaluating`: a model folder or an endpoint on the benchmarks, without a run.

Exit codes: 0 every item has an answer; 64 configuration (a folder of other settings, an unknown key or model too); 65
data; 70 the endpoint refuses items for good; 75 items without an answer, an endpoint that is away, or a folder in use:
the same command asks for what is missing; 143 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.names import ExitCode
from itrain_contract.spec import ModelSpec
from itrain_contract.stagespec import Curriculum
from itrain_pipeline.__main__ import spare_the_compiler
from itrain_pipeline.data.examples import Conversion, convert, drop_duplicates
from itrain_pipeline.data.rendering import system_text
from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.engine import open_engine
from itrain_pipeline.errors import ConfigError, DataError, StageError
from itrain_pipeline.evals.asking import AnswerFolder, Failure, Key, ask_all
from itrain_pipeline.evals.benchmark import Benchmark, Item, Opening, open_benchmark
from itrain_pipeline.evals.bfclresults import ENTRY, write_results
from itrain_pipeline.evals.devset import DevSet
from itrain_pipeline.evals.endpoint import Endpoint, Target, TooLongError
from itrain_pipeline.evals.evaluateview import Meter, Tally, summary_lines
from itrain_pipeline.evals.metrics import count_errors, flat_metrics, score_groups
from itrain_pipeline.evals.nativecalls import read_native
from itrain_pipeline.evals.questions import PromptRenderer, Question, ReadAnswer, build_questions, not_asked, predict
from itrain_pipeline.ports import StopSignal
from itrain_pipeline.records import Message, Prediction
from itrain_pipeline.runtime import configure_logging
from itrain_pipeline.stopsignal import StopFlag
from itrain_pipeline.store import open_store
from itrain_pipeline.toolcalls.parse import parse

MAX_REJECTED = 0.05
"""Share of a dev set's rows that may be of no use, as in a run."""
ENGINE_CONCURRENCY, ENDPOINT_CONCURRENCY = 64, 8

Ask = Callable[[Question], Awaitable[Prediction]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of whom: `settings` name everything that an answer depends on."""

    questions: list[Question]
    settings: dict[str, Any]
    read: ReadAnswer
    start: Callable[[], tuple[Ask, Callable[[], Awaitable[None]], Callable[[], Mapping[str, float]]]]
    """Loads what answers: (ask, close, counters). Called once, and only where something is missing."""
    concurrency: int


def main(argv: Sequence[str] | None = None, stop: StopSignal | None = None) -> int:
    """Without `stop` this is a process of its own, which takes over signals and logging."""
    arguments = build_parser().parse_args(argv)
    if stop is None:
        configure_logging(logging.WARNING)
        stop = StopFlag()
        stop.install()
    try:
        return evaluate(arguments, stop, os.environ)
    except StageError as error:
        sys.stderr.write(f"itrain: {error}\n")
        return error.exit_code


def evaluate(arguments: argparse.Namespace, stop: StopSignal, environ: Mapping[str, str]) -> int:
    """Ask what the folder does not hold yet, judge, and tell. Raises StageError as the exit codes say."""
    check_options(arguments)
    with tempfile.TemporaryDirectory(prefix="itrain-evaluate-") as scratch:
        benchmarks = open_benchmarks(arguments, Path(scratch))
        groups = {benchmark.name: benchmark.groups for benchmark in benchmarks}
        made = (of_endpoint if arguments.endpoint else of_model)(arguments, benchmarks, Path(scratch), environ)
        with AnswerFolder(arguments.out, made.settings) as folder:
            failures, counters = fill(folder, made, stop, plain=arguments.plain)
            predictions = [folder.done[q.key] for q in made.questions if q.key in folder.done]
            folder.finish(predictions, failures, summarise(made, predictions, failures, groups, counters))
    if arguments.output == "json":
        sys.stdout.write((arguments.out / "summary.json").read_text(encoding="utf-8"))
    else:
        summary_lines(predictions, groups, failures, sys.stdout)
        sys.stdout.write(f"answers    {arguments.out}\n")
    if arguments.export_bfcl is not None:
        told = export(arguments.export_bfcl, predictions, made.read)
        sys.stderr.write(f"{told}\n")
    if not failures:
        return ExitCode.DONE
    return ExitCode.RETRYABLE if any(failure.kind.passes for failure in failures) else ExitCode.PERMANENT


def check_options(arguments: argparse.Namespace) -> None:
    """ConfigError for options that do not go together. Without a benchmark, BFCL is meant."""
    arguments.benchmark = arguments.benchmark or ["bfcl"]
    if (arguments.model_dir is None) == (arguments.endpoint is None):
        raise ConfigError("give a model folder, or --endpoint URL --model NAME; one of them")
    if arguments.endpoint and not arguments.model:
        raise ConfigError("--endpoint needs --model NAME: the name under which it serves the model")
    ours = {"--adapter": arguments.adapter}
    theirs = {"--model": arguments.model, "--api-key-env": arguments.api_key_env, "--native": arguments.native}
    for name, value in (ours if arguments.endpoint else theirs).items():
        if value:
            raise ConfigError(f"{name} is for {'a model folder' if arguments.endpoint else '--endpoint'} only")
    for name in ("limit", "max_new_tokens", "concurrency", "timeout", "retries"):
        least = 0 if name in ("limit", "retries") else 1
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: got {value}, allowed are numbers from {least} on")
    if arguments.export_bfcl is not None and "bfcl" not in arguments.benchmark:
        raise ConfigError("--export-bfcl needs --benchmark bfcl")


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


def common_settings(
    arguments: argparse.Namespace, items: Mapping[Key, Item], info: Mapping[str, str]
) -> dict[str, Any]:
    asked = [
        [*key, [[m.role, m.content] for m in item.messages], item.tools, item.prompt_ids] for key, item in items.items()
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


def of_model(
    arguments: argparse.Namespace, benchmarks: Sequence[Benchmark], scratch: Path, environ: Mapping[str, str]
) -> Asked:
    """A model folder on one of our engines, rendered and judged as a run does it."""
    spare_the_compiler(os.environ)
    import transformers  # only here: it loads torch, and so does what follows

    from itrain_pipeline.engine import choose_engine
    from itrain_pipeline.engine.adapters import check_servable
    from itrain_pipeline.engine.vllm_versions import is_installed, serves_gpu
    from itrain_pipeline.stages.compute import compute_for
    from itrain_pipeline.stages.evaluate import Asker
    from itrain_pipeline.stages.modelfiles import content_hash, find_model
    from itrain_pipeline.stages.rendered import load_renderer, stop_token_ids

    model = find_model(ModelSpec(uri=arguments.model_dir), open_store(str(scratch)), scratch)
    adapter: Path | None = arguments.adapter
    if adapter is not None:
        check_servable(adapter)
    kind = choose_engine(arguments.engine, installed=is_installed(), serves_gpu=serves_gpu)
    compute = compute_for(arguments.precision, model.folder)
    renderer = load_renderer(model.folder, arguments.call_format, trust_remote_code=False)
    questions, items, info = collect(benchmarks, renderer)
    read = functools.partial(parse, call_format=arguments.call_format)
    files = {} if adapter is None else {p.name: p for p in sorted(adapter.iterdir()) if p.is_file()}
    point = "base" if adapter is None else "adapter"

    def start() -> tuple[Ask, Callable[[], Awaitable[None]], Callable[[], Mapping[str, float]]]:
        transformers.utils.logging.disable_progress_bar()  # ours counts the answers
        engine = open_engine(kind, model.folder, dtype=compute.precision)
        engine.load_adapter(point, adapter)
        asker = Asker(
            engine=engine,
            renderer=renderer,
            read=read,
            max_new_tokens=arguments.max_new_tokens,
            stop_ids=stop_token_ids(model.folder, renderer),
        )

        def counters() -> dict[str, float]:
            found = engine.counters()
            return {"requests": found.requests, "decoded": found.decoded, "prefill_computed": found.prefill_computed}

        return lambda question: asker.ask(question, point), engine.aclose, counters

    return Asked(
        questions=questions,
        settings={
            "model": model.revision,
            "adapter": content_hash(files) if files else None,
            "engine": kind,
            "precision": compute.precision,
            "rendering": renderer.template_sha256,
            **common_settings(arguments, items, info),
        },
        read=read,
        start=start,
        concurrency=arguments.concurrency or ENGINE_CONCURRENCY,
    )


def of_endpoint(
    arguments: argparse.Namespace, benchmarks: Sequence[Benchmark], scratch: Path, environ: Mapping[str, str]
) -> Asked:
    """An OpenAI-compatible endpoint: our tools as text in the system turn, or with `--native` as `tools`."""
    target = Target(
        url=arguments.endpoint,
        model=arguments.model,
        api_key=read_key(arguments.api_key_env, environ),
        native=arguments.native,
        call_format=arguments.call_format,
        max_new_tokens=arguments.max_new_tokens,
        timeout_s=arguments.timeout,
        retries=arguments.retries,
    )
    endpoint = Endpoint(target)
    questions, items, info = collect(benchmarks, _Bodies(endpoint))
    read: ReadAnswer = read_native if target.native else functools.partial(parse, call_format=target.call_format)

    async def ask(question: Question) -> Prediction:
        if question.obstacle:
            return not_asked(question, target.model, question.obstacle)
        try:
            reply = await endpoint.ask(items[question.key])
        except TooLongError as error:
            return not_asked(question, target.model, str(error))
        return predict(question, target.model, reply.text, read, note=reply.note)

    def counters() -> dict[str, float]:
        retried = {f"retried_{kind}": float(count) for kind, count in endpoint.retried.items()}
        return {**retried, **{name: float(count) for name, count in endpoint.tokens.items()}}

    wording = system_text(({"mark": 0},), target.call_format)
    return Asked(
        questions=questions,
        settings={
            "model": target.model,
            "endpoint": target.url,
            "mode": "native" if target.native else "prompt",
            "rendering": "native" if target.native else hashlib.sha256(wording.encode()).hexdigest(),
            **common_settings(arguments, items, info),
        },
        read=read,
        start=lambda: (ask, endpoint.aclose, counters),
        concurrency=arguments.concurrency or ENDPOINT_CONCURRENCY,
    )


class _Bodies:
    """The server renders; here it only shows whether a dialogue can be sent at all."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        self._endpoint.body(
            Item(category="", id="", messages=tuple(messages), tools=tuple(map(dict, tools)), gold=None)
        )
        return ()


def read_key(name: str | None, environ: Mapping[str, str]) -> str:
    """The key in the environment variable `name`; empty without a name. Raises ConfigError where it is not set."""
    if name is None:
        return ""
    key = environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"--api-key-env {name}: there is no such environment variable, or it is empty")
    return key


def fill(
    folder: AnswerFolder, made: Asked, stop: StopSignal, *, plain: bool
) -> tuple[list[Failure], Mapping[str, float]]:
    """Ask what is missing. Nothing is loaded where nothing is."""
    missing = [question for question in made.questions if question.key not in folder.done]
    missing.sort(key=lambda question: len(question.prompt_ids))  # what an engine batches wastes little on padding
    held = [folder.done[question.key] for question in made.questions if question.key in folder.done]
    tally = Tally(total=len(made.questions), answered=len(held), correct=sum(p.correct for p in held))
    if held:
        sys.stderr.write(f"{len(held)} of {tally.total} answers are there already\n")
    if not missing:
        return [], {}
    ask, close, counters = made.start()

    async def whole() -> list[Failure]:
        with Meter(tally, sys.stderr, plain=plain) as meter:

            def keep(one: Prediction | Failure) -> None:
                if isinstance(one, Prediction):
                    folder.add(one)
                meter.add(one)

            try:
                patience = max(10, 2 * made.concurrency)
                return await ask_all(missing, ask, keep, concurrency=made.concurrency, stop=stop, patience=patience)
            finally:
                await close()

    return asyncio.run(whole()), counters()


def summarise(
    made: Asked,
    predictions: Sequence[Prediction],
    failures: Sequence[Failure],
    groups: Mapping[str, Any],
    counters: Mapping[str, float],
) -> dict[str, Any]:
    """What `summary.json` holds. Counters are of this call alone."""
    failed: dict[str, int] = {}
    for failure in failures:
        failed[failure.kind.value] = failed.get(failure.kind.value, 0) + 1
    errors = {name: count_errors(p for p in predictions if p.benchmark == name) for name in groups}
    return {
        "settings": made.settings,
        "questions": len(made.questions),
        "answered": len(predictions),
        "failed": failed,
        "metrics": flat_metrics(score_groups(predictions, groups)),
        "errors": errors,
        "counters": dict(counters),
    }


def export(folder: Path, predictions: Sequence[Prediction], read: ReadAnswer) -> str:
    """Write BFCL's result files; returns how to have them judged."""
    counts = write_results(folder, predictions, read)
    left_out = sum(p.benchmark == "bfcl" for p in predictions) - sum(counts.values())
    told = f", {left_out} left out that were not asked" if left_out else ""
    return (
        f"{sum(counts.values())} answers in {folder}{told}: BFCL_PROJECT_ROOT={folder.resolve().parent} bfcl evaluate "
        f"--partial-eval --model {ENTRY} --test-category {','.join(counts)} --result-dir {folder.name}"
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m itrain_pipeline.evaluating", description=__doc__)
    parser.add_argument("model_dir", nargs="?", metavar="MODEL", help="folder, builtin://toolworld, hf:// or s3://")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT LoRA folder over MODEL")
    parser.add_argument("--engine", default="auto", choices=("auto", "transformers", "vllm"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible API, as in http://127.0.0.1:8000/v1")
    parser.add_argument("--model", metavar="NAME", help="the endpoint's name of the model")
    parser.add_argument("--api-key-env", metavar="VAR", help="the environment variable that holds the endpoint's key")
    parser.add_argument("--native", action="store_true", help="send tools as tools, read tool_calls")
    parser.add_argument("--call-format", default="pythonic", choices=("pythonic", "hermes", "llama"))
    parser.add_argument("--benchmark", action="append", metavar="NAME", help="dev, bfcl, …; again for several")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=URI", help="where a benchmark's data lie")
    parser.add_argument("--dev-format", default="toolace", choices=("toolace", "xlam", "bfcl", "messages"))
    parser.add_argument("--categories", action="append", default=[], metavar="A,B", help="BFCL's, or NAME=A,B")
    parser.add_argument("--limit", type=int, default=0, help="items per category, the first ones; 0 means all")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--concurrency", type=int, help="items in flight")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of one attempt at an endpoint")
    parser.add_argument("--retries", type=int, default=4, help="attempts at an endpoint beyond the first")
    parser.add_argument("--export-bfcl", type=Path, metavar="DIR", help="also write BFCL's own result format")
    parser.add_argument("--plain", action="store_true", help="plain lines even on a terminal")
    parser.add_argument("--output", default="text", choices=("text", "json"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
