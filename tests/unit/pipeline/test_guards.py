"""What ends a training that ruins the model: the decisions on a log, the probe's prompts, and the probe itself."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.spec import AdapterSpec, ITrainRunSpec
from itrain_contract.stagespec import TrainGuards
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import PermanentError
from itrain_pipeline.learn.adapter import adapter_sha256, continue_adapter, new_adapter
from itrain_pipeline.learn.guards import (
    Guards,
    Probe,
    check_chosen,
    check_guards,
    check_validity,
    choose_probe,
    guard_figures,
    plan_guards,
    probe_is_due,
    valid_share,
)
from itrain_pipeline.learn.job import TrainJob, job_from_json, job_to_json
from itrain_pipeline.learn.loading import load_model, load_tokenizer
from itrain_pipeline.learn.probe import greedy_answers, probe_validity, undisturbed
from itrain_testing.learning import END, make_examples
from itrain_testing.pairjobs import pair_job, train_pairs
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

CALL = "[get_weather(city='Rome')]"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITRAIN_THREADS", "1")


def log_of(values: list[float], key: str = "chosen_logprob") -> list[dict[str, float]]:
    return [{"step": step, key: value} for step, value in enumerate(values, start=1)]


def test_the_chosen_logprob_is_compared_by_the_means_of_the_first_and_the_last_rows() -> None:
    history = log_of([-1.0] * 8 + [-1.5] * 4 + [-2.0] * 8)
    assert check_chosen(history, 1.0) is None
    verdict = check_chosen(history, 0.9)
    assert verdict is not None
    assert (verdict.step, verdict.start, verdict.value, verdict.limit) == (20, -1.0, -2.0, 0.9)


def test_one_bad_batch_ends_nothing_and_a_short_training_is_not_judged() -> None:
    assert check_chosen(log_of([-1.0] * 19 + [-8.0]), 1.0) is None
    assert check_chosen(log_of([-1.0] * 3 + [-9.0] * 4), 1.0) is None
    assert check_chosen(log_of([-1.0] * 4 + [-9.0] * 4), 1.0) is not None


def test_a_rise_is_no_fall_a_limit_of_0_is_none_and_nan_is_a_fall() -> None:
    assert check_chosen(log_of([-9.0] * 8 + [-1.0] * 8), 0.5) is None
    assert check_chosen(log_of([-1.0] * 8 + [-9.0] * 8), 0.0) is None
    assert check_chosen(log_of([-1.0] * 15 + [math.nan]), 100.0) is not None


@pytest.mark.parametrize(
    ("shares", "limit", "stops"),
    [
        ([1.0, 0.75], 0.25, False),
        ([1.0, 0.6875], 0.25, True),
        ([0.9, 0.6], 0.3, False),  # 0.9 - 0.6 is a little more than 0.3 in floating point
        ([0.5, 0.4375], 0.0, True),
        ([0.5, 0.125, 0.5], 0.25, False),  # the newest counts; the lowest would have ended it when it was the newest
        ([0.0, 0.0], 0.0, False),
        ([1.0], 0.0, False),
        ([], 0.0, False),
    ],
)
def test_validity_is_compared_with_the_first_probe(shares: list[float], limit: float, stops: bool) -> None:
    assert (check_validity(log_of(shares, "validity"), limit) is not None) is stops


def test_a_verdict_says_guard_step_value_limit_and_what_to_do() -> None:
    guards = Guards(chosen_logprob_drop=0.5, validity_drop=0.25, probe_steps=50)
    verdict = check_guards(log_of([-1.0] * 8 + [-2.0] * 8), guards)
    assert verdict is not None
    assert verdict.text(40) == (
        "train.guards.chosenLogprobDrop stopped the training after step 16 of 40: the mean logprob of the chosen steps "
        "is -2.000, 1.000 below its start of -1.000; allowed is a fall of 0.5. Lower train.learningRate or give "
        "train.nllWeight a value, or allow more with train.guards.chosenLogprobDrop; nothing of this training is kept, "
        "the adapter before it stays as it is"
    )
    verdict = check_guards([{"step": 0, "validity": 0.9}, {"step": 50, "validity": 0.2}], guards)
    assert verdict is not None
    assert verdict.text(60).startswith("train.guards.validityDrop stopped the training after step 50 of 60")


def test_the_figures_are_start_end_and_lowest_point() -> None:
    history = [{"step": 0, "validity": 0.9}, *log_of([-1.0, -1.5]), *log_of([0.5, 0.75], "validity")]
    expected = {"chosen_logprob_drop": 0.5, "validity_first": 0.9, "validity": 0.75, "validity_lowest": 0.5}
    assert guard_figures(history) == expected
    assert guard_figures([{"step": 1, "loss": 1.0}]) == {}


def test_a_probe_is_due_every_so_many_steps_and_at_the_end() -> None:
    probe = Probe(prompts=((1,),), max_new_tokens=1, call_format="pythonic")
    guards = Guards(chosen_logprob_drop=0, validity_drop=1, probe_steps=3, probe=probe)
    assert [step for step in range(1, 9) if probe_is_due(step, 8, guards)] == [3, 6, 8]
    assert not probe_is_due(3, 8, dataclasses.replace(guards, probe=None))


def test_the_probe_has_short_prompts_whose_answer_is_a_call_whatever_their_order() -> None:
    examples = make_examples(300, longest=200)
    probe = choose_probe(examples, 16, call_format="pythonic", seed=7)
    assert probe is not None
    calls = {e.prompt_ids: e for e in examples if e.has_call}
    assert len(probe.prompts) == 16
    assert set(probe.prompts) <= calls.keys()
    assert max(map(len, probe.prompts)) < sorted(map(len, calls))[len(calls) // 2]
    assert probe.max_new_tokens == 2 * max(len(calls[prompt].answer_ids) for prompt in probe.prompts)
    assert choose_probe(reversed(examples), 16, call_format="pythonic", seed=7) == probe
    assert choose_probe(examples, 16, call_format="pythonic", seed=8) != probe


def test_without_calls_or_with_no_rows_there_is_no_probe() -> None:
    text = [dataclasses.replace(e, calls=()) for e in make_examples(9)]
    assert choose_probe(text, 16, call_format="pythonic", seed=0) is None
    assert plan_guards(TrainGuards(probe_rows=0), make_examples(9), call_format="pythonic", seed=0).probe is None


def test_only_calls_that_can_be_read_are_valid() -> None:
    assert valid_share([CALL, "[get_weather(city=", "Which city?", CALL], "pythonic") == 0.5


def test_greedy_answers_of_a_padded_batch_are_those_of_each_prompt_alone(model_dir: Path) -> None:
    model = continue_adapter(load_model(model_dir, precision="fp32"), random_adapter(model_dir), trainable=True)
    prompts = [e.prompt_ids for e in make_examples(6)]
    with undisturbed(model):
        found = greedy_answers(model, prompts, stop_id=END, max_new_tokens=12)
        lockstep = greedy_answers(model, prompts, stop_id=END, max_new_tokens=12, lockstep=True)
        alone = [one_by_one(model, prompt, 12) for prompt in prompts]
    assert found == lockstep == alone
    assert len(set(found)) > 1


def one_by_one(model: Any, prompt: tuple[int, ...], most: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(most):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


def random_adapter(model_dir: Path) -> Path:
    folder = model_dir.parent / "adapter"
    return folder if folder.is_dir() else write_random_adapter(model_dir, folder)


def test_a_probe_leaves_modes_gradients_and_random_numbers_as_they_were(model_dir: Path) -> None:
    model = new_adapter(load_model(model_dir, precision="fp32"), AdapterSpec(rank=4, alpha=8, dropout=0.5), seed=0)
    model.train()
    model.get_output_embeddings().eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe = Probe(prompts=((1, 9, 30), (8,)), max_new_tokens=4, call_format="pythonic")
    share = probe_validity(model, Renderer(load_tokenizer(model_dir)), probe)
    assert 0.0 <= share <= 1.0
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_guards_go_through_the_file_that_ranks_read(model_dir: Path, tmp_path: Path) -> None:
    job = pair_job(tmp_path, model_dir, guards=guards_for(model_dir))
    assert job_from_json(job_to_json(job)) == job


def guards_for(model_dir: Path, **limits: Any) -> Guards:
    probe = choose_probe(make_examples(9), 4, call_format="pythonic", seed=0)
    return Guards(**{"chosen_logprob_drop": 0.0, "validity_drop": 1.0, "probe_steps": 2, "probe": probe, **limits})


def test_a_training_with_the_probe_is_bit_for_bit_that_without(model_dir: Path, tmp_path: Path) -> None:
    """With dropout, whose random numbers a probe would move, and with gradient checkpointing, which forbids caches."""
    plain = train_pairs(tmp_path / "plain", model_dir)
    probed = train_pairs(tmp_path / "probed", model_dir, guards=guards_for(model_dir))
    assert adapter_sha256(probed.adapter) == adapter_sha256(plain.adapter)
    assert [row["step"] for row in probed.log if "validity" in row] == [2, 4, 6]
    assert {"validity_first", "validity", "validity_lowest", "chosen_logprob_drop"} == probed.figures.keys()
    without = [{key: value for key, value in row.items() if key != "validity"} for row in probed.log]
    assert without == list(plain.log)


def test_a_collapse_of_the_chosen_logprob_ends_the_training_before_its_checkpoint(
    model_dir: Path, tmp_path: Path
) -> None:
    """The sign of the NLL term is wrong, so that training makes the chosen steps improbable."""
    guards = Guards(chosen_logprob_drop=0.2, validity_drop=1.0, probe_steps=1000)
    job = pair_job(tmp_path, model_dir, guards=guards, learning_rate=0.02, epochs=8, checkpoint_steps=1)
    job = dataclasses.replace(job, loss={**job.loss, "nll_weight": -3.0})
    with pytest.raises(PermanentError, match=r"train\.guards\.chosenLogprobDrop stopped .* after step \d+ of 22"):
        train_pairs(tmp_path, model_dir, job=job)
    assert not (job.folder / "adapter").exists()
    (kept,) = job.folder.glob("checkpoint-*")
    history = json.loads((kept / "trainer_state.json").read_text())["log_history"]
    assert check_guards(history, guards) is None


def test_a_fall_of_the_validity_ends_the_training(model_dir: Path, tmp_path: Path) -> None:
    """The start is told by the history of a checkpoint, as after a resumption: all answers were readable."""
    guards = guards_for(model_dir, validity_drop=0.5)
    stopped = pair_job(tmp_path / "first", model_dir, guards=guards, checkpoint_steps=1)
    folder = stop_early(stopped)
    state = json.loads((folder / "trainer_state.json").read_text())
    first = next(row for row in state["log_history"] if "validity" in row)
    assert first["step"] == 0
    first["validity"] = 1.0
    (folder / "trainer_state.json").write_text(json.dumps(state))
    job = pair_job(tmp_path / "second", model_dir, guards=guards, resume_from=folder)
    with pytest.raises(PermanentError, match=r"train\.guards\.validityDrop stopped the training after step 2 of 6"):
        train_pairs(tmp_path / "second", model_dir, job=job)


def stop_early(job: TrainJob) -> Path:
    from itrain_pipeline.errors import Interrupted
    from itrain_pipeline.learn.fitting import fit_job
    from itrain_testing.pairjobs import Stopping

    with pytest.raises(Interrupted):
        fit_job(job, Stopping(after=1))
    return job.folder / "checkpoint-1"


@pytest.mark.parametrize(
    "guards",
    [{"probeRows": 17}, {"probeRows": -1}, {"probeSteps": 0}, {"validityDrop": 1.1}, {"chosenLogprobDrop": -1}],
)
def test_the_fields_are_bounded(guards: dict[str, float]) -> None:
    where = {"model": {"uri": "builtin://toolworld"}, "data": {"uri": "builtin://toolworld"}, "storage": {"uri": "/s"}}
    with pytest.raises(ValueError, match=next(iter(guards))):
        ITrainRunSpec.model_validate({**where, "stages": {"train": {"guards": guards}}})
