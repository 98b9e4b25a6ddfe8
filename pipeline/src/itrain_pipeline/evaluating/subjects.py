"""Who is asked: a model folder on one of our engines, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from itrain_contract.spec import ModelSpec
from itrain_pipeline.__main__ import spare_the_compiler
from itrain_pipeline.data.rendering import system_text
from itrain_pipeline.engine import open_engine
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.evals.benchmark import Benchmark, Item
from itrain_pipeline.evals.conversing import Manner, NoRoomError, ResultsAs, Said
from itrain_pipeline.evals.endpoint import Endpoint, Target, TooLongError
from itrain_pipeline.evals.nativecalls import read_native
from itrain_pipeline.evals.questions import Question, ReadAnswer, hold, not_asked, predict
from itrain_pipeline.evaluating.benchmarks import collect, common_settings
from itrain_pipeline.loraconfig import check_foreign_adapter
from itrain_pipeline.records import Message, Prediction
from itrain_pipeline.store import open_store
from itrain_pipeline.toolcalls.parse import parse

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


def of_model(
    arguments: argparse.Namespace, benchmarks: Sequence[Benchmark], scratch: Path, environ: Mapping[str, str]
) -> Asked:
    """A model folder on one of our engines, rendered and judged as a run does it."""
    spare_the_compiler(os.environ)
    import transformers  # only here: it loads torch, and so does what follows

    from itrain_pipeline.engine import choose_engine
    from itrain_pipeline.engine.vllm_versions import is_installed, serves_gpu
    from itrain_pipeline.stages.compute import compute_for
    from itrain_pipeline.stages.evaluate import Asker, shows_results
    from itrain_pipeline.stages.modelfiles import content_hash, find_model
    from itrain_pipeline.stages.rendered import load_renderer, stop_token_ids

    try:
        spec = ModelSpec(uri=arguments.model_dir)
    except ValidationError as error:
        raise ConfigError(f"MODEL {arguments.model_dir!r}: {error.errors()[0]['msg']}") from error
    model = find_model(spec, open_store(str(scratch)), scratch)
    adapter: Path | None = arguments.adapter
    if adapter is not None:
        check_foreign_adapter(adapter)
    kind = choose_engine(arguments.engine, installed=is_installed(), serves_gpu=serves_gpu)
    compute = compute_for(arguments.precision, model.folder)
    renderer = load_renderer(model.folder, arguments.call_format, trust_remote_code=False)
    questions, items, info = collect(benchmarks, renderer)
    read = functools.partial(parse, call_format=arguments.call_format)
    results = arguments.tool_results or shows_results(renderer)
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
            results=results,
        )

        def counters() -> dict[str, float]:
            found = engine.counters()
            return {
                "requests": found.requests,
                "decoded": found.decoded,
                "prefill_computed": found.prefill_computed,
                "prefill_cached": found.prefill_cached,
            }

        return lambda question: asker.ask(question, point), engine.aclose, counters

    return Asked(
        questions=questions,
        settings={
            "model": model.revision,
            "adapter": content_hash(files) if files else None,
            "engine": kind,
            "precision": compute.precision,
            "rendering": renderer.template_sha256,
            **_results_setting(questions, results),
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

    results: ResultsAs = "tool" if target.native else arguments.tool_results or "user"

    async def say(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Said:
        try:
            reply = await endpoint.say(messages, tools)
        except TooLongError as error:
            raise NoRoomError(str(error)) from error
        return Said(text=reply.text, note=reply.note)

    async def ask(question: Question) -> Prediction:
        if question.obstacle:
            return not_asked(question, target.model, question.obstacle)
        if question.dialogue is not None:
            manner = Manner(native=target.native, results=results)
            return await hold(question, question.dialogue, target.model, say, read, manner)
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
            **_results_setting(questions, results),
            **common_settings(arguments, items, info),
        },
        read=read,
        start=lambda: (ask, endpoint.aclose, counters),
        concurrency=arguments.concurrency or ENDPOINT_CONCURRENCY,
    )


def _results_setting(questions: Sequence[Question], results: ResultsAs) -> dict[str, str]:
    """Of a command that holds dialogues."""
    return {"tool_results": results} if any(question.dialogue is not None for question in questions) else {}


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
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"--api-key-env {name}: what it holds is no key: a header takes printable ASCII only")
    return key
