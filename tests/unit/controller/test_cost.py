"""The cost model's sums by hand, its laws, and what the plan says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from itrain_contract.bfcl import DIALOGUE_PROMPT_CHARS, DIALOGUE_REQUESTS, ITEMS, MULTI_TURN_ITEMS
from itrain_contract.measurements import (
    DataStatistics,
    DecodeRate,
    EngineProfile,
    EvaluationRates,
    Lengths,
    Rates,
    SearchRates,
)
from itrain_contract.stages import StageKind, StageRef
from itrain_contract.stagespec import (
    ApiBank,
    EvaluateStage,
    PluginBenchmark,
    RolloutStage,
    ScoreStage,
    TrainStage,
    WarmupStage,
)
from itrain_operator.cost import (
    DIALOGUE_TOKENS,
    Facts,
    Work,
    dialogues,
    evaluate_work,
    questions,
    rollout_work,
    score_work,
    selected,
    simulations_per_tree,
    train_work,
    warmup_work,
)
from itrain_operator.costtime import decode_rate, rates_for, stage_time
from itrain_operator.devices import DEVICES, estimated_profile, model_shape
from itrain_operator.localmachine import Machine
from itrain_testing.builders import make_spec

DATA = DataStatistics(train=1000, dev=50, call_share=0.8, prompt=Lengths(mean=800.0), answer=Lengths(mean=40.0))
RATES = SearchRates(
    trees=100,
    actions=3,
    simulations=5,
    temperature=1.0,
    first_stop=0.25,
    later_stops=(0.5,),
    expanding=1.0,
    pairs=1.0,
    answers=2.5,
    prompt_ratio=1.0,
    deep_prompt_ratio=1.25,
    sampled_ratio=1.0,
    shared_ratio=0.25,
    common_share=0.1,
    pair_shared_ratio=0.2,
    pair_steps_ratio=0.5,
)
FACTS = Facts(data=DATA, search=RATES, evaluation=EvaluationRates(prompt_ratio=1.0, answer_ratio=1.0))


def rollout(**fields: object) -> RolloutStage:
    return RolloutStage.model_validate({"reward": "rule", **fields})


def test_simulations_of_a_tree_by_hand() -> None:
    """Two simulations: 1 + 0.75; of these 0.75, 0.375 are undecided and want 0.375 + 0.1875, of which the
    others left 0.25."""
    assert simulations_per_tree(rollout(simulations=2), RATES) == pytest.approx(1.75 + 0.25)
    late = RATES.model_copy(update={"later_stops": (0.0, 0.5)})
    assert simulations_per_tree(rollout(simulations=3), late) == pytest.approx(1 + 0.75 + 0.75 + 0.375 + 0.125)
    assert simulations_per_tree(rollout(simulations=1), RATES) == pytest.approx(1.0)


def test_early_stops_save_and_what_they_save_never_exceeds_the_budget() -> None:
    found = [simulations_per_tree(rollout(simulations=n), RATES) for n in range(1, 30)]
    assert found == sorted(found)
    assert all(mean <= n for n, mean in enumerate(found, 1))
    assert found[-1] == pytest.approx(1 + 0.75 / 0.5, abs=1e-6), "a budget that nobody spends costs nothing"


def test_trees_that_never_stop_spend_their_budget() -> None:
    never = RATES.model_copy(update={"first_stop": 0.0, "later_stops": (0.0,)})
    assert simulations_per_tree(rollout(simulations=5), never) == pytest.approx(5.0)


def test_more_actions_agree_less_often() -> None:
    """Three of one answer in a quarter of the trees: two in a half, five in a sixteenth."""
    one = RATES.model_copy(update={"later_stops": (1.0,)})
    assert simulations_per_tree(rollout(actions=2, simulations=9), one) == pytest.approx(1.5)
    assert simulations_per_tree(rollout(actions=5, simulations=9), one) == pytest.approx(1 + 15 / 16)


def test_a_rollouts_tokens_by_hand() -> None:
    """Ten trees of two simulations each (see above): 1 expansion of the root and 1 below it.

    Prompt tokens asked for 3 × (800 + 1,000 + 10); computed 0.9 × 800, and 1 below; decoded 3 × (40 + 40 − 10).
    """
    work = rollout_work(rollout(simulations=2), 10, FACTS)
    assert work.rows == 10
    assert work.requests == pytest.approx(20)
    assert work.prefill == pytest.approx(10 * 3 * 1810)
    assert work.computed == pytest.approx(10 * 721)
    assert work.decoded == pytest.approx(10 * 210)
    assert (work.judgements, work.pairs) == (0, 10)


def test_blocks_cost_half_a_block_more_below_the_root() -> None:
    blocks = Facts(data=DATA, search=RATES, evaluation=FACTS.evaluation, block=16)
    more = (
        rollout_work(rollout(simulations=2), 10, blocks).computed
        - rollout_work(rollout(simulations=2), 10, FACTS).computed
    )
    assert more == pytest.approx(10 * 7.5)


def test_nothing_is_common_to_trees_that_know_nothing_of_each_other() -> None:
    alone = Facts(data=DATA, search=RATES, evaluation=FACTS.evaluation, cross_tree=False)
    assert rollout_work(rollout(simulations=1), 10, alone).computed == pytest.approx(8000)


@pytest.mark.parametrize(("reward", "judged"), [("rule", 0.0), ("judge", 25.0), ("mixed", 5.0)])
def test_a_judge_reads_each_distinct_answer_of_the_trees_it_is_for(reward: str, judged: float) -> None:
    work = rollout_work(rollout(reward=reward), 10, FACTS)
    assert work.judgements == pytest.approx(judged)


def test_enough_pairs_end_the_search() -> None:
    assert rollout_work(rollout(maxPairs=4), 10, FACTS).rows == pytest.approx(4)
    assert rollout_work(rollout(maxPairs=4), 10, FACTS).pairs == pytest.approx(4)


def test_best_of_n_asks_once_for_all() -> None:
    work = rollout_work(rollout(method="bestOfN", simulations=5), 10, FACTS)
    assert work.requests == pytest.approx(10)
    assert work.decoded == pytest.approx(10 * 15 * 40)


def test_calls_and_texts_are_selected_apart_and_rounded_up() -> None:
    odd = DATA.model_copy(update={"train": 11, "call_share": 6 / 11})
    assert selected(ScoreStage(fraction=0.1), odd) == 2
    assert selected(ScoreStage(fraction=0.1, stratify=False), odd) == 2
    assert selected(ScoreStage(fraction=0.1), DATA) == 100


def test_later_iterations_score_a_pool() -> None:
    stage = ScoreStage(pool_fraction=0.3, audit_fraction=0.05)
    assert score_work(stage, DATA, iteration=1).scored == pytest.approx(840_000)
    assert score_work(stage, DATA, iteration=2).rows == pytest.approx(350)
    assert score_work(ScoreStage(rescore="all"), DATA, iteration=2).rows == 1000


def test_training_tokens_by_hand() -> None:
    """A pair: 800 + 8 of context for each of its rows, 20 of steps; 10 pairs in 2 epochs. Two pairs share a tree."""
    two = replace(FACTS, search=RATES.model_copy(update={"pairs": 2.0}))
    for rows, contexts in (("separate", 2), ("pair", 1), ("tree", 0.5)):
        stage = TrainStage.model_validate({"epochs": 2, "rows": rows})
        assert train_work(stage, 10, two).trained == pytest.approx(20 * (contexts * 808 + 20))
    assert train_work(TrainStage(max_steps=3, global_batch=4), 10, FACTS).rows == 12
    assert warmup_work(WarmupStage(epochs=2), DATA).trained == pytest.approx(2 * 840_000)


def test_questions_are_the_dev_set_and_the_first_of_each_category() -> None:
    stage = EvaluateStage(categories=["simple_python", "live_parallel"], limit=20)
    assert questions(stage, FACTS) == {"dev": 50, "bfcl": 20 + 16}
    assert questions(EvaluateStage(benchmarks=["bfcl"]), FACTS) == {"bfcl": sum(ITEMS.values())}
    assert evaluate_work(stage, FACTS, points=2).requests == 2 * 86


def test_a_dialogue_is_many_requests_over_a_prompt_that_is_computed_once() -> None:
    """Two dialogues, 9.4 requests each, beside the dev set's 50 questions."""
    without = evaluate_work(EvaluateStage(benchmarks=["dev"]), FACTS, points=2)
    stage = EvaluateStage(categories=["multi_turn_base"], limit=2)
    assert questions(stage, FACTS) == {"dev": 50, "bfcl": 2}
    work = evaluate_work(stage, FACTS, points=2)
    assert work.rows == 2 * 52
    assert work.requests - without.requests == pytest.approx(2 * 18.8)
    assert work.computed - without.computed == pytest.approx(2 * 2 * DIALOGUE_TOKENS)
    assert work.cached - without.cached == pytest.approx(2 * 16.8 * DIALOGUE_TOKENS)
    assert dialogues(EvaluateStage(benchmarks=["dev"], categories=["multi_turn"])) == {}
    assert sum(dialogues(EvaluateStage(categories=["multi_turn"])).values()) == 800


