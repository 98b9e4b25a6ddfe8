"""The seven stage blocks of the spec. Method fields carry the paper's values as defaults (method document)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from itrain_contract.base import Rule, SpecModel
from itrain_contract.template import Resources, SecretRef, Template

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
Tokens = Annotated[int, Field(ge=1, le=1_048_576)]
Uri = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=2048,
        pattern=r"^((hf|s3|file|builtin)://[^\s\x00-\x1f\x7f]+|(/|\./|\.\./)[^\s\x00-\x1f\x7f]*)$",
    ),
]
Image = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\s]+$")]


class Retry(SpecModel):
    """Failed attempts that are tried again: `limit` of them, waiting backoff · 2^n up to the maximum."""

    limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Failures of one stage that are followed by another attempt; disruptions do not count."""
    backoff_seconds: Annotated[int, Field(ge=0, le=86_400)] = 10
    """Wait after the first failure; it doubles."""
    max_backoff_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """Longest wait."""

    RULES = (
        Rule(
            cel="self.backoffSeconds <= self.maxBackoffSeconds",
            message="backoffSeconds must not exceed maxBackoffSeconds",
            holds=lambda r: r.backoff_seconds <= r.max_backoff_seconds,
            field="backoffSeconds",
        ),
    )


class Stage(SpecModel):
    """What every stage has. These fields decide where and how often a stage runs, never what it computes."""

    SCHEDULING: ClassVar[frozenset[str]] = frozenset(
        {
            "enabled",
            "image",
            "gpus",
            "resources",
            "template",
            "active_deadline_seconds",
            "pending_deadline_seconds",
            "retry",
            "parallelism",
            "min_succeeded",
        }
    )

    enabled: bool = True
    """Whether the stage is part of the run."""
    image: Image | None = None
    """Container image, as in `registry.example/itrain/trainer:0.1.0-volta`; else the operator's for pool and stage."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of one pod."""
    resources: Resources | None = None
    template: Template | None = None
    """As `spec.template`, for the pods of this stage; what is set here goes before it."""
    active_deadline_seconds: Seconds | None = None
    """Running time after which an attempt is ended; suspended and queued time does not count."""
    pending_deadline_seconds: Seconds | None = None
    """Time an attempt may wait for nodes or images."""
    retry: Retry = Retry()


class BucketLimits(SpecModel):
    """An example belongs to a bucket when all three hold; otherwise it falls through to the next."""

    max_tools: Annotated[int, Field(ge=0, le=10_000)]
    """Tools, inclusive."""
    max_tool_chars: Annotated[int, Field(ge=1, le=10_000_000)]
    """Length of the tools as compact JSON, exclusive."""
    max_calls: Annotated[int, Field(ge=0, le=10_000)]
    """Calls in the answer, inclusive."""


class Curriculum(SpecModel):
    """Bucket limits; what is neither easy nor medium is hard (method document, section 1)."""

    easy: BucketLimits = BucketLimits(max_tools=1, max_tool_chars=1000, max_calls=1)
    medium: BucketLimits = BucketLimits(max_tools=3, max_tool_chars=2000, max_calls=3)


class PrepareStage(Stage):
    """Reads, checks, splits and renders the data; stages the model."""

    curriculum: Curriculum = Curriculum()
    max_length: Tokens = 8192
    """Rows whose prompt and answer are longer are rejected with a reason."""


class WarmupStage(Stage):
    """Supervised fine-tuning from easy to hard; makes the adapter."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of one pod."""
    epochs: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """Passes over each bucket."""
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Optimiser steps in all; 0 means that `epochs` decides."""
    learning_rate: LearningRate = 1e-4
    """Highest learning rate of AdamW."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps in which the learning rate rises."""
    global_batch: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Rows of one optimiser step."""
    micro_batch: Annotated[int, Field(ge=1, le=4096)] = 4
    """Rows of one forward pass on one device; the rest of the global batch is accumulated."""
    max_length: Tokens = 4096
    """Longer rows are left out and counted, never cut."""
    order: Literal["curriculum", "shuffled"] = "curriculum"
    """Easy, medium, hard one after another, or all rows mixed."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Optimiser steps between two checkpoints."""


