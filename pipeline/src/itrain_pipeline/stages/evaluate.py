"""evaluate: greedy answers of each point on the dev set and the benchmarks, judged and counted.

Finished batches and dialogues lie in the work area, so a restarted attempt asks only what is left.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.spec import DataSpec, ModelSpec
from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import ApiBank, EvaluateStage, PluginBenchmark
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.engine import open_engine
from itrain_pipeline.errors import ConfigError, DataError, Interrupted
from itrain_pipeline.evals.asking import Failure, ask_all
from itrain_pipeline.evals.benchmark import Benchmark, Opening, open_benchmark
from itrain_pipeline.evals.collect import prediction_file
from itrain_pipeline.evals.contamination import overlap
from itrain_pipeline.evals.conversing import Manner, NoRoomError, ResultsAs, Said
from itrain_pipeline.evals.devset import DevSet
from itrain_pipeline.evals.metrics import Groups, count_errors, flat_metrics, score_groups
from itrain_pipeline.evals.questions import Question, ReadAnswer, build_questions, hold, not_asked, predict
from itrain_pipeline.learn.inputs import prepare_result
from itrain_pipeline.ports import Engine, Ports, SamplingParams, StageOutput, Upstream
from itrain_pipeline.records import Example, Message, Prediction, read_jsonl, write_jsonl
from itrain_pipeline.stages.compute import choose_compute
from itrain_pipeline.stages.prepare import fetcher
from itrain_pipeline.stages.rendered import check_template, load_renderer, stop_token_ids
from itrain_pipeline.toolcalls.parse import parse

BATCH = 64
"""Questions in flight together; a batch is what a restart may lose."""
BASE_PREFIX = "base/"
OWN = ("dev", "bfcl", "apibank")
"""Benchmarks with a metric for each category; a plug-in has its total and its groups, for the message's sake."""