def test_the_requests_of_a_dialogue_are_those_of_the_packages_solutions() -> None:
    from itrain_pipeline.evals.bfcl import official

    package, tools = official(), []
    for category, requests in DIALOGUE_REQUESTS.items():
        turns = sum(len(entry["question"]) for entry in package.load_entries(category))
        calls = sum(len(turn) for answer in package.load_answers(category) for turn in answer["ground_truth"])
        assert (turns + calls) / MULTI_TURN_ITEMS[category] == pytest.approx(requests, abs=0.1), category
        tools += [len(json.dumps(entry["function"])) for entry in package.load_entries(category)]
    assert sum(tools) / len(tools) == pytest.approx(DIALOGUE_PROMPT_CHARS, rel=0.05)


@pytest.mark.parametrize(
    ("uri", "limit", "count"),
    [
        ("s3://bank/test-data", 0, 399 + 90 + 45),
        ("s3://bank/test-data/", 50, 50 + 50 + 45),
        ("/data/level-1-api.json", 0, 399),
        ("hf://datasets/a/b/level-2-api.json?revision=x", 60, 60 + 45),
    ],
)
def test_api_banks_questions_are_those_of_the_files_that_are_named(uri: str, limit: int, count: int) -> None:
    stage = EvaluateStage(benchmarks=["apibank"], limit=limit, api_bank=ApiBank(uri=uri))
    assert questions(stage, FACTS) == {"apibank": count}


