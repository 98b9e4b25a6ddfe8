"""train: pairs merged, one adapter continued, stop and resume, several batches as one, nf4, nothing to do."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import TrainGuards, TrainStage
from itrain_pipeline.errors import ConfigError, DataError, Interrupted
from itrain_pipeline.files import sha256_file
from itrain_pipeline.learn.adapter import adapter_sha256, continue_adapter
from itrain_pipeline.learn.guards import plan_guards
from itrain_pipeline.learn.job import deepspeed_config
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.order import plan_batches
from itrain_pipeline.ports import StageOutput
from itrain_pipeline.records import PreferencePair
from itrain_pipeline.stages.train import merge_pairs, run, training_row
from itrain_testing.learning import (
    StopAfter,
    learning_input,
    make_examples,
    make_pairs,
    prepare_result,
    rollout_results,
)
from itrain_testing.stageports import FolderUpstream, FolderWork, Silent, folder_files, folder_ports, stage_result
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

STAGE = {
    "globalBatch": 4,
    "microBatch": 2,
    "checkpointSteps": 2,
    "learningRate": 0.005,
    "quantization": "none",
    "epochs": 2,
}


@dataclasses.dataclass(frozen=True)
class Start:
    """What train starts from: the model, the warm-up's adapter and its name in lineages."""

    model_dir: Path
    adapter: Path
    sha256: str

    @property
    def warmed(self) -> StageResult:
        return stage_result(StageKind.WARMUP, files=folder_files(self.adapter, "adapter/"))

    def pairs(self, count: int) -> list[PreferencePair]:
        return make_pairs(count, adapter_sha256=self.sha256)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("start")
    model_dir = write_tiny_model(folder / "model", hidden=64)
    adapter = write_random_adapter(model_dir, folder / "adapter")
    return Start(model_dir, adapter, sha256_file(adapter / "adapter_model.safetensors"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITRAIN_THREADS", "1")


def train(
    folder: Path,
    start: Start,
    pairs: list[PreferencePair],
    stage: dict[str, Any] | None = None,
    *,
    warmed: bool = True,
    work: FolderWork | None = None,
    silent: Silent | None = None,
) -> StageOutput:
    folder.mkdir(parents=True, exist_ok=True)
    results = [
        prepare_result(folder, start.model_dir, make_examples(2)),
        *([start.warmed] if warmed else []),
        *rollout_results(folder / "rollout", pairs),
    ]
    ports = folder_ports(folder, results, work=work, silent=silent)
    return run(learning_input(StageKind.TRAIN, {**STAGE, **(stage or {})}, iteration=1), ports)


def adapter_folder(output: StageOutput) -> Path:
    return output.outputs["adapter/adapter_model.safetensors"].parent


def log_lines(output: StageOutput) -> list[dict[str, float]]:
    return [json.loads(line) for line in output.outputs["log.jsonl"].read_text().splitlines()]


def test_training_raises_the_margin_and_reports_what_is_watched(start: Start, tmp_path: Path) -> None:
    output = train(tmp_path, start, start.pairs(10), {"epochs": 8})
    assert output.counters.items() >= {"pairs": 10.0, "too_long": 0.0, "steps": 20.0, "skipped_steps": 0.0}.items()
    assert output.metrics["train/loss"] < output.metrics["train/loss_first"]
    assert output.metrics["train/reward_margin"] > output.metrics["train/reward_margin_first"]
    assert {"train/reward_accuracy", "train/chosen_logprob", "train/chosen_logprob_first"} <= output.metrics.keys()
    assert [row["step"] for row in log_lines(output)] == list(range(1, 21))
    assert output.info["adapter_before"] == start.sha256
    assert output.info["adapter_sha256"] == adapter_sha256(adapter_folder(output)) != start.sha256


def test_it_continues_the_one_adapter_at_its_rank(start: Start, tmp_path: Path) -> None:
    output = train(tmp_path, start, start.pairs(4), {"learningRate": 1e-9, "epochs": 1})
    before = torch.nn.utils.parameters_to_vector(adapter_weights(start.model_dir, start.adapter))
    after = torch.nn.utils.parameters_to_vector(adapter_weights(start.model_dir, adapter_folder(output)))
    assert torch.allclose(before, after, atol=1e-7)
    assert json.loads((adapter_folder(output) / "adapter_config.json").read_text())["r"] == 4


def adapter_weights(model_dir: Path, adapter: Path) -> list[torch.Tensor]:
    model = continue_adapter(load_model(model_dir, precision="fp32"), adapter, trainable=True)
    return [p for p in model.parameters() if p.requires_grad]


def test_the_first_step_is_adamw_on_the_mean_over_the_pairs_of_the_global_batch(start: Start, tmp_path: Path) -> None:
    """Worked pair by pair without a trainer; three pairs, so that the last micro batch is not full."""
    pairs = start.pairs(3)
    stage = {"epochs": 1, "warmupRatio": 0.0, "nllWeight": 0.2, "answerNllWeight": 0.7, "answers": "pairs"}
    output = train(tmp_path, start, pairs, stage)
    answers = {example.id: example.answer_ids for example in make_examples(2)}
    mean_length = sum(map(len, answers.values())) / 2
    model = continue_adapter(load_model(start.model_dir, precision="fp32"), start.adapter, trainable=True)
    total: Any = 0.0
    for pair in pairs:
        context, chosen, rejected = training_row(pair)
        won, lost = mean_logprob(model, context, chosen), mean_logprob(model, context, rejected)
        answer = answers[pair.lineage.sample_id]
        right = mean_logprob(model, pair.prompt_ids, answer) * len(answer) / mean_length
        total = total - torch.log(torch.sigmoid(2.5 * won - 2.5 * lost - 0.5)) - 0.2 * won - 0.7 * right
    (total / 3).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
    torch.optim.AdamW(trained.values(), lr=0.005, weight_decay=0.0).step()
    assert log_lines(output)[0]["loss"] == pytest.approx((total / 3).item(), rel=1e-5)
    for found, expected in zip(adapter_weights(start.model_dir, adapter_folder(output)), trained.values(), strict=True):
        assert torch.allclose(found, expected, atol=2e-5)


def test_an_answer_that_is_too_long_leaves_its_pairs_out_and_an_unknown_sample_is_named(
    start: Start, tmp_path: Path
) -> None:
    pairs = start.pairs(4)
    example = make_examples(2)[0]
    of_first = [pair for pair in pairs if pair.lineage.sample_id == example.id]
    most = max(len(p.prompt_ids) + len(p.shared_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    long = dataclasses.replace(example, answer_ids=(*range(7, 7 + most), 2))
    results = [
        prepare_result(tmp_path, start.model_dir, [long, make_examples(2)[1]]),
        *rollout_results(tmp_path / "rollout", pairs),
    ]
    upstream = FolderUpstream(results, tmp_path / "scratch")
    stage = TrainStage(answer_nll_weight=1.0, answers="pairs", max_length=most)
    assert merge_pairs(1, stage, upstream).too_long == len(of_first)
    assert merge_pairs(1, TrainStage(answer_nll_weight=0.0, max_length=most), upstream).too_long == 0
    unknown = [
        prepare_result(tmp_path / "one", start.model_dir, [long]),
        *rollout_results(tmp_path / "again", pairs),
    ]
    with pytest.raises(DataError, match=r"the rollouts name 1 samples that train\.jsonl lacks, the first is row-001"):
        merge_pairs(1, stage, FolderUpstream(unknown, tmp_path / "again"))


class CountingUpstream(FolderUpstream):
    """Counts how often each file was fetched, by its name."""

    def __init__(self, results: list[StageResult], scratch: Path) -> None:
        super().__init__(results, scratch)
        self.fetched: Counter[str] = Counter()

    def fetch(self, ref: ArtifactRef) -> Path:
        self.fetched[ref.uri.rpartition("/")[2]] += 1
        return super().fetch(ref)


def test_answers_and_the_guards_prompts_come_from_one_reading_of_the_examples(start: Start, tmp_path: Path) -> None:
    examples, pairs = make_examples(9), start.pairs(4)
    results = [prepare_result(tmp_path, start.model_dir, examples), *rollout_results(tmp_path / "rollout", pairs)]
    for probed, weight in itertools.product((0, 4), (0.0, 1.0)):
        stage = TrainStage(answer_nll_weight=weight, answers="pairs", guards=TrainGuards(probe_rows=probed))
        plan = functools.partial(plan_guards, stage.guards, call_format="pythonic", seed=3)
        upstream = CountingUpstream(results, tmp_path / "scratch")
        found = merge_pairs(1, stage, upstream, plan)
        assert found.guards == plan(examples)
        assert (found.guards.probe is not None) == bool(probed)
        wanted = {pair.lineage.sample_id for pair in pairs} if weight else set()
        assert found.answers == {e.id: e.answer_ids for e in examples if e.id in wanted}
        assert upstream.fetched["train.jsonl"] == (1 if probed or weight else 0)


def test_samples_that_the_search_missed_are_trained_on_by_their_answers(start: Start, tmp_path: Path) -> None:
    pairs, missed = start.pairs(4), {"row-003": False, "row-002": False, "row-000": True, "row-001": None}
    for name in ("with", "without", "alone"):
        (tmp_path / name).mkdir()
    ports = {
        name: folder_ports(
            tmp_path / name,
            [
                prepare_result(tmp_path / name, start.model_dir, make_examples(5)),
                start.warmed,
                *rollout_results(tmp_path / name / "rollout", [] if name == "alone" else pairs, reached=missed),
            ],
        )
        for name in ("with", "without", "alone")
    }
    stage = {**STAGE, "answerNllWeight": 1.0, "epochs": 6}
    found = run(learning_input(StageKind.TRAIN, stage, iteration=1), ports["with"])
    assert found.counters.items() >= {"pairs": 4.0, "missed": 2.0, "steps": 9.0}.items()
    assert found.message == "9 steps over 4 pairs and 2 answers that no sample had"
    assert found.metrics["train/answer_logprob"] > found.metrics["train/answer_logprob_first"]
    without = run(learning_input(StageKind.TRAIN, {**stage, "answers": "pairs"}, iteration=1), ports["without"])
    assert without.counters.items() >= {"pairs": 4.0, "missed": 0.0, "steps": 6.0}.items()
    alone = run(learning_input(StageKind.TRAIN, stage, iteration=1), ports["alone"])
    assert alone.counters.items() >= {"pairs": 0.0, "missed": 2.0, "steps": 3.0}.items()
    assert "train/reward_margin" not in alone.metrics, "nothing was preferred"
    assert alone.metrics["train/answer_logprob"] > alone.metrics["train/answer_logprob_first"]


def mean_logprob(model: Any, context: Any, step: Any) -> torch.Tensor:
    ids = torch.tensor([[*context, *step]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    values = [logprobs[at - 1, ids[0, at]] for at in range(len(context), ids.shape[1])]
    return torch.stack(values).mean()


def test_neither_the_form_of_the_rows_nor_the_size_of_the_passes_changes_the_training(
    start: Start, tmp_path: Path
) -> None:
    pairs = of_trees(start.pairs(7))
    stages: list[dict[str, Any]] = [
        {"rows": "separate", "microBatch": 1},
        {"rows": "separate", "microBatch": 4},
        {"rows": "pair", "batchTokens": 60},
        {"rows": "tree", "batchTokens": 1},
        {"rows": "tree"},
        {"rows": "tree", "gradientCheckpointing": True},
    ]
    runs = [train(tmp_path / f"{number}", start, pairs, stage) for number, stage in enumerate(stages)]
    for stage, found in zip(stages, runs, strict=True):
        assert found.info["rows"] == stage["rows"]
        assert found.metrics == pytest.approx(runs[0].metrics, rel=1e-3, abs=1e-4)
    naive = {found.counters["tokens_of_separate_rows"] for found in runs}
    assert naive == {
        2.0 * sum(2 * len(p.prompt_ids + p.shared_ids) + len(p.chosen_ids + p.rejected_ids) for p in pairs)
    }
    computed = [found.counters["tokens_computed"] for found in runs]
    assert computed[4] < computed[2] < computed[0] < computed[1]


def of_trees(pairs: list[PreferencePair]) -> list[PreferencePair]:
    """The pairs of a sample with its prompt: longer than their steps, and the same for all of them."""
    return [
        dataclasses.replace(pair, prompt_ids=tuple(range(50 + int(pair.lineage.sample_id[-3:]), 90)), shared_ids=())
        for pair in pairs
    ]


def test_a_model_that_takes_no_mask_is_trained_with_two_rows_per_pair(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every second of its layers is a convolution over the row, which goes through all branches."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    model_dir = write_tiny_model(tmp_path / "model")
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    layers = ["conv", "full_attention"]
    Lfm2ForCausalLM(
        Lfm2Config(**sizes, num_key_value_heads=2, num_hidden_layers=2, layer_types=layers)
    ).save_pretrained(model_dir)
    start = Start(model_dir, tmp_path, "")
    output = train(tmp_path, start, start.pairs(6), {"epochs": 6}, warmed=False)
    assert output.info["rows"] == "separate"
    assert output.metrics["train/loss"] < output.metrics["train/loss_first"]
    assert [record.getMessage().split(":")[1] for record in caplog.records if "falls back" in record.getMessage()] == [
        " tree falls back to separate, two rows per pair"
    ]


def test_pairs_of_all_shards_come_in_the_order_of_sample_and_pair(tmp_path: Path) -> None:
    pairs = make_pairs(12)
    stage = TrainStage(answer_nll_weight=0.0)
    merged = [
        merge_pairs(1, stage, FolderUpstream(rollout_results(tmp_path / f"{shards}", pairs, shards=shards), tmp_path))
        for shards in (1, 3)
    ]
    assert merged[0] == merged[1]
    keys = [(pair.lineage.sample_id, pair.id) for pair in merged[0].fitting]
    assert keys == sorted(keys)
    assert len(keys) == 12


def test_pairs_that_are_too_long_are_counted_and_never_cut(tmp_path: Path) -> None:
    pairs = make_pairs(20)
    upstream = FolderUpstream(rollout_results(tmp_path, pairs), tmp_path)
    found = merge_pairs(1, TrainStage(answer_nll_weight=0.0, max_length=20), upstream)
    assert 0 < found.too_long < 20
    assert {pair.id for pair in found.fitting} <= {pair.id for pair in pairs}
    assert all(
        len(p.prompt_ids + p.shared_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) <= 20 for p in found.fitting
    )


def test_an_empty_step_is_named(tmp_path: Path) -> None:
    pairs = [*make_pairs(2), dataclasses.replace(make_pairs(3)[2], id="bad", rejected_ids=())]
    with pytest.raises(DataError, match="pair bad has an empty prompt or step"):
        merge_pairs(1, TrainStage(answer_nll_weight=0.0), FolderUpstream(rollout_results(tmp_path, pairs), tmp_path))


def test_pairs_of_another_adapter_are_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"was sampled from the adapter 'ffff.*the one to continue is"):
        train(tmp_path, start, make_pairs(4, adapter_sha256="f" * 64))


def test_no_pairs_leave_the_adapter_as_it_was(start: Start, tmp_path: Path) -> None:
    output = train(tmp_path, start, [])
    assert output.info["adapter_sha256"] == start.sha256
    assert sha256_file(output.outputs["adapter/adapter_model.safetensors"]) == start.sha256
    assert "no pairs to train on" in output.message
    assert output.outputs["log.jsonl"].read_bytes() == b""


def test_without_pairs_and_a_warm_up_there_is_an_adapter_that_does_nothing(start: Start, tmp_path: Path) -> None:
    output = train(tmp_path, start, [], warmed=False)
    ids = torch.tensor([[1, 30, 40]])
    base = load_model(start.model_dir, precision="fp32")
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = continue_adapter(base, adapter_folder(output), trainable=False)(input_ids=ids).logits
    assert torch.equal(before, after)


def test_without_a_warm_up_the_first_iteration_creates_the_adapter(start: Start, tmp_path: Path) -> None:
    output = train(tmp_path, start, make_pairs(4, adapter_sha256=""), warmed=False)
    assert output.info["adapter_before"] == ""
    assert json.loads((adapter_folder(output) / "adapter_config.json").read_text())["lora_alpha"] == 8


@pytest.mark.parametrize("rows", ["tree", "pair", "separate"])
def test_a_stopped_training_resumes_to_the_same_adapter_bit_by_bit(start: Start, tmp_path: Path, rows: str) -> None:
    pairs, stage = start.pairs(11), {"rows": rows}
    whole = train(tmp_path / "whole", start, pairs, stage)
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match="stopped after step 3 of 6"):
        train(tmp_path / "first", start, pairs, stage, work=work, silent=StopAfter(2))
    resumed = train(tmp_path / "second", start, pairs, stage, work=work)
    assert adapter_sha256(adapter_folder(resumed)) == adapter_sha256(adapter_folder(whole))
    assert resumed.outputs["log.jsonl"].read_bytes() == whole.outputs["log.jsonl"].read_bytes()


def test_a_stopped_training_can_go_on_in_another_form(start: Start, tmp_path: Path) -> None:
    """A step has the same pairs in every form, so the step alone says where to go on."""
    pairs = of_trees(start.pairs(11))
    whole = train(tmp_path / "whole", start, pairs)
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match="stopped after step 3 of 6"):
        train(tmp_path / "first", start, pairs, work=work, silent=StopAfter(2))
    resumed = train(tmp_path / "second", start, pairs, {"rows": "separate", "microBatch": 1}, work=work)
    assert resumed.info["rows"] == "separate"
    assert resumed.metrics == pytest.approx(whole.metrics, rel=1e-3, abs=1e-4)


def test_qlora_trains_the_fp32_adapter_over_an_nf4_base_on_cpu(start: Start, tmp_path: Path) -> None:
    output = train(tmp_path, start, start.pairs(8), {"quantization": "nf4", "epochs": 4})
    assert output.metrics["train/loss"] < output.metrics["train/loss_first"]
    assert output.info["quantization"] == "nf4"
    assert all(p.dtype == torch.float32 for p in adapter_weights(start.model_dir, adapter_folder(output)))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_warms_up_and_then_falls_or_stays(start: Start, tmp_path: Path, schedule: str) -> None:
    output = train(tmp_path, start, start.pairs(4), {"schedule": schedule, "maxSteps": 5, "warmupRatio": 0.2})
    rates = [row["lr"] / 0.005 for row in log_lines(output)]
    expected = {
        "cosine": [0, 1, *((1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3))],
        "linear": [0, 1, 0.75, 0.5, 0.25],
        "constant": [0, 1, 1, 1, 1],
    }
    assert rates == pytest.approx(expected[schedule])


def test_several_nodes_are_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.nodes: got 2, allowed is 1"):
        train(tmp_path, start, start.pairs(2), {"nodes": 2})


def test_deepspeed_shards_only_where_there_is_more_than_one_process() -> None:
    one = plan_batches(global_batch=64, micro_batch=4, processes=1)
    assert deepspeed_config("zero2", plan=one, precision="fp16", quantization="nf4", max_grad_norm=1.0) is None
    eight = plan_batches(global_batch=64, micro_batch=4, processes=8)
    assert deepspeed_config("none", plan=eight, precision="fp16", quantization="nf4", max_grad_norm=1.0) is None
    config = deepspeed_config("zero2", plan=eight, precision="fp16", quantization="nf4", max_grad_norm=0.7)
    assert config is not None
    assert config["zero_optimization"]["stage"] == 2
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 8 == 64
    assert config["gradient_clipping"] == 0.7
    assert config["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    assert not config["bf16"]["enabled"]
    with pytest.raises(ConfigError, match=r"train\.deepspeed: got zero3 with quantization nf4"):
        deepspeed_config("zero3", plan=eight, precision="fp16", quantization="nf4", max_grad_norm=1.0)


def test_learning_stages_are_cheap_to_import() -> None:
    """Whatever is heavy is imported when there is work to do."""
    code = (
        "import sys, itrain_pipeline.stages.warmup, itrain_pipeline.stages.score, itrain_pipeline.stages.train;"
        "print([m for m in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'deepspeed') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_training_in_one_process_needs_neither_deepspeed_nor_trl() -> None:
    code = (
        "import sys, itrain_pipeline.learn.fitting, itrain_pipeline.learn.preference, itrain_pipeline.learn.launch;"
        "print([m for m in ('deepspeed', 'trl') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