EngineOpener = Callable[..., Engine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One state of the model: its name and its adapter, None for the bare base model."""

    name: str
    adapter: Path | None


def run(stage_input: StageInput, ports: Ports, *, engine_opener: EngineOpener = open_engine) -> StageOutput:
    """Evaluate the points of this iteration (iteration 0: base and warm-up)."""
    stage = EvaluateStage.model_validate(stage_input.spec["stage"])
    model = ModelSpec.model_validate(stage_input.spec["model"])
    data = DataSpec.model_validate(stage_input.spec["data"])
    prepare = prepare_result(ports.upstream)
    benchmarks = open_benchmarks(stage, prepare, ports)
    model_dir = ports.upstream.fetch_folder(prepare, "model/")
    renderer = load_renderer(model_dir, data.call_format, trust_remote_code=model.trust_remote_code)
    check_template(ports.upstream.fetch(prepare.outputs["manifest.json"]), renderer)
    questions, info = ask_of(benchmarks, _examples(prepare, ports.upstream, "train.jsonl"), renderer)
    points = plan_points(ports.upstream, stage_input.iteration)
    compute = choose_compute(stage_input, model_dir)
    engine = engine_opener(stage.engine, model_dir, dtype=compute.precision, trust_remote_code=model.trust_remote_code)
    asker = Asker(
        engine=engine,
        renderer=renderer,
        read=functools.partial(parse, call_format=data.call_format),
        max_new_tokens=stage.max_new_tokens,
        stop_ids=stop_token_ids(model_dir, renderer),
        results=shows_results(renderer),
    )
    found = asyncio.run(ask_points(asker, points, questions, ports))
    counters = engine.counters()
    return build_output(
        found,
        ports.scratch,
        groups={benchmark.name: benchmark.groups for benchmark in benchmarks},
        counters={
            "requests": counters.requests,
            "prefill_computed": counters.prefill_computed,
            "prefill_cached": counters.prefill_cached,
            "decoded": counters.decoded,
        },
        info={
            **info,
            **compute.record(),
            "template_sha256": renderer.template_sha256,
        },
    )


def plan_points(upstream: Upstream, iteration: int) -> tuple[Point, ...]:
    """The points of an iteration. Iteration 0 has the base model and, where there is an adapter, what it starts from.

    Raises DataError when a later iteration has no adapter.
    """
    if iteration > 0:
        trained = _adapter_of(upstream.results(StageKind.TRAIN, iteration), upstream)
        if trained is None:
            raise DataError(f"iteration {iteration} has no adapter to evaluate: train left none")
        return (Point(name=f"iteration-{iteration}", adapter=trained),)
    points = [Point(name="base", adapter=None)]
    for kind, name in ((StageKind.WARMUP, "warmup"), (StageKind.PREPARE, "resumed")):
        adapter = _adapter_of(upstream.results(kind), upstream)
        if adapter is not None:
            return (*points, Point(name=name, adapter=adapter))
    return tuple(points)


def _adapter_of(results: Sequence[StageResult], upstream: Upstream) -> Path | None:
    result = next((r for r in results if r.has_adapter), None)
    return None if result is None else upstream.fetch_folder(result, "adapter/")


def open_benchmarks(stage: EvaluateStage, prepare: StageResult, ports: Ports) -> list[Benchmark]:
    """The benchmarks of the spec in their order, each once. `categories` are BFCL's, `limit` spares the dev set.

    Nothing is asked yet: what is missing or wrong in their data is told before the model is loaded.
    """
    opened: list[Benchmark] = []
    for name in dict.fromkeys(stage.benchmarks):
        if name == "dev":
            opened.append(DevSet(examples=_examples(prepare, ports.upstream, "dev.jsonl")))
            continue
        source = stage.api_bank if name == "apibank" else None
        categories = tuple(stage.categories) if name == "bfcl" else ()
        opened.append(open_benchmark(name, _opening(name, source, categories, stage.limit, ports)))
    opened += [
        open_benchmark(plugin.name, _opening(plugin.name, plugin, plugin.categories, stage.limit, ports))
        for plugin in stage.plugins
    ]
    check_names(opened)
    return opened


def check_names(benchmarks: Sequence[Benchmark]) -> None:
    """Metrics and answers are kept by a benchmark's name: ConfigError where two have the same."""
    seen: set[str] = set()
    for benchmark in benchmarks:
        if benchmark.name in seen:
            raise ConfigError(f"stages.evaluate.plugins: two benchmarks call themselves {benchmark.name!r}")
        seen.add(benchmark.name)


def _opening(
    name: str, source: ApiBank | PluginBenchmark | None, categories: Sequence[str], limit: int, ports: Ports
) -> Opening:
    if source is None or source.uri is None:
        return Opening(categories=tuple(categories), limit=limit)
    access = ports.source(source.secret_ref, source.uri)
    folder = ports.scratch / "benchmarks" / hashlib.sha256(name.encode()).hexdigest()[:16]

    def read(uri: str) -> list[object]:
        return list(read_rows(uri, "messages", store=access.store, scratch=folder, fetch=fetcher(access)))

    return Opening(categories=tuple(categories), limit=limit, uri=source.uri, read=read)


def ask_of(
    benchmarks: Sequence[Benchmark], train: Iterable[Example], renderer: Renderer
) -> tuple[list[Question], dict[str, str]]:
    """All questions in their order, and what is to be known about them: versions, and what training has seen."""
    questions: list[Question] = []
    info: dict[str, str] = {}
    seen = [(example.messages, example.tools) for example in train]
    for benchmark in benchmarks:
        items = benchmark.items()
        questions += build_questions(benchmark, items, renderer)
        if items:
            info[f"overlap_{benchmark.name}"] = str(overlap([(i.messages, i.tools) for i in items], seen))
        info |= benchmark.info()
    if not questions:
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        raise DataError(f"nothing to evaluate: stages.evaluate.benchmarks ({names}) hold no questions")
    check_unique(questions)
    return questions, info


def check_unique(questions: Sequence[Question]) -> None:
    """Answers are kept by (benchmark, category, id): DataError where two questions share one."""
    seen: set[tuple[str, str, str]] = set()
    for question in questions:
        if question.key in seen:
            raise DataError(f"{question.benchmark}/{question.category}: two questions have the id {question.id!r}")
        seen.add(question.key)


def _examples(prepare: StageResult, upstream: Upstream, name: str) -> list[Example]:
    return list(read_jsonl(upstream.fetch(prepare.outputs[name]), Example))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """What one question needs to be asked and judged."""

    engine: Engine
    renderer: Renderer
    read: ReadAnswer
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    results: ResultsAs = "tool"
    """How a dialogue shows what its calls returned."""

    async def ask(self, question: Question, point: str) -> Prediction:
        """Greedy. A prompt without room for an answer is counted as wrong; every other error is raised."""
        if question.obstacle:
            return not_asked(question, point, question.obstacle)
        if question.dialogue is not None:
            manner = Manner(results=self.results, clean=self.renderer.spare_controls)
            return await hold(question, question.dialogue, point, self._say, self.read, manner)
        try:
            said = await self._complete(question.prompt_ids)
        except NoRoomError as error:
            return not_asked(question, point, str(error))
        return predict(question, point, said.text, self.read, note=said.note)

    async def _say(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Said:
        return await self._complete(self.renderer.prompt_ids(messages, tools))

    async def _complete(self, prompt_ids: Sequence[int]) -> Said:
        limit = self.engine.max_model_len
        if len(prompt_ids) >= limit:
            raise NoRoomError(f"the prompt has {len(prompt_ids)} tokens, the model's context is {limit}")
        params = SamplingParams(
            seeds=(0,), temperature=0.0, max_tokens=self.max_new_tokens, stop_token_ids=self.stop_ids
        )
        (completion,) = await self.engine.generate(prompt_ids, params)
        ids = completion.token_ids
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        note = f"cut after {len(ids)} tokens" if completion.finish_reason == "length" else ""
        return Said(text=self.renderer.answer_text(ids), note=note)


def shows_results(renderer: Renderer) -> ResultsAs:
    """Tool turns where the model's chat template takes them, else one user turn."""
    turns = (Message(role="user", content="x"), Message(role="assistant", content="[f()]"))
    try:
        renderer.prompt_ids((*turns, Message(role="tool", content="1"), Message(role="tool", content="2")), ())
    except ConfigError:
        return "user"
    return "tool"


async def ask_points(
    asker: Asker, points: Sequence[Point], questions: Sequence[Question], ports: Ports
) -> dict[str, list[Prediction]]:
    """Every question at every point, in the questions' order. Closes the engine, whatever happens."""
    found: dict[str, list[Prediction]] = {}
    total = len(points) * len(questions)
    try:
        for at, point in enumerate(points):
            asker.engine.load_adapter(point.name, point.adapter)
            found[point.name] = await ask_point(asker, point.name, questions, ports, (at * len(questions), total))
    finally:
        await asker.engine.aclose()
    return found


async def ask_point(
    asker: Asker, point: str, questions: Sequence[Question], ports: Ports, progress: tuple[int, int]
) -> list[Prediction]:
    """One point, batch by batch; then dialogues, of which as many are open and each is saved as it ends. What an
    earlier attempt finished is read from the work area.

    `progress` = (questions before this point, questions of all points). Raises Interrupted once asked to stop.
    """
    batches = ports.work.names(f"{point}/")
    done = {p.key: p for name in batches for p in _finished(ports, name)}
    # By length, so that a batch wastes little on padding; the order of the results is that of the questions.
    missing = sorted((q for q in questions if q.key not in done), key=lambda q: len(q.prompt_ids))
    left = [question for question in missing if question.dialogue is None]
    before, total = progress
    for start in range(0, len(left), BATCH):
        if ports.stop.is_set():
            raise Interrupted(f"stopped at {point}; {len(done)} of {len(questions)} answers are saved")
        count = itertools.count(before + len(done))

        async def ask(question: Question, count: Iterator[int] = count) -> Prediction:
            prediction = await asker.ask(question, point)
            ports.progress.update(next(count) + 1, total, point)
            return prediction

        batch = await asyncio.gather(*(ask(question) for question in left[start : start + BATCH]))
        name = f"{point}/batch-{len(batches) + start // BATCH:05d}.jsonl"
        path = ports.work.local / name
        write_jsonl(path, batch)
        ports.work.put(name, path)
        done.update({p.key: p for p in batch})

    def keep(one: Prediction | Failure) -> None:
        assert isinstance(one, Prediction)  # an engine has no item that it gives up
        name = f"{point}/dialogue-{hashlib.sha256(repr(one.key).encode()).hexdigest()[:32]}.jsonl"
        write_jsonl(ports.work.local / name, [one])
        ports.work.put(name, ports.work.local / name)
        done[one.key] = one
        ports.progress.update(before + len(done), total, point)

    await ask_all(
        [question for question in missing if question.dialogue is not None],
        lambda question: asker.ask(question, point),
        keep,
        concurrency=BATCH,
        stop=ports.stop,
        patience=1,
    )
    return [done[question.key] for question in questions]


def _finished(ports: Ports, name: str) -> list[Prediction]:
    path = ports.work.get(name)
    return [] if path is None else list(read_jsonl(path, Prediction))


def build_output(
    found: Mapping[str, Sequence[Prediction]],
    folder: Path,
    *,
    counters: Mapping[str, float],
    info: Mapping[str, str],
    groups: Mapping[str, Groups] | None = None,
) -> StageOutput:
    """Predictions as files, metrics by name. The last point has plain names; a base before it only its headlines,
    since the operator reads metrics from a termination message of 4 KiB."""
    outputs: dict[str, Path] = {}
    metrics: dict[str, float] = {}
    *_, plain = found
    for point, predictions in found.items():
        path = folder / prediction_file(point)
        write_jsonl(path, predictions)
        outputs[path.name] = path
        single = tuple({f"{p.benchmark}/{p.category}/" for p in predictions if p.benchmark not in OWN})
        flat = flat_metrics(score_groups(predictions, groups))
        flat = {name: value for name, value in flat.items() if not name.startswith(single)}
        if point != plain:
            flat = {f"{BASE_PREFIX}{name}": value for name, value in flat.items() if name.count("/") == 1}
        metrics |= flat
    counted: dict[str, float] = dict(counters)
    for benchmark in dict.fromkeys(p.benchmark for p in found[plain]):
        errors = count_errors(p for p in found[plain] if p.benchmark == benchmark)
        counted |= {f"errors_{benchmark}_{name}": count for name, count in errors.items()}
    return StageOutput(
        metrics=metrics,
        outputs=outputs,
        counters=counted,
        info={**info, "point": plain, "points": ",".join(found)},
        message=f"evaluated {', '.join(found)} on {len(found[plain])} items",
    )
