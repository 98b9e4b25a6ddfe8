"""What a run will cost, stage by stage: the forecast, its table, its JSON, and what it rests on. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from itrain_contract.measurements import EngineProfile
from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, StageRef
from itrain_operator.cost import (
    AS_LONG_AS_DATA,
    DIALOGUE_TOKENS,
    Facts,
    Work,
    dialogue_requests,
    dialogues,
    questions,
    run_work,
    selected,
)
from itrain_operator.costtime import DEVICES_TOGETHER, StageTime, stage_time
from itrain_operator.localmachine import Machine
from itrain_operator.localview import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Work and time of every stage, and where each figure they rest on comes from."""

    stages: tuple[tuple[StageRef, Work, StageTime], ...]
    facts: Facts
    profile: EngineProfile
    spec: ITrainRunSpec
    data_from: str
    search_from: str
    flags: tuple[str, ...]
    machine: Machine | None

    @property
    def seconds(self) -> float:
        return sum(time.seconds for _, _, time in self.stages)

    @property
    def gpu_hours(self) -> float:
        return sum(time.gpu_hours for _, _, time in self.stages)


def forecast(
    spec: ITrainRunSpec,
    facts: Facts,
    profile: EngineProfile,
    *,
    machine: Machine | None,
    data_from: str,
    search_from: str,
    flags: tuple[str, ...] = (),
) -> Forecast:
    stages = tuple(
        (ref, work, stage_time(spec, ref, work, profile, machine)) for ref, work in run_work(spec, facts).items()
    )
    return Forecast(
        stages=stages,
        facts=facts,
        profile=profile,
        spec=spec,
        data_from=data_from,
        search_from=search_from,
        flags=flags,
        machine=machine,
    )


COLUMNS = ("rows", "requests", "judgements", "computed", "cached", "decoded", "scored", "trained")


def cost_table(found: Forecast) -> Table:
    """Tokens of all pods together; the time of the slowest pod."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("stage", no_wrap=True)
    for heading in (*COLUMNS, "time", "GPU-hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for ref, work, time in found.stages:
        cells = [amount(getattr(work, name)) for name in COLUMNS]
        table.add_row(str(ref), *cells, duration(time.seconds), _hours(time.gpu_hours))
    totals = [amount(sum(getattr(work, name) for _, work, _ in found.stages)) for name in COLUMNS]
    totals[0] = ""
    table.add_row(Text("all", style="bold"), *totals, duration(found.seconds), _hours(found.gpu_hours))
    return table


def amount(value: float) -> str:
    """Three digits that a reader can compare: 41, 12,300, 8.05 M; nothing for zero."""
    if value <= 0:
        return "–"
    if value < 100_000:
        return f"{value:,.0f}"
    return f"{value / 1e6:,.2f} M" if value < 1e9 else f"{value / 1e9:,.2f} G"


def _hours(value: float) -> str:
    return f"{value:.2f}" if value else "–"


def cost_notes(found: Forecast) -> list[str]:
    """What is measured and what is assumed, a line each."""
    data, rates, profile = found.facts.data, found.facts.search, found.profile
    given = f"; {' '.join(found.flags)} given" if found.flags else ""
    notes = [
        "rows: examples, trees, pairs seen, questions; computed, cached, decoded: tokens of the engine; time without "
        "waiting, downloads, retries",
        f"data     {data.train:,} training and {data.dev:,} dev rows, prompts of {data.prompt.mean:.0f} and answers of "
        f"{data.answer.mean:.0f} tokens, {data.call_share:.0%} with a call (measured in {found.data_from}{given})",
        f"trees    {rates.pairs:.2f} pairs each, {rates.first_stop:.0%} end after one simulation (measured on "
        f"{rates.trees} trees of {found.search_from}, {rates.actions} actions and {rates.simulations} simulations)",
        f"machine  {profile.source}: {profile.model} on {profile.device}, {profile.precision} ({profile.how})",
    ]
    asked = questions(found.spec.stages.evaluate, found.facts)
    if told := ", ".join(f"{name} {count:,}" for name, count in asked.items() if count is not None):
        notes.append(f"asked    of every point: {told}")
    notes += [f"assumed  {text}" for text in assumptions(found)]
    explored = selected(found.spec.stages.score, data)
    if any(work.rows < explored for ref, work, _ in found.stages if ref.kind == StageKind.ROLLOUT):
        most = found.spec.stages.rollout.max_pairs
        notes.append(
            f"note     rollout.maxPairs ({most:,}) is reached before all {explored:,} selected rows are searched"
        )
    return notes


def assumptions(found: Forecast) -> list[str]:
    """What the figures take for granted and nobody measured for this run."""
    rates, stages = found.facts.search, found.spec.stages
    texts = []
    if found.search_from != found.data_from or found.flags:
        texts.append("trees behave as those that were measured, whatever model, data and temperature are yours")
    elif rates.temperature != stages.rollout.temperature:
        texts.append(f"temperature {stages.rollout.temperature:g} changes nothing; measured was {rates.temperature:g}")
    if stages.rollout.reward != "rule":
        texts.append("the judge reads every distinct answer once, with a rubric that all trees share")
    if stages.train.gpus * stages.train.nodes > 1 or stages.warmup.gpus > 1:
        texts.append(f"n devices train {DEVICES_TOGETHER:.0%} of n times as fast as one")
    if found.profile.source == "estimated":
        texts.append("the machine's rates, until they are measured: itrain profile --out FILE, then --profile FILE")
    if found.facts.evaluation == AS_LONG_AS_DATA:
        texts.append("benchmark questions and answers are as long as the training data's")
    if held := dialogues(stages.evaluate):
        asked = dialogue_requests(held) / sum(held.values())
        texts.append(
            f"each of {sum(held.values()):,} dialogues takes {asked:.1f} requests, as its solution does, each over "
            f"{DIALOGUE_TOKENS:,.0f} prompt tokens, which stay known"
        )
    unknown = [name for name, count in questions(stages.evaluate, found.facts).items() if count is None]
    if unknown:
        texts.append(
            f"{', '.join(unknown)}: no questions, since how many there are is not known here: "
            f"--questions {unknown[0]}=N, or --from a run that asked them"
        )
    texts.append("shards of equal work; no tree fails")
    return texts


def cost_json(found: Forecast) -> dict[str, Any]:
    return {
        "stages": [
            {
                "stage": ref.kind.value,
                "iteration": ref.iteration,
                **{name: round(value, 1) for name, value in asdict(work).items()},
                "seconds": round(time.seconds, 1),
                "gpuHours": round(time.gpu_hours, 4),
            }
            for ref, work, time in found.stages
        ],
        "seconds": round(found.seconds, 1),
        "gpuHours": round(found.gpu_hours, 3),
        "data": found.facts.data.model_dump(by_alias=True, exclude_none=True),
        "dataFrom": found.data_from,
        "given": list(found.flags),
        "questions": questions(found.spec.stages.evaluate, found.facts),
        "search": found.facts.search.model_dump(by_alias=True),
        "searchFrom": found.search_from,
        "profile": found.profile.model_dump(by_alias=True, exclude_none=True),
        "assumed": assumptions(found),
    }
