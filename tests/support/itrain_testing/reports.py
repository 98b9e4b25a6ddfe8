"""A made-up run for the report: every section filled, all numbers from one seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from itrain_contract.bfcl import CATEGORIES
from itrain_pipeline.evals.report_data import (
    Perplexities,
    PointResult,
    ReportData,
    SearchResult,
    StageCost,
    StageMachine,
    TrainingCurve,
)
from itrain_pipeline.records import Prediction

WRONG = ("parameter_value",) * 5 + ("parameter_name",) * 3 + ("missing_parameter", "number_of_calls", "format")


def predictions(
    point: str, chance: float, rng: random.Random, categories: Sequence[str] = CATEGORIES
) -> list[Prediction]:
    rows = []
    sizes = [("dev", "call", 160), ("dev", "no_call", 40), *(("bfcl", name, 16 + 3 * len(name)) for name in categories)]
    for benchmark, category, n in sizes:
        for i in range(n):
            correct = rng.random() < chance - (0.15 if benchmark == "bfcl" else 0.0)
            wrong = "hallucinated_call" if category.endswith(("no_call", "irrelevance")) else rng.choice(WRONG)
            rows.append(
                Prediction(
                    benchmark=benchmark,
                    category=category,
                    id=f"{category}_{i}",
                    point=point,
                    output="[f(a=1)]",
                    correct=correct,
                    error_class=None if correct else wrong,
                )
            )
    return rows


def report_data(chances: Sequence[float] = (0.45, 0.56, 0.61, 0.64), seed: int = 1, **changes: Any) -> ReportData:
    """A run of two iterations by default; `chances` are the points' true accuracies on the dev set."""
    rng = random.Random(seed)
    names = ["base", "warmup", *(f"iteration-{i}" for i in range(1, len(chances) - 1))][: len(chances)]
    iterations = range(1, max(1, len(chances) - 1))
    points = tuple(
        PointResult(point=name, iteration=max(0, at - 1), predictions=tuple(predictions(name, chance, rng)))
        for at, (name, chance) in enumerate(zip(names, chances, strict=True))
    )
    warmup = TrainingCurve(
        title="Warm-up",
        series={"loss": tuple((float(i), 2.0 / i**0.5 + 0.1 * rng.random()) for i in range(1, 61))},
    )
    simpo = [
        TrainingCurve(
            title=f"Iteration {i}",
            series={
                "loss": tuple((k + 1.0, 1.2 - 0.01 * k + 0.05 * rng.random()) for k in range(30)),
                "margin": tuple((k + 1.0, 0.02 * k + 0.05 * rng.random()) for k in range(30)),
                "chosen logprob": tuple((k + 1.0, -0.4 - 0.002 * k) for k in range(30)),
                "rejected logprob": tuple((k + 1.0, -0.6 - 0.02 * k) for k in range(30)),
                "validity": ((0.0, 1.0), (15.0, 0.9375), (30.0, 0.875)),
            },
        )
        for i in iterations
    ]
    data = ReportData(
        run="quickstart",
        created="2026-11-23 20:15 UTC",
        metric="dev/call_accuracy",
        best=names[-1],
        points=points,
        curves=(warmup, *simpo),
        perplexities=tuple(
            Perplexities(
                iteration=i,
                call=tuple(rng.lognormvariate(0.3, 0.25) for _ in range(400)),
                no_call=tuple(rng.lognormvariate(0.6, 0.3) for _ in range(100)),
            )
            for i in iterations
        ),
        searches=tuple(
            SearchResult(
                iteration=i,
                counters={
                    "trees": 120,
                    "failed_trees": i - 1,
                    "pairs": 210 + i,
                    "requests": 1800.0,
                    "decoded": 51234.0,
                },
            )
            for i in iterations
        ),
        costs=(
            StageCost(stage="i0/prepare", shards=1, seconds=4.2),
            StageCost(stage="i0/warmup", shards=1, seconds=61.0, counters={"rows": 11_300}),
            StageCost(
                stage="i0/evaluate", shards=1, seconds=88.0, counters={"prefill_computed": 410_000, "decoded": 21_000}
            ),
            *(
                StageCost(stage=f"i{i}/rollout", shards=2, seconds=130.0 + i, counters={"decoded": 51_234})
                for i in iterations
            ),
        ),
        machines=(
            StageMachine(stage="i0/prepare", versions=(("itrain", "0.1.0"),)),
            *(
                StageMachine(
                    stage=stage,
                    precision=precision,
                    quantization=quantization,
                    device="8 × Tesla V100-SXM2-32GB (sm_70, 32 GiB)",
                    versions=(("itrain", "0.1.0"), ("torch", torch), ("transformers", "5.19.0")),
                )
                for stage, precision, quantization, torch in (
                    ("i0/warmup", "fp16", "nf4", "2.13.0"),
                    ("i0/evaluate", "fp16", "none", "2.12.1"),
                    *((f"i{i}/rollout", "fp16", "none", "2.12.1") for i in iterations),
                )
            ),
        ),
        facts=(
            ("Base model", "builtin://toolworld at 5f1c0a…"),
            ("Precision", "fp16"),
            ("Template", "9d" * 32),
            ("Torch", "2.13.0 (i0/warmup); 2.12.1 (i0/evaluate)"),
        ),
    )
    return dataclasses.replace(data, **changes)