def test_a_plug_ins_questions_are_those_that_a_run_or_the_user_knows() -> None:
    plugins = [PluginBenchmark(name="acebench"), PluginBenchmark(name="my.bench:make")]
    stage = EvaluateStage(benchmarks=["dev"], plugins=plugins)
    told = replace(FACTS, questions={"acebench": 823, "other": 7})
    assert questions(stage, told) == {"dev": 50, "acebench": 823, "my.bench:make": None}
    assert evaluate_work(stage, told, points=1).requests == 873


def test_the_benchmarks_sizes_are_those_of_the_package() -> None:
    from itrain_pipeline.data.sources import bfcl_data_folder

    for name, count in ITEMS.items():
        (file,) = bfcl_data_folder().glob(f"BFCL_v[0-9]_{name}.json")
        assert len([line for line in file.read_text().splitlines() if line.strip()]) == count, name


PROFILE = EngineProfile(
    name="made up",
    model="m",
    device="d",
    precision="fp16",
    source="measured",
    how="",
    rates=(
        Rates(
            prefill_tokens_per_s=1000.0,
            decode=(DecodeRate(rows=10, tokens_per_s=100.0), DecodeRate(rows=30, tokens_per_s=200.0)),
            score_tokens_per_s=500.0,
            train_tokens_per_s=100.0,
        ),
    ),
    start_s=10.0,
    prefix_block_tokens=1,
    prepare_rows_per_s=100.0,
    export_s=5.0,
)


@pytest.mark.parametrize(("rows", "rate"), [(5, 50.0), (10, 100.0), (20, 150.0), (30, 200.0), (300, 200.0)])
def test_decoding_is_as_fast_as_measured_and_never_faster(rows: int, rate: float) -> None:
    assert decode_rate(PROFILE.rates[0].decode, rows) == pytest.approx(rate)


