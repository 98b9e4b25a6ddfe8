"""What the pipeline measures and the plan reckons with: data, search and machine, each with where it comes from.

`python -m itrain_pipeline statistics` writes a RunStatistics, `python -m itrain_pipeline profile` an EngineProfile;
`itrain plan --explain` reads both and never needs the library that measured them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from itrain_contract.base import SpecModel

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Lengths(SpecModel):
    """Tokens of a kind of text over all rows; quantiles where every row was seen."""

    mean: Positive
    p50: Amount | None = None
    p90: Amount | None = None
    p99: Amount | None = None
    max: Amount | None = None


class DataStatistics(SpecModel):
    """The examples that `prepare` leaves."""

    train: Annotated[int, Field(ge=1)]
    dev: Annotated[int, Field(ge=0)] = 0
    call_share: Share
    """Of the examples, those whose answer is a call."""
    prompt: Lengths
    answer: Lengths


class SearchRates(SpecModel):
    """How trees behaved, freed of the settings they were searched with as far as the model knows how."""

    trees: Annotated[int, Field(ge=1)]
    actions: Annotated[int, Field(ge=2)]
    simulations: Annotated[int, Field(ge=1)]
    temperature: Amount
    first_stop: Share
    """Of the trees, those that stop after their first simulation: most often all completions are one answer."""
    later_stops: tuple[Share, ...]
    """Of the trees that were still going, those that stop after their second, third … simulation; the last of these
    holds for every later one. A tree whose budget was spent counts as going."""
    expanding: Share
    """Of the simulations after the first, those that ask for completions; the others reach an answer that is known."""
    pairs: Amount
    """Preference pairs of a tree."""
    answers: Amount
    """Distinct finished answers of a tree: what a judge would read."""
    prompt_ratio: Positive
    """Mean prompt of the searched examples over that of all examples."""
    deep_prompt_ratio: Positive
    """The same over the expansions below the root: the longer the prompt, the longer a tree is searched."""
    sampled_ratio: Positive
    """Mean completion from the root over the mean true answer."""
    shared_ratio: Amount
    """Mean answer tokens before an expansion below the root, over the mean true answer."""
    common_share: Share
    """Of a prompt, the beginning that the engine knows from earlier trees."""
    pair_shared_ratio: Amount
    """Mean steps before a pair's two, over the mean true answer."""
    pair_steps_ratio: Amount
    """Mean tokens of chosen and rejected step together, over the mean true answer."""


class EvaluationRates(SpecModel):
    """Questions of the benchmarks beside the run's own data."""

    prompt_ratio: Positive
    """Mean prompt of a question over the mean prompt of the training examples."""
    answer_ratio: Positive
    """Mean answer over the mean true answer of the training examples."""


class RunStatistics(SpecModel):
    """What one run's finished stages tell. What no stage measured is None."""

    run: str
    data: DataStatistics
    search: SearchRates | None = None
    evaluation: EvaluationRates | None = None
    questions: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Items of each benchmark, as this run's limits and categories left them."""
    seconds: dict[str, Amount] = {}
    """Wall clock of each finished stage, `i1/rollout`; of a sharded one its slowest shard."""
    counters: dict[str, dict[str, float]] = {}
    """What each finished stage counted, shards added."""


class DecodeRate(SpecModel):
    rows: Annotated[int, Field(ge=1)]
    """Sequences decoded together."""
    tokens_per_s: Positive
    """All rows together."""


class Rates(SpecModel):
    """Tokens a second of one process. `threads` is None where the device decides."""

    threads: Annotated[int, Field(ge=1)] | None = None
    prefill_tokens_per_s: Positive
    decode: Annotated[tuple[DecodeRate, ...], Field(min_length=1)]
    """Ascending rows."""
    score_tokens_per_s: Positive
    train_tokens_per_s: Positive


class EngineProfile(SpecModel):
    """How fast one model is on one device."""

    name: str
    model: str
    device: str
    precision: str
    source: Literal["measured", "estimated"]
    how: str
    """The command and the day of a measurement; the figures and the assumptions of an estimate."""
    rates: Annotated[tuple[Rates, ...], Field(min_length=1)]
    """By threads, ascending; one entry on a GPU."""
    start_s: Amount
    """From the start of a process until its model answers."""
    train_start_s: Amount | None = None
    """From the start of a process that trains to its first step, and from its last to its end; None: `start_s`."""
    prepare_start_s: Amount | None = None
    """Of a process without a model; None: `start_s`."""
    prefix_block_tokens: Annotated[int, Field(ge=1)]
    """Prompts are known in whole blocks of so many tokens."""
    prepare_rows_per_s: Positive
    export_s: Amount
    """Merging, checking and writing the model, without the start."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Sequences whose keys and values fit at once; None where memory does not bind."""
