"""`python -m itrain_pipeline.evaluating`: a model folder or an endpoint on the benchmarks, without a run.

Exit codes: 0 every item has an answer; 64 configuration (a folder of other settings, an unknown key or model too); 65
data; 70 the endpoint refuses items for good; 75 items without an answer, an endpoint that is away, or a folder in use:
the same command asks for what is missing; 143 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.names import ExitCode
from itrain_pipeline.errors import StageError
from itrain_pipeline.evals.asking import AnswerFolder, Failure, ask_all
from itrain_pipeline.evals.bfclresults import ENTRY, write_results
from itrain_pipeline.evals.evaluateview import Meter, Tally, summary_lines
from itrain_pipeline.evals.metrics import count_errors, flat_metrics, score_groups
from itrain_pipeline.evals.questions import ReadAnswer
from itrain_pipeline.evaluating.benchmarks import open_benchmarks
from itrain_pipeline.evaluating.options import build_parser, check_options
from itrain_pipeline.evaluating.subjects import Asked, of_endpoint, of_model
from itrain_pipeline.ports import StopSignal
from itrain_pipeline.records import Prediction
from itrain_pipeline.runtime import configure_logging
from itrain_pipeline.stopsignal import StopFlag


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
    except OSError as error:
        sys.stderr.write(f"itrain: {error.filename or '--out'}: {error.strerror or error}\n")
        return ExitCode.CONFIG


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


if __name__ == "__main__":
    sys.exit(main())