def test_a_stage_lasts_as_long_as_its_shards_in_turn() -> None:
    """Two waves of two shards: each starts (10 s) and scores a quarter of 8,000 tokens (4 s); 4 × 14 s of one GPU."""
    spec = make_spec(stages={"score": {"shards": 4, "parallelism": 2, "gpus": 1}})
    found = stage_time(spec, StageRef(kind=StageKind.SCORE, iteration=1), Work(scored=8000.0), PROFILE)
    assert found.seconds == pytest.approx(28.0)
    assert found.gpu_hours == pytest.approx(56 / 3600)
    assert (found.pods, found.at_a_time) == (4, 2)


def test_devices_that_train_together_lose_a_tenth() -> None:
    spec = make_spec(stages={"train": {"gpus": 4, "nodes": 2}})
    found = stage_time(spec, StageRef(kind=StageKind.TRAIN, iteration=1), Work(trained=7200.0), PROFILE)
    assert found.seconds == pytest.approx(10 + 72 / (8 * 0.9))
    assert found.gpu_hours == pytest.approx(found.seconds * 8 / 3600)


def test_on_one_machine_processes_share_its_cores() -> None:
    spec = make_spec(stages={"score": {"shards": 4, "parallelism": 4, "gpus": 0}})
    two = Machine(cores=2, memory_bytes=64 * 1024**3)
    found = stage_time(spec, StageRef(kind=StageKind.SCORE, iteration=1), Work(scored=8000.0), PROFILE, two)
    assert (found.seconds, found.at_a_time, found.gpu_hours) == (pytest.approx(28.0), 2, 0.0)


def test_rates_are_those_of_the_threads_that_a_process_has() -> None:
    one, two = (PROFILE.rates[0].model_copy(update={"threads": n}) for n in (1, 2))
    both = PROFILE.model_copy(update={"rates": (one, two)})
    assert [rates_for(both, n).threads for n in (1, 2, 16, None)] == [1, 2, 2, 2]


def test_a_v100_reads_an_8b_model_as_its_data_sheet_says() -> None:
    """30 % of 112 TFLOP/s over 2 × 8.03 G FLOP a token = 2,092 tokens a second."""
    shape = model_shape("hf://meta-llama/Llama-3.1-8B-Instruct")
    assert shape is not None
    found = estimated_profile("v100", shape, context=845)
    assert found.source == "estimated"
    assert found.rates[0].prefill_tokens_per_s == pytest.approx(2092, abs=1)
    assert found.max_rows == int((0.9 * 32e9 - 16.06e9) / (131_072 * 845))


def test_a_newer_device_is_faster_and_more_rows_decode_more() -> None:
    shape = model_shape("x", 8e9)
    assert shape is not None
    profiles = [estimated_profile(name, shape, context=845) for name in ("v100", "a100", "h100", "h200")]
    speeds = [p.rates[0].prefill_tokens_per_s for p in profiles]
    assert speeds == sorted(speeds)
    for made in profiles:
        rates = [point.tokens_per_s for point in made.rates[0].decode]
        assert rates == sorted(rates)
    assert set(DEVICES) == {"v100", "a100", "h100", "h200"}


@pytest.mark.parametrize(
    ("uri", "size"),
    [
        ("hf://meta-llama/Llama-3.1-8B-Instruct", 8.03e9),
        ("hf://someone/model-13b-chat", 13e9),
        ("s3://models/tiny-0.5B/", 0.5e9),
        ("hf://someone/llama-v3.1", None),
    ],
)
def test_a_models_size_is_in_its_name_or_nowhere(uri: str, size: float | None) -> None:
    shape = model_shape(uri)
    assert (shape.parameters if shape else None) == size


def test_a_model_that_does_not_fit_is_refused() -> None:
    shape = model_shape("x", 70e9)
    assert shape is not None
    with pytest.raises(ValueError, match="140 GB of weights leave no room on a NVIDIA V100"):
        estimated_profile("v100", shape, context=845)


def test_a_profile_file_says_the_same_after_a_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(PROFILE.model_dump_json(by_alias=True, exclude_none=True))
    assert EngineProfile.model_validate(json.loads(file.read_text())) == PROFILE