class ShardedStage(Stage):
    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of one pod."""
    shards: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Parts of the work, a pod each."""
    parallelism: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Pods at a time."""
    min_succeeded: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Shards that must succeed; all by default."""

    RULES = (
        Rule(
            cel="!has(self.minSucceeded) || self.minSucceeded <= self.shards",
            message="minSucceeded must not exceed shards",
            holds=lambda s: s.min_succeeded is None or s.min_succeeded <= s.shards,
            field="minSucceeded",
        ),
    )

    @property
    def quorum(self) -> int:
        return self.shards if self.min_succeeded is None else self.min_succeeded


class ScoreStage(ShardedStage):
    """Perplexity of every row; chooses what is searched."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.10
    """Share of the data, hardest first, that is explored."""
    stratify: bool = True
    """Rank answers with and without a call separately."""
    rescore: Literal["pool", "all"] = "pool"
    """From iteration 2 on: score only last time's hardest rows and a random audit, or everything."""
    pool_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.30
    """Share of the data, hardest of last time, that `pool` scores again."""
    audit_fraction: Fraction = 0.05
    """Share of the other rows, at random, that `pool` scores again."""
    batch_tokens: Tokens = 16_384
    """Tokens of one forward pass; rows are sorted by length."""
    max_length: Tokens = 8192
    """Longer rows get no perplexity and are not searched."""


ENGINE_PATTERN = r"^(auto|vllm|transformers|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$"
EngineName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=ENGINE_PATTERN)]


class RolloutStage(ShardedStage):
    """Searches the hardest rows step by step; makes the preference pairs."""

    method: Literal["mcts", "bestOfN", "firstDivergence"] = "mcts"
    """The paper's tree search, or one of two baselines: whole answers, and their first difference."""
    engine: EngineName = "auto"
    """`auto`, `vllm`, `transformers` (docs/running.md), or `package.module:factory` (docs/extending.md)."""
    actions: Annotated[int, Field(ge=2, le=64)] = 3
    """Completions of one expansion."""
    simulations: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Descents through one tree."""
    depth: Annotated[int, Field(ge=1, le=64)] = 3
    """Levels of branching; what lies deeper is one last step."""
    step_limit: Annotated[int, Field(ge=1, le=64)] = 2
    """Boundaries grouped into one step."""
    max_step_tokens: Annotated[int, Field(ge=1, le=4096)] = 50
    """Tokens after which a step ends wherever it is."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Tokens of a sampled answer."""
    temperature: Annotated[float, Field(gt=0.0, le=5.0)] = 1.5
    """Of the sampled answers."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus of the sampled answers."""
    exploration: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """c of PUCT."""
    first_play_value: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """Q of a child not visited yet."""
    reward: Literal["rule", "judge", "mixed"] = "mixed"
    """`mixed`: the exact rule where the answer is a call, the model's own judgement for free text."""
    min_gap: Annotated[float, Field(ge=0.0, le=2.0)] = 0.1
    """Least difference of Q between the steps of a pair."""
    max_overlap: Fraction = 0.95
    """Pairs of steps more alike than this are left out."""
    min_best: Annotated[float, Field(ge=-1.0, le=1.0)] = -0.3
    """Least Q of the better step."""
    min_visits: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Least visits of either step."""
    certainty: Literal["calls", "all", "none"] = "all"
    """Pairs that the ground truth confirms (better step on a sampled right answer, worse step the beginning of none):
    `calls` where the answer is a call, `all` for free text too (equal but for blanks and capitals), `none` by value."""
    pairs_per_node: Annotated[int, Field(ge=1, le=64)] = 3
    """Worse steps that the best step of a node is preferred to, the worst ones first; the paper has one."""
    pairs_per_tree: Annotated[int, Field(ge=1, le=1000)] = 4
    """Most pairs of one tree, the widest gaps first."""
    max_pairs: Annotated[int, Field(ge=1, le=10_000_000)] = 4000
    """Pairs of the whole iteration; each shard stops at its part."""
    max_failed_trees: Fraction = 0.02
    """Share of a shard's trees that may fail before the shard does."""
    trees_in_flight: Annotated[int, Field(ge=0, le=100_000)] = 0
    """At most so many trees at once; 0 lets the engine's free memory decide, 1 is fixed-batch mode: the same pairs to
    the bit, always."""


