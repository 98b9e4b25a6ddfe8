"""The rollout stage on scripted answers: selection, shards, resume, failures, and the same pairs every time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.stagespec import RolloutStage
from itrain_pipeline.data.selection import shard_of
from itrain_pipeline.errors import DataError, Interrupted, PermanentError, RetryableError
from itrain_pipeline.ports import Completion, Ports, SamplingParams, StageOutput
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Example, PreferencePair, read_jsonl
from itrain_pipeline.search.forest import Forest
from itrain_pipeline.search.sample import Budget, SampleSearch, SearchedSample
from itrain_pipeline.stages import rollout
from itrain_pipeline.stages.rendered import load_renderer
from itrain_testing.rollout_inputs import quickstart_renderer, rollout_input, toolworld_examples, upstream_results
from itrain_testing.scripted_engine import ScriptedEngine
from itrain_testing.stageports import FolderWork, Silent, folder_ports, stage_result

ROWS = 12
STAGE: dict[str, Any] = {"treesInFlight": 1, "maxFailedTrees": 0.0}


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return toolworld_examples(ROWS)


@pytest.fixture
def results(tmp_path: Path, examples: list[Example]) -> list[StageResult]:
    return upstream_results(tmp_path, examples)


def answers_to(examples: Sequence[Example]) -> ScriptedEngine:
    """An engine that gives the truth or a version of it with one character changed, as the seed says."""
    renderer = quickstart_renderer()

    def policy(prompt: tuple[int, ...], seed: int, params: SamplingParams) -> Completion:
        rng = random.Random(seed)
        example = next(e for e in examples if prompt[: len(e.prompt_ids)] == e.prompt_ids)
        known = prompt[len(example.prompt_ids) :]
        at = rng.randrange(len(example.answer))
        changed = example.answer[:at] + rng.choice("abc123") + example.answer[at + 1 :]
        candidates = [renderer.answer_ids(example.answer), renderer.answer_ids(changed)]
        rng.shuffle(candidates)
        fitting = next((ids for ids in candidates if ids[: len(known)] == known and len(ids) > len(known)), None)
        ids = fitting[len(known) :] if fitting else renderer.answer_ids(rng.choice("abc123"))
        ids = ids[: params.max_tokens]
        end = ids[-1] == renderer.end_of_turn_id
        return Completion(
            token_ids=ids,
            logprobs=tuple(-0.01 * (1 + token % 50) for token in ids),
            finish_reason="stop" if end else "length",
        )

    return ScriptedEngine(policy)


def run(engine: ScriptedEngine, ports: Ports, made: StageInput | None = None) -> StageOutput:
    return rollout.run(made or rollout_input(STAGE), ports, engine_opener=lambda *_, **__: engine)


def pairs_of(output: StageOutput) -> list[PreferencePair]:
    return list(read_jsonl(output.outputs["pairs.jsonl"], PreferencePair))


def trees_of(output: StageOutput) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.outputs["trees.jsonl"].read_text().splitlines()]


def test_pairs_come_from_sampled_answers_with_lineage_and_better_steps_chosen(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    engine = answers_to(examples)
    output = run(engine, folder_ports(tmp_path / "run", results))
    pairs = pairs_of(output)
    by_id = {example.id: example for example in examples}
    assert len(pairs) >= ROWS / 2
    assert output.counters["pairs"] == len(pairs)
    assert len({pair.id for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.chosen_q > pair.rejected_q
        assert pair.prompt_ids == by_id[pair.lineage.sample_id].prompt_ids
        assert pair.lineage.template_sha256 == quickstart_renderer().template_sha256
        assert pair.lineage.sampling["temperature"] == 1.5
    trees = trees_of(output)
    assert [tree["sample_id"] for tree in trees] == [example.id for example in examples]
    assert engine.adapters == [("iteration-1", None)]
    assert engine.resets == ROWS


def test_the_newest_adapter_is_served_under_the_iterations_name_and_named_in_every_pair(
    tmp_path: Path, examples: list[Example]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes(name.encode())
    results = upstream_results(tmp_path, examples, iteration=2, adapter=adapter)
    trained = adapter / "trained"
    trained.mkdir()
    (trained / "adapter_model.safetensors").write_bytes(b"newer")
    files = {"adapter/adapter_model.safetensors": trained / "adapter_model.safetensors"}
    newest = stage_result(StageKind.TRAIN, 1, files)
    engine = answers_to(examples)
    output = run(engine, folder_ports(tmp_path / "run", [*results, newest]), rollout_input(STAGE, iteration=2))
    ((name, folder),) = engine.adapters
    assert name == "iteration-2"
    assert folder is not None
    assert (folder / "adapter_model.safetensors").read_bytes() == b"newer"
    sha256 = newest.outputs["adapter/adapter_model.safetensors"].sha256
    assert {pair.lineage.adapter_sha256 for pair in pairs_of(output)} == {sha256}
    assert {pair.lineage.iteration for pair in pairs_of(output)} == {2}


def test_tokens_and_requests_of_the_trees_add_up_to_the_engines(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    engine = answers_to(examples)
    counters = run(engine, folder_ports(tmp_path / "run", results)).counters
    assert counters["requests"] == engine.calls
    assert counters["decoded_tokens"] == counters["decoded"] > 0
    assert counters["prompt_tokens"] == counters["prefill_computed"] + counters["prefill_cached"] > 0
    assert counters["judge_calls"] == len(engine.judged)
    assert len(set(engine.asked)) == len(engine.asked)


def test_many_trees_at_once_give_the_pairs_that_one_at_a_time_gives(examples: list[Example]) -> None:
    found: dict[int, dict[str, SearchedSample]] = {}
    for in_flight in (1, 8):
        settings = RolloutStage(trees_in_flight=in_flight, pairs_per_tree=1000)
        renderer = load_renderer(model_path(), "pythonic", trust_remote_code=False)
        engine = answers_to(examples)
        search = SampleSearch(
            settings=settings,
            engine=engine,
            language=rollout.build_language(model_path(), renderer, "pythonic", settings),
            run_seed=1,
            iteration=1,
            adapter_sha256="",
            template_sha256=renderer.template_sha256,
            budget=Budget(freed=-1_000_000),  # handing over simulations is what depends on the order
        )
        done: dict[str, SearchedSample] = {}
        forest = Forest(search.run, in_flight=in_flight, max_failed=0, stats=search.stats, stop=Silent())
        asyncio.run(forest.grow(examples, on_result=lambda e, sample, done=done: done.update({e.id: sample})))
        assert engine.most_in_flight == in_flight
        found[in_flight] = done
    assert found[1] == found[8]
    assert len(found[1]) == ROWS


@pytest.mark.parametrize("stop_after", [2, 6, 9])
def test_a_stopped_run_goes_on_where_it_was_and_gives_the_same_bytes(
    tmp_path: Path, examples: list[Example], results: list[StageResult], stop_after: int
) -> None:
    whole = run(answers_to(examples), folder_ports(tmp_path / "whole", results))
    work = FolderWork(tmp_path / "work")
    first = answers_to(examples)
    with pytest.raises(Interrupted):
        run(first, folder_ports(tmp_path / "first", results, work=work, silent=Silent(stop_after)))
    second = answers_to(examples)
    resumed = run(second, folder_ports(tmp_path / "second", results, work=work))
    for name in ("pairs.jsonl", "trees.jsonl"):
        assert resumed.outputs[name].read_bytes() == whole.outputs[name].read_bytes()
    searched_twice = {prompt for prompt, _ in first.asked} & {prompt for prompt, _ in second.asked}
    assert len({p[: len(e.prompt_ids)] for p in searched_twice for e in examples if p == e.prompt_ids}) <= 1
    third = answers_to(examples)
    again = run(third, folder_ports(tmp_path / "third", results, work=work))
    assert third.asked == []
    assert again.outputs["pairs.jsonl"].read_bytes() == whole.outputs["pairs.jsonl"].read_bytes()


def test_every_selected_sample_is_searched_by_exactly_one_shard(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    found: list[str] = []
    for shard in range(3):
        ports = dataclasses.replace(folder_ports(tmp_path / str(shard), results), shard=shard)
        made = rollout_input(STAGE, shards=3, fraction=0.5)
        mine = [tree["sample_id"] for tree in trees_of(run(answers_to(examples), ports, made))]
        assert all(shard_of(sample, 3) == shard for sample in mine)
        found += mine
    # Perplexity falls along the rows: the hardest half are the first ones.
    assert sorted(found) == [example.id for example in examples[: ROWS // 2]]


def test_a_shard_stops_at_its_part_of_the_pairs(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    output = run(answers_to(examples), folder_ports(tmp_path / "run", results), rollout_input({**STAGE, "maxPairs": 3}))
    assert len(pairs_of(output)) == 3
    assert output.counters["trees"] < ROWS
    assert [rollout.shard_part(10, shard, 4) for shard in range(4)] == [3, 3, 2, 2]


def test_simulations_that_some_trees_leave_are_given_to_those_that_still_disagree(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    made = rollout_input({**STAGE, "simulations": 2, "pairsPerTree": 1000})
    trees = trees_of(run(answers_to(examples), folder_ports(tmp_path / "run", results), made))
    spent = [tree["simulations"] for tree in trees]
    assert sum(spent) <= 2 * ROWS
    assert min(spent) < 2 < max(spent) <= 4
    assert all(tree["reason"] != "budget" for tree in trees if tree["simulations"] < 2)
    for number in range(1, ROWS + 1):  # nobody spends what is not there yet
        assert sum(spent[:number]) <= 2 * number


def test_a_lost_request_is_asked_again_and_counted(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    engine = answers_to(examples)
    engine.failures = {2: RetryableError("connection lost")}
    output = run(engine, folder_ports(tmp_path / "run", results))
    assert output.counters["retried_requests"] == 1
    assert output.counters["failed_trees"] == 0
    whole = run(answers_to(examples), folder_ports(tmp_path / "whole", results))
    assert output.outputs["pairs.jsonl"].read_bytes() == whole.outputs["pairs.jsonl"].read_bytes()


def test_failed_trees_are_counted_and_too_many_end_the_shard(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    few = answers_to(examples)
    few.failures = {0: PermanentError("a prompt without room")}
    made = rollout_input({**STAGE, "maxFailedTrees": 0.1})  # 1.2 of 12: one may fail
    output = run(few, folder_ports(tmp_path / "few", results), made)
    assert (output.counters["failed_trees"], output.counters["trees"]) == (1, ROWS - 1)
    assert output.info["failures"] == "1× a prompt without room"
    many = answers_to(examples)
    many.failures = {call: PermanentError("a prompt without room") for call in (0, 1)}
    with pytest.raises(PermanentError, match="2 trees failed, allowed are 1: 2× a prompt without room") as error:
        run(many, folder_ports(tmp_path / "many", results), made)
    assert error.value.exit_code == 70


def test_a_store_that_fails_ends_the_stage_and_loses_nothing_that_was_saved(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    class Failing(FolderWork):
        def put(self, name: str, path: Path) -> None:
            if self.puts == 3:
                raise RetryableError("the store is gone")
            super().put(name, path)

    work = Failing(tmp_path / "work")
    with pytest.raises(RetryableError, match="the store is gone"):
        run(answers_to(examples), folder_ports(tmp_path / "first", results, work=work))
    assert len(work.names("trees/")) == 3
    whole = run(answers_to(examples), folder_ports(tmp_path / "whole", results))
    resumed = run(answers_to(examples), folder_ports(tmp_path / "second", results, work=FolderWork(tmp_path / "work")))
    assert resumed.outputs["pairs.jsonl"].read_bytes() == whole.outputs["pairs.jsonl"].read_bytes()


@pytest.mark.parametrize("method", ["bestOfN", "firstDivergence"])
def test_the_baselines_spend_the_same_completions_on_the_root(
    tmp_path: Path, examples: list[Example], results: list[StageResult], method: str
) -> None:
    engine = answers_to(examples)
    output = run(engine, folder_ports(tmp_path / "run", results), rollout_input({**STAGE, "method": method}))
    assert {prompt for prompt, _ in engine.asked} == {example.prompt_ids for example in examples}
    assert len(engine.asked) == ROWS * 15
    pairs = pairs_of(output)
    assert 0 < len(pairs) <= ROWS
    assert all((pair.shared_ids == ()) or method == "firstDivergence" for pair in pairs)
    assert {pair.lineage.sampling["method"] for pair in pairs} == {method}


def test_another_template_or_an_unknown_sample_is_refused_before_any_search(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    engine = answers_to(examples)
    (tmp_path / "manifest.json").write_text(json.dumps({"template_sha256": "other"}))
    with pytest.raises(DataError, match=r"template_sha256 is other.*prepare again"):
        run(engine, folder_ports(tmp_path / "run", results))
    fewer = upstream_results(tmp_path, examples)
    (tmp_path / "train.jsonl").write_text("".join((tmp_path / "train.jsonl").read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=r"names 1 samples that train.jsonl lacks, the first is toolworld/0000"):
        run(engine, folder_ports(tmp_path / "run", fewer))
    assert engine.calls == 0
