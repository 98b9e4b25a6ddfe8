"""The stage process: what survives its death, what is done twice, who may write, and how it ends."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from itrain_contract.stageio import ArtifactRef, StageInput
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError, DataError, Interrupted, PermanentError, RetryableError
from itrain_pipeline.ports import Ports, StageOutput
from itrain_pipeline.stopsignal import StopFlag
from itrain_pipeline.store import open_store
from itrain_pipeline.upstream import StoreUpstream, run_results
from itrain_testing.fakestage import (
    DIGEST,
    DyingStore,
    Killed,
    World,
    adapter_stage,
    as_upstream,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(folder=tmp_path)


def believed(world: World, stage_input: StageInput) -> bool:
    """Whether a consumer believes this attempt; if so, every byte that it names must be there."""
    if world.result(stage_input) is None:
        return False
    store = open_store(world.storage)
    upstream = StoreUpstream(store, [as_upstream(stage_input)], cache=world.folder / "reader")
    (result,) = upstream.results(stage_input.kind)
    assert set(result.outputs) == {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    folder = upstream.fetch_folder(result, "adapter/")
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights " * 1000
    return True


def test_a_stage_ends_with_its_result_its_outputs_and_a_termination_message(world: World) -> None:
    stage_input = world.stage_input()
    assert world.run(stage_input) == 0
    result = world.result(stage_input)
    assert result is not None
    assert (result.digest, result.metrics, result.attempt, result.shard) == (DIGEST, {"loss": 0.5}, 1, None)
    assert believed(world, stage_input)
    summary = world.termination()
    assert (summary.digest, summary.exit_code, summary.metrics, summary.message) == (
        DIGEST,
        0,
        {"loss": 0.5},
        "two steps",
    )


def test_the_result_is_the_last_write(world: World) -> None:
    store: list[DyingStore] = []
    world.run(world.stage_input(), wrap=lambda inner: store.append(DyingStore(inner)) or store[-1])
    assert [uri.removeprefix(world.identity.layout.root) for uri in store[0].written] == [
        f"i0/warmup/work/{DIGEST[:16]}/lease.json",
        f"i0/warmup/work/{DIGEST[:16]}/checkpoint/weights",
        f"i0/warmup/work/{DIGEST[:16]}/checkpoint/done",
        "i0/warmup/a1/adapter/adapter_config.json",
        "i0/warmup/a1/adapter/adapter_model.safetensors",
        f"i0/warmup/work/{DIGEST[:16]}/result.json",
        "i0/warmup/a1/result.json",
    ]


WRITES = 7


@pytest.mark.parametrize("next_attempt", [1, 2])
@pytest.mark.parametrize("survived", range(WRITES + 1))
def test_killed_between_any_two_writes_nothing_half_is_believed_and_the_next_process_finishes(
    world: World, survived: int, next_attempt: int
) -> None:
    first = world.stage_input(attempt=1)
    if survived < WRITES:
        with pytest.raises(Killed):
            world.run(first, wrap=lambda inner: DyingStore(inner, survives=survived))
    else:
        assert world.run(first, wrap=lambda inner: DyingStore(inner, survives=survived)) == 0
    assert believed(world, first) == (survived == WRITES)
    second = world.stage_input(attempt=next_attempt)
    assert world.run(second) == 0
    assert believed(world, second)
    # From the copy in the work area on (the sixth write) nothing is computed again.
    assert world.started == (1 if survived >= WRITES - 1 or survived == 0 else 2)


def test_finished_work_is_not_run_again_and_says_the_same(world: World) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    first = world.termination()
    assert world.run(stage_input) == 0
    assert world.started == 1
    assert world.termination() == first


def test_the_checkpoint_of_an_attempt_that_died_is_there_for_the_next(world: World) -> None:
    def dies(stage_input: StageInput, ports: Ports) -> StageOutput:
        adapter_stage(stage_input, ports)
        raise RuntimeError("out of luck")

    seen = []

    def looks(stage_input: StageInput, ports: Ports) -> StageOutput:
        found = ports.work.get("checkpoint/weights")
        seen.append((ports.work.names(), ports.work.names("checkpoint/d"), found and found.read_text()))
        ports.work.delete("checkpoint/done")
        seen.append(ports.work.names())
        return StageOutput()

    assert world.run(world.stage_input(attempt=1), dies) == 75
    assert world.run(world.stage_input(attempt=2), looks) == 0
    both = ["checkpoint/done", "checkpoint/weights"]
    assert seen == [(both, ["checkpoint/done"], "checkpoint/weights"), ["checkpoint/weights"]]


@pytest.mark.parametrize(
    ("kind", "keep", "there"),
    [
        (StageKind.TRAIN, "best", False),
        (StageKind.WARMUP, "best", False),
        (StageKind.TRAIN, "all", True),
        (StageKind.EVALUATE, "best", True),
    ],
)
def test_a_training_that_is_done_deletes_its_checkpoint_unless_all_are_kept(
    world: World, kind: StageKind, keep: str, there: bool
) -> None:
    stage_input = world.stage_input(kind).model_copy(update={"keep_checkpoints": keep})
    assert world.run(stage_input) == 0
    assert believed(world, stage_input)
    names = [
        uri.removeprefix(stage_input.work_prefix) for uri in open_store(world.storage).list(stage_input.work_prefix)
    ]
    assert ("checkpoint/weights" in names) == there
    assert {"lease.json", "result.json"} <= set(names)
    again = stage_input.model_copy(
        update={"attempt": 2, "output_prefix": stage_input.output_prefix.replace("a1", "a2")}
    )
    assert world.run(again) == 0
    assert world.started == 1


class NothingGoes(DyingStore):
    """A store whose owner may write and not delete."""

    def delete(self, uri: str) -> None:
        raise ConfigError("S3 answered AccessDenied")


def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    stage_input = world.stage_input().model_copy(update={"keep_checkpoints": "best"})
    assert world.run(stage_input, wrap=NothingGoes) == 0
    assert believed(world, stage_input)
    assert "checkpoints of a finished training stay in the storage: S3 answered AccessDenied" in caplog.text


def test_another_digest_shares_neither_results_nor_work(world: World) -> None:
    world.run(world.stage_input())
    other = world.stage_input(digest="e" * 64)
    assert world.run(other) == 0
    assert world.started == 2
    result = world.result(other)
    assert result is not None
    assert result.digest == "e" * 64


def test_a_result_whose_output_is_gone_is_made_again(world: World) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    result = world.result(stage_input)
    assert result is not None
    open_store(world.storage).delete(result.outputs["adapter/adapter_config.json"].uri)
    assert world.run(stage_input) == 0
    assert world.started == 2
    assert believed(world, stage_input)


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"kind": "warmup"}'])
def test_a_result_that_is_not_one_is_not_believed(world: World, junk: bytes) -> None:
    stage_input = world.stage_input()
    open_store(world.storage).put_bytes(junk, stage_input.output_prefix + "result.json")
    assert world.run(stage_input) == 0
    assert believed(world, stage_input)


def test_shards_have_their_own_results_and_work(world: World) -> None:
    stage_input = world.stage_input(StageKind.SCORE, iteration=1, shards=3)

    def scores(given: StageInput, ports: Ports) -> StageOutput:
        path = ports.scratch / "scores.jsonl"
        path.write_text(f"shard {ports.shard}\n")
        ports.work.put("scores.jsonl", path)
        return StageOutput(outputs={"scores.jsonl": path})

    for shard in (2, 0):
        assert world.run(stage_input, scores, shard=shard) == 0
    assert world.result(stage_input, 1) is None
    upstream = StoreUpstream(open_store(world.storage), [as_upstream(stage_input, "0,2")], cache=world.folder / "c")
    results = upstream.results(StageKind.SCORE)
    assert [result.shard for result in results] == [0, 2]
    assert [upstream.fetch(r.outputs["scores.jsonl"]).read_text() for r in results] == ["shard 0\n", "shard 2\n"]
    work = open_store(world.storage).list(stage_input.work_prefix)
    assert sum(uri.endswith("shard-2/scores.jsonl") for uri in work) == 1


@pytest.mark.parametrize("index", ["", "3", "-1", "x"])
def test_a_completion_index_out_of_range_is_a_configuration_error(world: World, index: str) -> None:
    world.environ["JOB_COMPLETION_INDEX"] = index
    assert world.run(world.stage_input(StageKind.SCORE, iteration=1, shards=3)) == 64
    assert "expects 0 to 2" in world.termination().message


def test_the_process_that_lost_its_lease_stops_before_it_writes_results(world: World) -> None:
    stage_input = world.stage_input()

    def zombie(given: StageInput, ports: Ports) -> StageOutput:
        path = ports.scratch / "log.jsonl"
        path.write_text("of the zombie")
        assert world.run(stage_input) == 0  # the cluster gave this pod up and started another
        return StageOutput(outputs={"log.jsonl": path}, metrics={"loss": 9.0})

    assert world.run(stage_input, zombie) == 75
    assert "took over this work" in world.termination().message
    assert believed(world, stage_input)
    result = world.result(stage_input)
    assert result is not None
    assert result.metrics == {"loss": 0.5}
    assert not any("log.jsonl" in uri for uri in open_store(world.storage).list(stage_input.output_prefix))


def test_the_process_that_lost_its_lease_cannot_touch_the_checkpoints(world: World) -> None:
    stage_input = world.stage_input()

    def zombie(given: StageInput, ports: Ports) -> StageOutput:
        world.run(stage_input)
        world.now += 60
        stale = ports.scratch / "stale"
        stale.write_text("stale")
        ports.work.put("checkpoint/weights", stale)
        raise AssertionError("the write went through")

    assert world.run(stage_input, zombie) == 75
    weights = open_store(world.storage).get_bytes(stage_input.work_prefix + "checkpoint/weights")
    assert weights == b"checkpoint/weights"


def test_an_earlier_attempt_that_comes_late_does_not_start(world: World) -> None:
    late = world.stage_input(attempt=1)

    def second(given: StageInput, ports: Ports) -> StageOutput:
        started = world.started
        assert world.run(late) == 75
        assert world.started == started
        return adapter_stage(given, ports)

    assert world.run(world.stage_input(attempt=2), second) == 0
    assert believed(world, world.stage_input(attempt=2))


def test_a_later_attempt_takes_the_work_over_from_an_earlier_one(world: World) -> None:
    def first(given: StageInput, ports: Ports) -> StageOutput:
        assert world.run(world.stage_input(attempt=2)) == 0
        return adapter_stage(given, ports)

    assert world.run(world.stage_input(attempt=1), first) == 75
    assert world.result(world.stage_input(attempt=1)) is None
    assert believed(world, world.stage_input(attempt=2))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("rank 0"), 64),
        (DataError("row 3"), 65),
        (PermanentError("loss is nan"), 70),
        (RetryableError("engine died"), 75),
        (Interrupted("saved"), 143),
        (ModuleNotFoundError("No module named 'httpx2'"), 64),
        (ValueError("nobody foresaw this"), 75),
        (MemoryError("no memory"), 75),
        (OSError(28, "No space left on device"), 75),
    ],
)
def test_an_error_decides_the_exit_code_and_stands_in_the_termination_message(
    world: World, error: Exception, code: int
) -> None:
    def fails(given: StageInput, ports: Ports) -> StageOutput:
        raise error

    stage_input = world.stage_input()
    assert world.run(stage_input, fails) == code
    summary = world.termination()
    assert summary.exit_code == code
    assert str(error) in summary.message
    assert summary.digest == DIGEST
    assert world.result(stage_input) is None


def test_an_unforeseen_error_leaves_its_traceback_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def fails(given: StageInput, ports: Ports) -> StageOutput:
        return StageOutput(metrics={"x": 1 / 0})

    assert world.run(world.stage_input(), fails) == 75
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_fails_for_good_and_is_named(world: World, value: float) -> None:
    code = world.run(world.stage_input(), lambda given, ports: StageOutput(metrics={"dev/call_accuracy": value}))
    assert code == 70
    assert "dev/call_accuracy" in world.termination().message


@pytest.mark.parametrize("name", ["../escape", "/absolute", "a//b", "result.json", "", ".hidden", "a/../../b", "a%2eb"])
def test_an_output_may_not_leave_its_prefix(world: World, name: str) -> None:
    def climbs(given: StageInput, ports: Ports) -> StageOutput:
        path = ports.scratch / "x"
        path.write_text("x")
        return StageOutput(outputs={name: path})

    stage_input = world.stage_input()
    assert world.run(stage_input, climbs) == 75
    assert open_store(world.storage).list(stage_input.output_prefix) == []


@pytest.mark.parametrize("name", ["../lease.json", "lease.json", "result.json", "/etc/passwd", "a/../../../b"])
def test_a_work_file_may_not_leave_its_area_nor_replace_the_runtimes_own(world: World, name: str) -> None:
    refused = []

    def climbs(given: StageInput, ports: Ports) -> StageOutput:
        path = ports.scratch / "x"
        path.write_text("x")
        for action in (lambda: ports.work.put(name, path), lambda: ports.work.delete(name)):
            with pytest.raises(ValueError, match=r"relative path|belongs to the runtime"):
                action()
            refused.append(name)
        return StageOutput()

    assert world.run(world.stage_input(), climbs) == 0
    assert refused == [name, name]


def test_the_stop_flag_reaches_the_stage(world: World) -> None:
    def polite(given: StageInput, ports: Ports) -> StageOutput:
        if ports.stop.is_set():
            raise Interrupted("stopped at step 3, checkpoint saved")
        return StageOutput()

    stop = StopFlag()
    stop.set()
    assert world.run(world.stage_input(), polite, stop=stop) == 143


def test_a_stage_input_that_is_missing_broken_or_of_another_stage_is_a_clear_error(world: World) -> None:
    assert world.run(world.stage_input().model_copy(update={"digest": "short"})) == 64
    assert "digest" in world.termination().message


def test_staged_outputs_are_named_but_not_copied(world: World) -> None:
    def stages_a_model(given: StageInput, ports: Ports) -> StageOutput:
        ref = ports.store.put_bytes(b"weights", given.run.layout.model("c0ffee") + "model.safetensors")
        return StageOutput(staged={"model/model.safetensors": ref})

    stage_input = world.stage_input(StageKind.PREPARE)
    assert world.run(stage_input, stages_a_model) == 0
    upstream = StoreUpstream(open_store(world.storage), [as_upstream(stage_input)], cache=world.folder / "c")
    (result,) = upstream.results(StageKind.PREPARE)
    assert (upstream.fetch_folder(result, "model/") / "model.safetensors").read_bytes() == b"weights"
    assert open_store(world.storage).list(stage_input.output_prefix) == [stage_input.output_prefix + "result.json"]


def upstream_of(world: World, stage_input: StageInput, **changes: str) -> StoreUpstream:
    entry = as_upstream(stage_input).model_copy(update=changes)
    return StoreUpstream(open_store(world.storage), [entry], cache=world.folder / "reader")


def test_an_upstream_of_another_digest_is_a_data_error(world: World) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    with pytest.raises(DataError, match=r"belongs to the input dddd.*expected eeee"):
        upstream_of(world, stage_input, digest="e" * 64).results(StageKind.WARMUP)


def test_an_upstream_without_its_result_is_a_data_error_that_names_it(world: World) -> None:
    stage_input = world.stage_input()
    with pytest.raises(DataError, match=r"i0/warmup/a1/result.json does not exist"):
        upstream_of(world, stage_input).results(StageKind.WARMUP)


def test_an_altered_output_is_never_handed_out(world: World) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    result = world.result(stage_input)
    assert result is not None
    ref = result.outputs["adapter/adapter_config.json"]
    open_store(world.storage).put_bytes(b"[]", ref.uri)
    with pytest.raises(DataError, match=f"has sha256 .* expected {ref.sha256}"):
        upstream_of(world, stage_input).fetch(ref)
    with pytest.raises(DataError, match="has sha256"):
        upstream_of(world, stage_input).fetch_folder(result, "adapter/")


def test_an_output_altered_behind_the_cached_folder_is_found_out_by_the_next_process(world: World) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    reader = upstream_of(world, stage_input)
    (result,) = reader.results(StageKind.WARMUP)
    folder = reader.fetch_folder(result, "adapter/")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(DataError, match="has sha256"):
        upstream_of(world, stage_input).fetch_folder(result, "adapter/")


def test_a_folder_that_nobody_made_is_a_data_error(world: World) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    reader = upstream_of(world, stage_input)
    (result,) = reader.results(StageKind.WARMUP)
    with pytest.raises(DataError, match="no outputs below 'model/'"):
        reader.fetch_folder(result, "model/")


def test_upstream_results_are_of_the_newest_iteration_or_of_the_one_asked_for(world: World) -> None:
    inputs = [world.stage_input(StageKind.TRAIN, iteration=i) for i in (1, 2)]
    for stage_input in inputs:
        world.run(stage_input)
    upstream = StoreUpstream(open_store(world.storage), map(as_upstream, inputs), cache=world.folder / "c")
    assert upstream.iterations(StageKind.TRAIN) == (1, 2)
    assert upstream.iterations(StageKind.SCORE) == ()
    assert [r.iteration for r in upstream.results(StageKind.TRAIN)] == [2]
    assert [r.iteration for r in upstream.results(StageKind.TRAIN, 1)] == [1]
    assert upstream.results(StageKind.SCORE) == ()


def test_the_results_of_a_run_are_its_newest_attempts_in_order(world: World) -> None:
    score = world.stage_input(StageKind.SCORE, iteration=1, shards=11)
    for shard in (10, 2):
        world.run(score, shard=shard)
    world.run(world.stage_input(attempt=9))
    world.run(world.stage_input(attempt=10, digest="e" * 64))
    root = world.identity.layout.root
    found = [(r.kind.value, r.attempt, r.shard) for r in run_results(open_store(world.storage), root)]
    assert found == [("warmup", 10, None), ("score", 1, 2), ("score", 1, 10)]


def test_the_lease_and_the_results_copy_are_readable_json(world: World) -> None:
    stage_input = world.stage_input(attempt=3)
    world.run(stage_input)
    store = open_store(world.storage)
    lease = json.loads(store.get_bytes(stage_input.work_prefix + "lease.json") or b"")
    assert lease["attempt"] == 3
    assert store.get_bytes(stage_input.work_prefix + "result.json") == store.get_bytes(
        stage_input.output_prefix + "result.json"
    )


def test_a_store_that_fails_is_a_retryable_end_and_the_log_says_why(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(DyingStore):
        def put_file(self, path: Path, uri: str) -> ArtifactRef:
            raise RetryableError("S3 failed for bucket 'b' after all retries")

    with caplog.at_level(logging.ERROR):
        assert world.run(world.stage_input(), wrap=Refusing) == 75
    assert "S3 failed for bucket 'b'" in caplog.text
    assert world.result(world.stage_input()) is None
