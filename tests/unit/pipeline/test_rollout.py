"""The rollout stage on scripted answers: selection, shards, resume, failures, and the same pairs every time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from itrain_contract.stageio import StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.data.selection import shard_of
from itrain_pipeline.errors import DataError, Interrupted, PermanentError, RetryableError
from itrain_pipeline.learn.hardware import compute_record
from itrain_pipeline.learn.precision import detect_device
from itrain_pipeline.ports import Completion, KVCapacity, Ports, SamplingParams, StageOutput
from itrain_pipeline.records import Example, PreferencePair, read_jsonl
from itrain_pipeline.search.mcts import StopReason
from itrain_pipeline.search.pace import tree_blocks
from itrain_pipeline.stages import rollout
from itrain_pipeline.stages.journal import Journal
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


def test_the_engine_is_opened_in_the_precision_that_is_recorded(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    """The spec says `auto`: what it stands for is decided where all stages decide it, not by the engine."""
    opened: list[str] = []

    def opener(*_: Any, dtype: str, **__: Any) -> ScriptedEngine:
        opened.append(dtype)
        return answers_to(examples)

    output = rollout.run(rollout_input(STAGE), folder_ports(tmp_path / "run", results), engine_opener=opener)
    assert opened == ["fp32"]
    assert output.info.items() >= compute_record(detect_device(), "fp32").items()


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
    assert counters["requests"] + counters["judge_calls"] == engine.calls
    assert counters["sequences"] == len(engine.asked) + len(engine.judged)
    assert counters["decoded_tokens"] == counters["decoded"] > 0
    assert counters["prompt_tokens"] == counters["prefill_computed"] + counters["prefill_cached"] > 0
    assert counters["judge_calls"] == len(engine.judged)
    assert len(set(engine.asked)) == len(engine.asked)
    assert counters["duplicate_requests"] == counters["lost_trees"] == counters["failed_trees"] == 0
    assert sum(counters[f"stopped_{reason}"] for reason in get_args(StopReason)) == counters["trees"] == ROWS
    assert counters["limit_tokens"] < counters["prompt_tokens"] + counters["decoded_tokens"]


class Shuffling(ScriptedEngine):
    """Ends its calls in an order that a seed decides: a batch in which every answer has another length."""

    def __init__(self, policy: Any, order: int) -> None:
        super().__init__(policy)
        self._turns = random.Random(order)

    async def _call(self) -> None:
        await super()._call()
        self._in_flight += 1
        for _ in range(self._turns.randrange(12)):
            await asyncio.sleep(0)
        self._in_flight -= 1


@pytest.mark.parametrize(
    "fields", [{}, {"simulations": 2, "pairsPerTree": 1000}, {"maxPairs": 5}, {"certainty": "none"}]
)
def test_many_trees_at_once_in_any_order_give_the_pairs_that_one_at_a_time_gives(
    tmp_path: Path, examples: list[Example], results: list[StageResult], fields: dict[str, Any]
) -> None:
    settings = {**STAGE, "pairsPerNode": 2, **fields}
    one = run(answers_to(examples), folder_ports(tmp_path / "one", results), rollout_input(settings))
    for order in range(6):
        engine = Shuffling(answers_to(examples).policy, order)
        made = rollout_input({**settings, "treesInFlight": (0, 2, 3, 5, 8, 0)[order]})
        many = run(engine, folder_ports(tmp_path / f"many-{order}", results), made)
        assert engine.most_in_flight > 1
        assert many.outputs["pairs.jsonl"].read_bytes() == one.outputs["pairs.jsonl"].read_bytes()
        if "maxPairs" not in fields:  # trees in flight when the pairs were enough may have ended
            assert many.outputs["trees.jsonl"].read_bytes() == one.outputs["trees.jsonl"].read_bytes()
        assert many.counters["lost_trees"] == many.counters["duplicate_requests"] == 0
        explained = ("trees", "failed_trees", "unsearched_trees", "unneeded_trees", "lost_trees")
        assert sum(many.counters[name] for name in explained) == ROWS
    assert len(pairs_of(one)) >= 5


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_resumed_run_asks_for_nothing_twice_and_counts_the_tokens_of_all_attempts(
    tmp_path: Path, examples: list[Example], results: list[StageResult], in_flight: int
) -> None:
    made = rollout_input({**STAGE, "treesInFlight": in_flight, "simulations": 3})
    whole_engine = answers_to(examples)
    whole = run(whole_engine, folder_ports(tmp_path / "whole", results), made)
    work = FolderWork(tmp_path / "work")
    engines = []
    for attempt, stop_after in enumerate((2, 4, None)):
        engines.append(Shuffling(answers_to(examples).policy, attempt))
        ports = folder_ports(tmp_path / str(attempt), results, work=work, silent=Silent(stop_after))
        if stop_after is None:
            resumed = run(engines[-1], ports, made)
        else:
            with pytest.raises(Interrupted):
                run(engines[-1], ports, made)
    assert resumed.outputs["pairs.jsonl"].read_bytes() == whole.outputs["pairs.jsonl"].read_bytes()
    finished_first = {row["record"]["sample_id"] for row in Journal(work, "trees").rows()}
    assert len(finished_first) == ROWS
    for engine in engines:
        assert len(set(engine.asked)) == len(engine.asked)
    assert resumed.counters["duplicate_requests"] == 0
    assert resumed.counters["decoded"] >= whole.counters["decoded"]
    if in_flight == 1:  # what a stopped tree spent is known to nobody; of finished ones everything
        for name in ("decoded", "prefill_computed", "prefill_cached"):
            assert resumed.counters[name] == whole.counters[name]


def test_trees_in_flight_follow_the_engines_free_blocks(
    tmp_path: Path, examples: list[Example], results: list[StageResult]
) -> None:
    """Room for three trees at their largest and the reserve: no fourth is begun, and the pairs are the same."""
    made = rollout_input({**STAGE, "treesInFlight": 0, "maxAnswerTokens": 64})
    longest = max(len(example.prompt_ids) for example in examples)
    need = tree_blocks(longest, actions=3, max_answer_tokens=64, block_tokens=16)
    wide = run(Shuffling(answers_to(examples).policy, 0), folder_ports(tmp_path / "wide", results), made)

    class Small(Shuffling):
        def kv_capacity(self) -> KVCapacity:
            total = 4 * need
            return KVCapacity(block_tokens=16, total_blocks=total, free_blocks=total - self._in_flight * need)

    engine = Small(answers_to(examples).policy, 1)
    small = run(engine, folder_ports(tmp_path / "small", results), made)
    assert int(wide.info["most_trees_in_flight"]) > 4
    assert 1 < engine.most_in_flight <= 4
    assert small.outputs["pairs.jsonl"].read_bytes() == wide.outputs["pairs.jsonl"].read_bytes()


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
