"""export: the best point's adapter, merged in fp32 and checked, with model card, metrics and the run's report."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itrain_contract.spec import DataSpec, IterationsSpec, ModelSpec
from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import ExportStage
from itrain_pipeline.errors import DataError, Interrupted
from itrain_pipeline.evals.card import CardData, build_card
from itrain_pipeline.evals.collect import INFO_BEST, INFO_METRIC, collect_from_results
from itrain_pipeline.evals.metrics import flat_metrics
from itrain_pipeline.evals.metricslog import metric_rows, metrics_jsonl
from itrain_pipeline.evals.report import build_report
from itrain_pipeline.evals.report_data import ReportData
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.hardware import compute_record
from itrain_pipeline.learn.inputs import prepare_result
from itrain_pipeline.learn.precision import cpu_device
from itrain_pipeline.ports import Ports, StageOutput, Upstream, folder_outputs
from itrain_pipeline.records import Example, read_jsonl

STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is exported: the point's name and the result that holds its adapter, None for the base model itself."""

    point: str
    result: StageResult | None


def run(stage_input: StageInput, ports: Ports) -> StageOutput:
    """Export the point that the operator found best; without its word, the newest adapter."""
    stage = ExportStage.model_validate(stage_input.spec["stage"])
    model = ModelSpec.model_validate(stage_input.spec["model"])
    data = DataSpec.model_validate(stage_input.spec["data"])
    iterations = IterationsSpec.model_validate(stage_input.spec["iterations"])
    metric = iterations.stop_when.metric if iterations.stop_when else iterations.metric
    results = all_results(ports.upstream)
    choice = choose(results, stage_input.best_iteration)
    ports.progress.update(0, STEPS, "weights")
    weights = export_weights(stage, model, choice, ports)
    if ports.stop.is_set():
        raise Interrupted("stopped before the report was written")
    ports.progress.update(1, STEPS, "report")
    report = collect_from_results(
        results,
        ports.upstream.fetch,
        run=stage_input.run.name,
        metric=metric,
        best=choice.point,
        created=ports.clock(),
    )
    facts = tuple((name.replace("_", " ").capitalize(), value) for name, value in weights.info.items())
    report = dataclasses.replace(report, facts=(*report.facts, *facts))
    card = CardData(base_model=model.uri, call_format=data.call_format, files=weights.folder, report=report)
    texts = {
        "report.html": build_report(report),
        "README.md": build_card(card),
        "metrics.json": metrics_json(report),
        "metrics.jsonl": metrics_jsonl(metric_rows(results, ports.upstream.fetch)),
    }
    for name, text in texts.items():
        write_atomic(ports.scratch / "texts" / name, text.encode())
    ports.progress.update(STEPS, STEPS, "done")
    return StageOutput(
        metrics=weights.metrics,
        outputs={**weights.outputs, **{name: ports.scratch / "texts" / name for name in texts}},
        info={INFO_METRIC: metric, INFO_BEST: choice.point, **weights.info, **weights.computed},
        message=f"exported {choice.point}" if weights.folder else "no adapter to export: base is the best point",
    )


def all_results(upstream: Upstream) -> tuple[StageResult, ...]:
    """Every result of the run so far, in the order of iterations and stages."""
    refs = sorted(
        (iteration, order, kind) for order, kind in enumerate(StageKind) for iteration in upstream.iterations(kind)
    )
    return tuple(itertools.chain.from_iterable(upstream.results(kind, iteration) for iteration, _, kind in refs))


def choose(results: Sequence[StageResult], best_iteration: int | None) -> Choice:
    """The adapter to publish. Iteration 0 is the warm-up's, or the one that prepare brought, or the bare base model.

    Raises DataError when an iteration's adapter is asked for and not there.
    """
    made = [r for r in results if r.has_adapter]
    trained = [r for r in made if r.kind == StageKind.TRAIN]
    wanted = best_iteration
    if wanted is None:
        wanted = max((r.iteration for r in trained), default=0)
    if wanted > 0:
        result = next((r for r in trained if r.iteration == wanted), None)
        if result is None:
            raise DataError(f"the best iteration is {wanted}, but no train result of it holds an adapter")
        return Choice(point=f"iteration-{wanted}", result=result)
    for kind, point in ((StageKind.WARMUP, "warmup"), (StageKind.PREPARE, "resumed")):
        result = next((r for r in made if r.kind == kind), None)
        if result is not None:
            return Choice(point=point, result=result)
    return Choice(point="base", result=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The exported files; `folder` is their prefix, None when there is nothing to export."""

    folder: str | None
    outputs: dict[str, Path]
    metrics: dict[str, float]
    info: dict[str, str]
    computed: dict[str, str] = field(default_factory=dict)
    """What merged them: precision, device, libraries."""


def export_weights(stage: ExportStage, model: ModelSpec, choice: Choice, ports: Ports) -> Weights:
    """The merged model or the adapter as it is. Raises PermanentError when the merge fails its gate."""
    if choice.result is None:
        return Weights(folder=None, outputs={}, metrics={}, info={})
    adapter_dir = ports.upstream.fetch_folder(choice.result, "adapter/")
    if not stage.merge:
        return Weights(folder="adapter/", outputs=folder_outputs(adapter_dir, "adapter/"), metrics={}, info={})
    from itrain_pipeline.learn.merge import merge_adapter

    prepare = prepare_result(ports.upstream)
    out = ports.scratch / "model"
    report = merge_adapter(
        ports.upstream.fetch_folder(prepare, "model/"),
        adapter_dir,
        out,
        probes=probe_rows(ports.upstream, prepare, stage.probe_rows),
        max_difference=stage.max_logit_difference,
        trust_remote_code=model.trust_remote_code,
    )
    return Weights(
        folder="model/",
        outputs=folder_outputs(out, "model/"),
        metrics={
            "export/max_logit_difference": report.max_difference,
            "export/mean_logit_difference": report.mean_difference,
            "export/same_greedy": report.same_greedy,
        },
        info={
            "merge": f"fp32, stored as {report.dtype}"
            + "".join(f"; as {name} |Δlogit| reaches {value:.3g}" for name, value in report.refused.items()),
            "merge_difference": f"max |Δlogit| {report.max_difference:.3g} over {report.probe_positions} positions of "
            f"{report.probe_rows} rows; allowed {stage.max_logit_difference:g}",
        },
        computed=compute_record(cpu_device(), "fp32"),
    )


def probe_rows(upstream: Upstream, prepare: StageResult, count: int) -> list[list[int]]:
    """Prompt and gold answer of the first `count` dev rows, of the training rows where there is no dev set."""
    rows: list[list[int]] = []
    for name in ("dev.jsonl", "train.jsonl"):
        for example in read_jsonl(upstream.fetch(prepare.outputs[name]), Example):
            if len(rows) == count:
                return rows
            rows.append([*example.prompt_ids, *example.answer_ids])
    return rows


def metrics_json(report: ReportData) -> str:
    """All metrics of all points, for programs."""
    points = {point.point: flat_metrics(point.scores) for point in report.points}
    document = {"run": report.run, "metric": report.metric, "best_point": report.best, "points": points}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
