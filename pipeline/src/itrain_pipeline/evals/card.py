"""The model card: what the exported model is, how it was made, what it scores. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from itrain_pipeline.evals.report_data import ReportData
from itrain_pipeline.evals.tables import benchmarks, percent, point_name


@dataclass(frozen=True, slots=True, kw_only=True)
class CardData:
    """`files` is the folder that holds the weights, `model/` or `adapter/`, None when nothing was trained."""

    base_model: str
    call_format: str
    files: str | None
    report: ReportData
    facts: Sequence[tuple[str, str]] = ()


_FORMATS: Mapping[str, str] = {
    "pythonic": "`[function_name(parameter=value, ...), ...]`",
    "hermes": '`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`',
    "llama": '`{"name": ..., "parameters": {...}}`',
}


def build_card(card: CardData) -> str:
    """README.md with the hub's front matter. Deterministic."""
    parts = [
        _front_matter(card),
        f"# {card.report.run}",
        _introduction(card),
        "## Results",
        _results(card.report),
        "## Use",
        _usage(card),
        "## Limits",
        "The figures hold for greedy decoding with this run's own rendering of tools and answers; another system "
        "prompt or tool format is another task. Standard errors are binomial and say nothing about other data. "
        "See `report.html` for every category, the kinds of errors and the overlap of training data with the "
        "benchmarks.",
        "## Provenance",
        "\n".join(f"- {label}: {value}" for label, value in (*card.report.facts, *card.facts)) or "Not recorded.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: CardData) -> str:
    fields: dict[str, object] = {
        "library_name": "peft" if card.files == "adapter/" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tool-calling", "function-calling", "itrain", "simpo", "lora"],
    }
    if card.base_model.startswith("hf://"):
        fields["base_model"] = card.base_model.removeprefix("hf://")
    return f"---\n{yaml.safe_dump(fields, sort_keys=False).rstrip()}\n---"


def _introduction(card: CardData) -> str:
    if card.files is None:
        return f"No adapter was trained: the best point of this run is the unchanged base model, `{card.base_model}`."
    point = point_name(card.report.best or "").lower()
    form = "merged into the base model" if card.files == "model/" else "as a LoRA adapter"
    return (
        f"A tool-calling model made from `{card.base_model}` by iTrain: curriculum supervised fine-tuning, then "
        f"iterations of step-level tree search and preference training (SimPO). This is the state after {point}, "
        f"{form}. It answers with calls in the form {_FORMATS[card.call_format]}, or with plain text where no tool "
        "fits."
    )


def _results(data: ReportData) -> str:
    metrics = [f"{benchmark}/accuracy" for benchmark in benchmarks(data)]
    if any("dev/call_accuracy" in point.scores for point in data.points):
        metrics.insert(0, "dev/call_accuracy")
    if not metrics:
        return "Nothing was evaluated."
    scores = [(point.point, point.scores) for point in data.points]
    counts = [max((of[metric].n for _, of in scores if metric in of), default=0) for metric in metrics]
    lines = [
        "| point | " + " | ".join(f"{metric} (n = {n})" for metric, n in zip(metrics, counts, strict=True)) + " |",
        "|---|" + "---:|" * len(metrics),
    ]
    for point, of in scores:
        mark = " (exported)" if point == data.best else ""
        cells = " | ".join(percent(of.get(metric)) for metric in metrics)
        lines.append(f"| {point_name(point)}{mark} | {cells} |")
    return "\n".join(lines)


def _usage(card: CardData) -> str:
    if card.files == "model/":
        load = ['model = AutoModelForCausalLM.from_pretrained("model")', 'tok = AutoTokenizer.from_pretrained("model")']
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    elif card.files == "adapter/":
        load = ['model = AutoPeftModelForCausalLM.from_pretrained("adapter")']
        imports = "from peft import AutoPeftModelForCausalLM  # needs the base model"
    else:
        return "Use the base model."
    return "\n".join(["```python", imports, "", *load, "```"])
