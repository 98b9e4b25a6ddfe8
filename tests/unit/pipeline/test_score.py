"""score: shards, the pool of later iterations, what is left out, stop and resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.data.selection import shard_of
from itrain_pipeline.errors import DataError, Interrupted
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.perplexity import score_batch
from itrain_pipeline.ports import StageOutput
from itrain_pipeline.records import Example, ScoredExample, read_jsonl, write_jsonl
from itrain_pipeline.stages.score import run
from itrain_testing.learning import StopAfter, as_result, learning_input, make_examples, prepare_result
from itrain_testing.stageports import FolderWork, Silent, folder_files, folder_ports, stage_result
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

EXAMPLES = make_examples(40)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def score(
    folder: Path,
    model_dir: Path,
    stage: dict[str, Any] | None = None,
    *,
    examples: list[Example] = EXAMPLES,
    before: tuple[StageResult, ...] = (),
    shard: int = 0,
    shards: int = 1,
    iteration: int = 1,
    work: FolderWork | None = None,
    silent: Silent | None = None,
) -> StageOutput:
    folder.mkdir(parents=True, exist_ok=True)
    ports = folder_ports(folder, [prepare_result(folder, model_dir, examples), *before], work=work, silent=silent)
    ports = dataclasses.replace(ports, shard=shard)
    settings = {"shards": shards, "batchTokens": 200, **(stage or {})}
    return run(learning_input(StageKind.SCORE, settings, iteration=iteration, shards=shards), ports)


def rows_of(output: StageOutput) -> list[ScoredExample]:
    return list(read_jsonl(output.outputs["scores.jsonl"], ScoredExample))


def test_the_shards_together_score_every_row_once_as_one_shard_does(model_dir: Path, tmp_path: Path) -> None:
    one = {row.id: row for row in rows_of(score(tmp_path / "one", model_dir))}
    parts = [rows_of(score(tmp_path / f"{shard}", model_dir, shard=shard, shards=3)) for shard in range(3)]
    assert sorted(row.id for part in parts for row in part) == sorted(one) == sorted(e.id for e in EXAMPLES)
    for shard, part in enumerate(parts):
        assert [row.id for row in part] == sorted(row.id for row in part)
        assert all(shard_of(row.id, 3) == shard for row in part)
        for row in part:
            assert row.perplexity == pytest.approx(one[row.id].perplexity, rel=1e-5)


def test_scores_are_those_of_the_newest_adapter(model_dir: Path, tmp_path: Path) -> None:
    older = write_random_adapter(model_dir, tmp_path / "older", seed=1)
    newer = write_random_adapter(model_dir, tmp_path / "newer", seed=2)
    warmed = stage_result(StageKind.WARMUP, files=folder_files(older, "adapter/"))
    trained = stage_result(StageKind.TRAIN, 1, files=folder_files(newer, "adapter/"))
    found = rows_of(score(tmp_path / "run", model_dir, before=(warmed, trained), iteration=2))

    import peft

    model = peft.PeftModel.from_pretrained(load_model(model_dir, precision="fp32"), str(newer)).eval()
    expected = {row.id: row.perplexity for e in EXAMPLES for row in score_batch(model, [e]).rows}
    assert {row.id: row.perplexity for row in found} == pytest.approx(expected, rel=1e-5)


def test_a_shard_without_a_row_is_no_failure(model_dir: Path, tmp_path: Path) -> None:
    lonely = EXAMPLES[:1]
    empty = next(shard for shard in range(2) if shard_of(lonely[0].id, 2) != shard)
    output = score(tmp_path, model_dir, examples=lonely, shard=empty, shards=2)
    assert rows_of(output) == []


def test_rows_that_are_too_long_are_counted_and_left_out(model_dir: Path, tmp_path: Path) -> None:
    output = score(tmp_path, model_dir, {"maxLength": 20})
    fitting = [e.id for e in EXAMPLES if len(e.prompt_ids + e.answer_ids) <= 20]
    assert [row.id for row in rows_of(output)] == sorted(fitting)
    assert output.counters["too_long"] == len(EXAMPLES) - len(fitting) > 0


def test_a_stopped_shard_resumes_without_scoring_a_row_twice(model_dir: Path, tmp_path: Path) -> None:
    whole = score(tmp_path / "whole", model_dir)
    work = FolderWork(tmp_path / "work")
    with pytest.raises(Interrupted, match="of 40 rows are scored and saved"):
        score(tmp_path / "first", model_dir, work=work, silent=StopAfter(2))
    saved = [line for name in work.names("scores/") for line in (work.stored / name).read_text().splitlines()]
    assert 0 < len(saved) < len(EXAMPLES)
    silent = Silent()
    resumed = score(tmp_path / "second", model_dir, work=work, silent=silent)
    assert silent.updates[0][0] > len(saved)
    assert resumed.outputs["scores.jsonl"].read_bytes() == whole.outputs["scores.jsonl"].read_bytes()
    assert score(tmp_path / "third", model_dir, work=work).outputs["scores.jsonl"].read_bytes() == (
        whole.outputs["scores.jsonl"].read_bytes()
    )


def test_a_later_iteration_scores_the_hardest_rows_and_an_audit_and_reports_its_recall(
    model_dir: Path, tmp_path: Path
) -> None:
    first = score(tmp_path / "first", model_dir)
    second = score(
        tmp_path / "second",
        model_dir,
        {"poolFraction": 0.25, "auditFraction": 0.1, "fraction": 0.1},
        before=(as_result(StageKind.SCORE, first, iteration=1),),
        iteration=2,
    )
    ranked = sorted(rows_of(first), key=lambda row: (-row.perplexity, row.id))
    hardest = {row.id for kind in (True, False) for row in top([r for r in ranked if r.has_call is kind], 0.25)}
    found = {row.id for row in rows_of(second)}
    assert hardest < found
    assert len(found) == len(hardest) + 4
    assert second.counters["audited"] == 4
    # The same model: the true top tenth lies in last time's top quarter.
    assert second.metrics["score/audited_recall"] == 1.0
    assert second.counters["audited_top"] == second.counters["audited_top_found"] > 0
    assert second.message.endswith("too long, audited recall of the hardest 10%: 100%")
    assert second.info["rescored"] == "pool"


def top(rows: list[ScoredExample], fraction: float) -> list[ScoredExample]:
    return rows[: -(-int(len(rows) * fraction * 1000) // 1000)]


def test_rescore_all_scores_everything_again(model_dir: Path, tmp_path: Path) -> None:
    before = as_result(StageKind.SCORE, score(tmp_path / "first", model_dir), iteration=1)
    output = score(tmp_path / "second", model_dir, {"rescore": "all"}, before=(before,), iteration=2)
    assert len(rows_of(output)) == len(EXAMPLES)
    assert "score/audited_recall" not in output.metrics
    assert output.counters["audited_top"] == 0
    assert "recall" not in output.message


def test_the_pool_is_the_same_in_every_shard_although_each_scored_a_part(model_dir: Path, tmp_path: Path) -> None:
    first = [
        as_result(StageKind.SCORE, score(tmp_path / f"1-{k}", model_dir, shard=k, shards=2), iteration=1, shard=k)
        for k in range(2)
    ]
    parts = [
        rows_of(score(tmp_path / f"2-{k}", model_dir, before=tuple(first), shard=k, shards=2, iteration=2))
        for k in range(2)
    ]
    whole = rows_of(score(tmp_path / "one", model_dir, before=tuple(first), iteration=2))
    assert sorted(row.id for part in parts for row in part) == [row.id for row in whole]


def test_the_audit_notices_a_model_that_finds_other_rows_hard(model_dir: Path, tmp_path: Path) -> None:
    """Another adapter, and everything outside of the pool audited: the recall is then the true one."""
    first = score(tmp_path / "first", model_dir)
    adapter = write_random_adapter(model_dir, tmp_path / "adapter", seed=3)
    trained = stage_result(StageKind.TRAIN, 1, files=folder_files(adapter, "adapter/"))
    before = (as_result(StageKind.SCORE, first, iteration=1), trained)
    stage = {"poolFraction": 0.3, "auditFraction": 1.0, "fraction": 0.3, "stratify": False}
    second = score(tmp_path / "second", model_dir, stage, before=before, iteration=2)

    def hardest(output: StageOutput) -> set[str]:
        return {row.id for row in top(sorted(rows_of(output), key=lambda row: (-row.perplexity, row.id)), 0.3)}

    assert len(rows_of(second)) == len(EXAMPLES)
    caught = len(hardest(first) & hardest(second))
    assert 0 < caught < 12
    assert second.metrics["score/audited_recall"] == pytest.approx(caught / 12)


def test_a_model_that_gives_no_number_at_all_is_a_data_error(tmp_path: Path) -> None:
    import math

    from safetensors.torch import load_file, save_file

    broken = write_tiny_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="none of 40 rows has a finite perplexity"):
        score(tmp_path / "run", broken)


def test_rows_without_a_finite_perplexity_survive_a_restart_as_such(model_dir: Path, tmp_path: Path) -> None:
    scored = rows_of(score(tmp_path / "first", model_dir))
    work = FolderWork(tmp_path / "work")
    part = tmp_path / "part.jsonl"
    write_jsonl(part, scored[1:])
    part.write_text(part.read_text() + json.dumps({"not_finite": scored[0].id}) + "\n")
    work.put("scores/part-000000.jsonl", part)
    silent = Silent()
    output = score(tmp_path / "run", model_dir, work=work, silent=silent)
    assert silent.updates == []
    assert rows_of(output) == scored[1:]
    assert output.counters["not_finite"] == 1
