"""prepare: rows to examples with token ids, the dev split, and the base model staged once.

Everything that is wrong with data, model or template shows here, before a GPU is asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_contract.bfcl import CATEGORIES
from itrain_contract.spec import DataSource, DataSpec, ModelSpec, ResumeFrom
from itrain_contract.stageio import StageInput
from itrain_contract.stagespec import PrepareStage
from itrain_pipeline.data.examples import Conversion, Converted, convert, dialogue_of, drop_duplicates, render
from itrain_pipeline.data.hub import fetch_snapshot
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.sources import FetchSnapshot, bfcl_data_folder, read_file, read_rows
from itrain_pipeline.data.splits import split_dev
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.contamination import overlap
from itrain_pipeline.files import write_atomic
from itrain_pipeline.ports import Ports, SourceAccess, StageOutput, folder_outputs
from itrain_pipeline.records import Example, Message, RejectedRow, write_jsonl
from itrain_pipeline.stages.modelfiles import Model, check_weights, find_model, stage_model
from itrain_pipeline.stages.resume import TakenAdapter, find_adapter

log = logging.getLogger(__name__)

STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The converted rows of all sources. `read` counts rows by source."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...] | None
    """None: to be split off."""
    rejected: tuple[RejectedRow, ...]
    numbers: dict[str, int]
    read: dict[str, int]


def run(stage_input: StageInput, ports: Ports) -> StageOutput:
    """Prepare data and model. Raises `DataError` when more rows than `data.maxRejected` are of no use."""
    stage = PrepareStage.model_validate(stage_input.spec["stage"])
    model_spec = ModelSpec.model_validate(stage_input.spec["model"])
    data = DataSpec.model_validate(stage_input.spec["data"])
    seed = int(stage_input.spec["seed"])

    ports.progress.update(0, STEPS, "reading rows")
    rows = read_sources(data, stage, ports)
    check_rejected(rows.rejected, len(rows.train) + len(rows.dev or ()), data.max_rejected, ports)
    ports.progress.update(1, STEPS, "fetching the model")
    access = ports.source(model_spec.secret_ref, model_spec.uri)
    model = find_model(model_spec, access.store, ports.scratch, fetch=fetcher(access))
    check_weights(model)
    renderer = load_renderer(model, model_spec, data)
    ports.progress.update(2, STEPS, "splitting and rendering")
    train, dev, dropped = split(rows, data.dev_fraction, seed)
    train, long_train = render(train, renderer, stage.max_length, rows.numbers)
    dev, long_dev = render(dev, renderer, stage.max_length, rows.numbers)
    rejected = (*rows.rejected, *long_train, *long_dev)
    check_rejected(rejected, len(train) + len(dev), data.max_rejected, ports)
    if not train or not dev:
        empty = "dev" if train else "training"
        raise DataError(f"data: no example is left for {empty}; {len(rejected)} of {sum(rows.read.values())} rejected")
    ports.progress.update(3, STEPS, "staging the model")
    staged = stage_model(model, stage_input.run.layout.model(model.revision), ports.store)
    ports.progress.update(4, STEPS, "writing")
    adapter = resumed_adapter(stage_input, model, ports)
    counts = count(rows, train, dev, rejected, dropped)
    manifest = {
        "template_sha256": renderer.template_sha256,
        "model_uri": model_spec.uri,
        "model_revision": model.revision,
        "call_format": data.call_format,
        "sources": rows.read,
        "seed": seed,
        "max_length": stage.max_length,
        "counts": counts,
        "buckets": dict(sorted(Counter(example.bucket for example in train).items())),
        "rejected": dict(sorted(Counter(row.reason for row in rejected).items())),
        "contamination": contamination(train),
        "resumed_from": adapter.origin if adapter else None,
    }
    outputs = write_outputs(ports.scratch / "outputs", train, dev, rejected, manifest)
    ports.progress.update(STEPS, STEPS, f"{len(train)} train, {len(dev)} dev")
    return StageOutput(
        outputs={**outputs, **(folder_outputs(adapter.folder, "adapter/") if adapter else {})},
        staged=staged,
        counters={name: float(value) for name, value in counts.items()},
        info={
            "model_revision": model.revision,
            "template_sha256": renderer.template_sha256,
            "contamination": str(manifest["contamination"]),
        },
        message=f"{len(train)} train and {len(dev)} dev examples, {len(rejected)} rejected",
    )


def read_sources(data: DataSpec, stage: PrepareStage, ports: Ports) -> Rows:
    """All sources in their order: `data`, `data.extra`, then `data.dev`."""
    read: dict[str, int] = {}
    rejected: list[RejectedRow] = []
    numbers: dict[str, int] = {}

    def one(source: DataSource, prefix: str) -> tuple[Example, ...]:
        access = ports.source(source.secret_ref, source.uri)
        rows = list(
            read_rows(
                source.uri,
                source.format,
                store=access.store,
                scratch=ports.scratch / "data",
                fetch=fetcher(access),
            )
        )
        how = Conversion(
            source=source.uri,
            prefix=prefix,
            data_format=source.format,
            call_format=data.call_format,
            turns=data.turns,
            curriculum=stage.curriculum,
        )
        made: Converted = convert(rows, how)
        read[f"{prefix}: {source.uri}"] = len(rows)
        rejected.extend(made.rejected)
        numbers.update(made.rows)
        log.info("%s: %d rows, %d examples, %d rejected", source.uri, len(rows), len(made.examples), len(made.rejected))
        return made.examples

    train = [*one(data, "train")]
    for at, source in enumerate(data.extra, 1):
        train += one(source, f"extra{at}")
    dev = one(data.dev, "dev") if data.dev else None
    return Rows(train=tuple(train), dev=dev, rejected=tuple(rejected), numbers=numbers, read=read)


def fetcher(access: SourceAccess) -> FetchSnapshot:
    """`fetch_snapshot` with the token and endpoint of one source."""
    return functools.partial(fetch_snapshot, token=access.hub_token, endpoint=access.hub_endpoint)


def check_rejected(rejected: Sequence[RejectedRow], kept: int, limit: float, ports: Ports) -> None:
    """`DataError` when the rejected are more than their allowed share of rejected and kept together.

    The rejected rows are then saved in the work area, since a failed stage has no outputs.
    """
    total = len(rejected) + kept
    if not total:
        raise DataError("data: the sources hold no rows")
    if len(rejected) <= limit * total:
        return
    path = ports.work.local / "rejected.jsonl"
    write_jsonl(path, rejected)
    ports.work.put("rejected.jsonl", path)
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(row.reason for row in rejected).most_common(5))
    first = rejected[0]
    raise DataError(
        f"data.maxRejected: {len(rejected)} of {total} rejected ({len(rejected) / total:.1%}: {reasons}), allowed are "
        f"{limit:.1%}. First: {first.source} row {first.row}: {first.reason}: {first.detail[:300]}"
    )


def split(rows: Rows, fraction: float, seed: int) -> tuple[list[Example], list[Example], int]:
    """(train, dev, duplicates dropped). What is in dev never trains, whichever source it came from."""
    if rows.dev is None:
        unique, dropped = drop_duplicates(rows.train)
        train, dev = split_dev(unique, [dialogue_of(example.id) for example in unique], fraction, seed)
        return train, dev, dropped
    dev_unique, _ = drop_duplicates(rows.dev)
    unique, _ = drop_duplicates((*dev_unique, *rows.train))
    train = unique[len(dev_unique) :]
    return train, dev_unique, len(rows.train) + len(rows.dev) - len(unique)


def load_renderer(model: Model, spec: ModelSpec, data: DataSpec) -> Renderer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model.folder), local_files_only=True, trust_remote_code=spec.trust_remote_code
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever a foreign tokenizer.json makes of three libraries
        why = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(f"model.uri {spec.uri!r}: its tokenizer cannot be loaded ({why})") from error
    return Renderer(tokenizer, data.call_format)


def count(
    rows: Rows, train: Sequence[Example], dev: Sequence[Example], rejected: Sequence[RejectedRow], dropped: int
) -> dict[str, int]:
    """Every row and example is in one of these numbers."""
    return {
        "rows": sum(rows.read.values()),
        "train": len(train),
        "train_calls": sum(example.has_call for example in train),
        "dev": len(dev),
        "dev_calls": sum(example.has_call for example in dev),
        "rejected": len(rejected),
        "duplicates": dropped,
        "train_tokens": sum(len(example.prompt_ids) + len(example.answer_ids) for example in train),
    }


def contamination(train: Iterable[Example]) -> str:
    """How much of BFCL's scored single-turn questions stands in the training data, in words.

    The files are read as they are, without the official loader's hints about languages.
    """
    if importlib.util.find_spec("bfcl_eval") is None:
        return "BFCL not compared: bfcl-eval is not installed"
    files = (path for category in CATEGORIES for path in sorted(bfcl_data_folder().glob(f"BFCL_v*_{category}.json")))
    rows: Iterable[Any] = (row for path in files for row in read_file(path, path.name))
    benchmark = [
        (
            [Message(role="user", content=said["content"]) for said in row["question"][0] if said["role"] == "user"],
            row["function"],
        )
        for row in rows
    ]
    return f"BFCL: {overlap(benchmark, [(example.messages, example.tools) for example in train])}"


def write_outputs(
    folder: Path,
    train: Sequence[Example],
    dev: Sequence[Example],
    rejected: Sequence[RejectedRow],
    manifest: dict[str, Any],
) -> dict[str, Path]:
    paths = {name: folder / name for name in ("train.jsonl", "dev.jsonl", "rejected.jsonl", "manifest.json")}
    write_jsonl(paths["train.jsonl"], train)
    write_jsonl(paths["dev.jsonl"], dev)
    write_jsonl(paths["rejected.jsonl"], rejected)
    write_atomic(paths["manifest.json"], (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
    return paths


def resumed_adapter(stage_input: StageInput, model: Model, ports: Ports) -> TakenAdapter | None:
    """The adapter that the run starts from, or None without `resumeFrom`."""
    if "resumeFrom" not in stage_input.spec:
        return None
    origin = ResumeFrom.model_validate(stage_input.spec["resumeFrom"])
    return find_adapter(origin, stage_input.run.storage, model.revision, ports.store, ports.scratch / "resume")