class TrainGuards(SpecModel):
    """What ends a training that ruins the model: exit 70, with the step, the value and the limit."""

    chosen_logprob_drop: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Nats that the mean logprob of a chosen step's token may fall below its start; 0 turns this guard off."""
    probe_rows: Annotated[int, Field(ge=0, le=16)] = 16
    """Training prompts with a call as answer that are answered greedily during training; 0 turns this guard off."""
    probe_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Optimiser steps between two probes; one more precedes the first step, one follows the last."""
    validity_drop: Fraction = 0.25
    """How far the share of probe answers that are readable calls may fall below its start."""


class TrainStage(Stage):
    """SimPO on the pairs; continues the adapter."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of one pod."""
    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Pods that train together, each with `gpus` GPUs; more than one in a cluster only."""
    processes_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    """0: one per GPU, or one on a machine without."""
    deepspeed: Literal["none", "zero2", "zero3"] = "zero2"
    """Sharding when there is more than one process."""
    quantization: Literal["none", "nf4"] = "nf4"
    """How the frozen base weights are held (docs/precision.md)."""
    learning_rate: LearningRate = 1e-5
    """Highest learning rate of AdamW."""
    warmup_ratio: Fraction = 0.1
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after that."""
    epochs: Annotated[float, Field(gt=0.0, le=100.0)] = 2.0
    """Passes over the pairs."""
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Optimiser steps in all; 0 means that `epochs` decides."""
    global_batch: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Pairs of one optimiser step."""
    rows: Literal["tree", "pair", "separate"] = "tree"
    """What a row of the model holds: all pairs of a tree, one pair with its context once, or one answer of a pair.
    The training is the same but for rounding; `separate` takes over where a model's attention cannot take the mask."""
    batch_tokens: Tokens = 4096
    """Tokens of one forward pass on one device; a longer pair is a pass of its own."""
    micro_batch: Annotated[int, Field(ge=1, le=4096)] = 4
    """Pairs of one forward pass on one device where `rows` are separate, in place of `batchTokens`."""
    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 2.5
    """Scale β of the rewards."""
    gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """Target margin γ (not γ/β)."""
    nll_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Weight of the negative log-likelihood of the chosen step."""
    answer_nll_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 10.0
    """Weight of the negative log-likelihood of a sample's whole right answer, which keeps the rest of an answer in
    place while steps are preferred. 0 is the paper's loss and leaves the answers out of the rows."""
    answers: Literal["pairs", "missed"] = "missed"
    """Samples whose right answers are trained on, where `answerNllWeight` is above 0: those of the pairs, or beside
    them those of which the search sampled no right answer, so that there was nothing to prefer."""
    max_length: Tokens = 4096
    """Longer rows are left out and counted, never cut."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Optimiser steps between two checkpoints."""
    guards: TrainGuards = TrainGuards()
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Norm to which gradients are cut."""

    RULES = (
        Rule(
            cel="self.deepspeed != 'zero3' || self.quantization != 'nf4'",
            message="zero3 cannot shard nf4 weights: use zero2 or none, or quantization none",
            holds=lambda s: s.deepspeed != "zero3" or s.quantization != "nf4",
            field="deepspeed",
        ),
    )


Benchmark = Literal["dev", "bfcl", "apibank"]


class ApiBank(SpecModel):
    """API-Bank's files, which are not shipped."""

    uri: Uri
    """Folder with `level-1-api.json` and `level-2-api.json`."""
    secret_ref: SecretRef | None = None
    """As of a data source."""


class PluginBenchmark(SpecModel):
    """A benchmark that is found by its name where the stage runs (docs/evaluation.md)."""

    name: Annotated[
        str,
        StringConstraints(
            min_length=1, max_length=253, pattern=r"^([a-z][a-z0-9_]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$"
        ),
    ]
    """A built-in one (`acebench`), an installed package's entry point, or `package.module:factory`."""
    uri: Uri | None = None
    """Where its data lie; nothing for one that carries its own."""
    secret_ref: SecretRef | None = None
    """As of a data source."""
    categories: Annotated[list[Annotated[str, StringConstraints(max_length=63)]], Field(max_length=64)] = []
    """Of this benchmark; empty means all."""

    RULES = (
        Rule(
            cel="!(self.name in ['dev', 'bfcl', 'apibank'])",
            message="dev, bfcl and apibank are named in benchmarks",
            holds=lambda p: p.name not in ("dev", "bfcl", "apibank"),
            field="name",
        ),
    )


class EvaluateStage(Stage):
    """Asks every question once and judges the answers (docs/evaluation.md)."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of one pod."""
    engine: EngineName = "auto"
    """As of rollout."""
    benchmarks: Annotated[list[Benchmark], Field(min_length=1, max_length=8)] = ["dev", "bfcl"]
    """The dev set, BFCL's single-turn categories, API-Bank."""
    categories: Annotated[list[Annotated[str, StringConstraints(max_length=63)]], Field(max_length=32)] = []
    """BFCL categories, or `non_live`, `live`, `single_turn`, `multi_turn`; empty means every single-turn category."""
    limit: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Items per category, the first ones; 0 means all."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Tokens of an answer."""
    api_bank: ApiBank | None = None
    plugins: Annotated[list[PluginBenchmark], Field(max_length=8)] = []
    """Benchmarks beside those named above."""

    RULES = (
        Rule(
            cel="!self.benchmarks.exists(b, b == 'apibank') || has(self.apiBank)",
            message="benchmark apibank needs apiBank.uri: its data is not shipped",
            holds=lambda s: "apibank" not in s.benchmarks or s.api_bank is not None,
            field="apiBank",
        ),
    )


class ExportStage(Stage):
    """Writes the best point's weights, a model card, metrics and the report."""

    merge: bool = True
    """Merge the adapter into the base model in fp32; otherwise export the adapter alone."""
    max_logit_difference: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.05
    """Largest |Δlogit| between adapter and merged model over the probe set that is accepted."""
    probe_rows: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Dev rows on which the two are compared."""


class Stages(SpecModel):
    """Fixed, typed stage names; each block has the paper's defaults."""

    prepare: PrepareStage = PrepareStage()
    warmup: WarmupStage = WarmupStage()
    score: ScoreStage = ScoreStage()
    rollout: RolloutStage = RolloutStage()
    train: TrainStage = TrainStage()
    evaluate: EvaluateStage = EvaluateStage()
    export: ExportStage = ExportStage()

    RULES = (
        Rule(
            cel="self.prepare.enabled",
            message="prepare cannot be disabled: every other stage reads what it writes",
            holds=lambda s: s.prepare.enabled,
            field="prepare.enabled",
        ),
        Rule(
            cel="self.score.enabled == self.rollout.enabled && self.rollout.enabled == self.train.enabled",
            message="score, rollout and train are enabled or disabled together",
            holds=lambda s: s.score.enabled == s.rollout.enabled == s.train.enabled,
            field="train.enabled",
        ),
    )
