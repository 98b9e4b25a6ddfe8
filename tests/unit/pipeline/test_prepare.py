"""The prepare stage: what it writes, what it refuses, and the model that it stages once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stageio import RunIdentity, StageInput, build_stage_input
from itrain_contract.stages import StageKind, StageRef
from itrain_pipeline.errors import DataError
from itrain_pipeline.ports import Ports, StageOutput
from itrain_pipeline.records import Example, RejectedRow, read_jsonl
from itrain_pipeline.stages import prepare
from itrain_pipeline.store import open_store
from itrain_testing.fakestage import DyingStore
from itrain_testing.stageports import FolderWork, folder_ports

TOOLWORLD = {"uri": "builtin://toolworld?split=train&rows=40&seed=1", "format": "toolace"}
DEV = {"uri": "builtin://toolworld?split=dev&rows=10&seed=2", "format": "toolace"}


@dataclasses.dataclass
class World:
    """One run below a folder; `run` is the stage with a fresh process's ports."""

    folder: Path
    store: DyingStore = dataclasses.field(init=False)
    work: FolderWork = dataclasses.field(init=False)
    runs: int = 0

    def __post_init__(self) -> None:
        self.store = DyingStore(open_store(self.root))
        self.work = FolderWork(self.folder / "work")

    @property
    def root(self) -> str:
        return f"file://{self.folder}/storage"

    def input(self, data: dict[str, Any], **spec: Any) -> StageInput:
        full = {"model": {"uri": "builtin://toolworld"}, "data": data, "storage": {"uri": self.root}, **spec}
        return build_stage_input(
            run=RunIdentity(name="small", uid="12345678", storage=self.root),
            spec=ITrainRunSpec.model_validate(full),
            ref=StageRef(kind=StageKind.PREPARE, iteration=0),
            attempt=1,
            shards=None,
            upstream=(),
        )

    def ports(self) -> Ports:
        self.runs += 1
        return dataclasses.replace(folder_ports(self.folder / f"r{self.runs}", [], work=self.work), store=self.store)

    def run(self, data: dict[str, Any], **spec: Any) -> StageOutput:
        return prepare.run(self.input(data, **spec), self.ports())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def examples(output: StageOutput, name: str) -> list[Example]:
    return list(read_jsonl(output.outputs[name], Example))


def rows_file(folder: Path, rows: list[Any]) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"uri": str(path), "format": "xlam"}


def task(number: int, tool: str, *, answer: str | None = None) -> dict[str, Any]:
    tools = [{"name": tool, "description": "d", "parameters": {"day": {"type": "str", "description": "d"}}}]
    calls = [{"name": answer or tool, "arguments": {"day": str(number)}}]
    return {"query": f"Day {number}?", "tools": tools, "answers": calls}


def test_examples_come_rendered_by_the_models_own_template(world: World) -> None:
    from transformers import AutoTokenizer

    from itrain_pipeline.data.rendering import Renderer
    from itrain_pipeline.quickstart import model_path

    output = world.run({**TOOLWORLD, "dev": DEV})
    train, dev = examples(output, "train.jsonl"), examples(output, "dev.jsonl")
    renderer = Renderer(AutoTokenizer.from_pretrained(str(model_path())), "pythonic")
    assert (len(train), len(dev)) == (40, 10)
    for example in (*train, *dev):
        assert example.prompt_ids == renderer.prompt_ids(example.messages, example.tools)
        assert example.answer_ids == renderer.answer_ids(example.answer)
    assert len({example.id for example in (*train, *dev)}) == 50
    manifest = json.loads(output.outputs["manifest.json"].read_text())
    assert manifest["template_sha256"] == renderer.template_sha256 == output.info["template_sha256"]
    assert manifest["call_format"] == "pythonic"
    assert manifest["counts"]["rows"] == 50
    assert sum(manifest["buckets"].values()) == 40
    assert manifest["contamination"].startswith("BFCL: 0 of ")


def test_the_same_input_gives_the_same_bytes_and_the_model_is_uploaded_once(world: World) -> None:
    first = world.run({**TOOLWORLD, "dev": DEV})
    uploads = list(world.store.written)
    second = world.run({**TOOLWORLD, "dev": DEV})
    assert {n: p.read_bytes() for n, p in first.outputs.items()} == {
        n: p.read_bytes() for n, p in second.outputs.items()
    }
    assert first.staged == second.staged
    assert world.store.written == uploads
    revision = first.info["model_revision"]
    assert all(
        ref.uri.startswith(f"{world.root}/small-12345678/model/{revision[:16]}/") for ref in first.staged.values()
    )
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= first.staged.keys()
    assert uploads[-1].endswith("/staged.json")


def test_a_model_whose_staging_was_cut_short_is_staged_again(world: World) -> None:
    first = world.run({**TOOLWORLD, "dev": DEV})
    world.store.delete(first.staged["model/model.safetensors"].uri)
    second = world.run({**TOOLWORLD, "dev": DEV})
    assert world.store.get_bytes(second.staged["model/model.safetensors"].uri)


def test_too_many_useless_rows_fail_before_the_model_is_fetched(world: World) -> None:
    rows = [task(i, f"t{i}", answer="other" if i < 3 else None) for i in range(20)]
    data = {**rows_file(world.folder, rows), "devFraction": 0.2, "maxRejected": 0.1}
    with pytest.raises(DataError) as caught:
        world.run(data, model={"uri": "/nowhere"})
    assert "data.maxRejected: 3 of 20 rejected (15.0%: unknown_tool 3), allowed are 10.0%" in str(caught.value)
    assert "row 0: unknown_tool: turn 1: calls 'other'" in str(caught.value)
    saved = world.work.get("rejected.jsonl")
    assert saved is not None
    assert [row.row for row in read_jsonl(saved, RejectedRow)] == [0, 1, 2]


def test_rows_that_are_too_long_count_as_rejected_too(world: World) -> None:
    data = {**TOOLWORLD, "dev": DEV}
    with pytest.raises(DataError, match="too_long"):
        world.run(data, stages={"prepare": {"maxLength": 200}})
    output = world.run({**data, "maxRejected": 1.0}, stages={"prepare": {"maxLength": 300}})
    kept = (*examples(output, "train.jsonl"), *examples(output, "dev.jsonl"))
    assert all(len(example.prompt_ids) + len(example.answer_ids) <= 300 for example in kept)
    rejected = list(read_jsonl(output.outputs["rejected.jsonl"], RejectedRow))
    assert len(kept) + len(rejected) == 50
    assert output.counters["rejected"] == len(rejected) > 0


def test_a_split_off_dev_set_shares_no_tool_with_training(world: World) -> None:
    rows = [task(i, f"tool{i // 3}") for i in range(60)]
    output = world.run({**rows_file(world.folder, rows), "devFraction": 0.1})
    train, dev = examples(output, "train.jsonl"), examples(output, "dev.jsonl")
    assert (len(train), len(dev)) == (54, 6)
    assert not {t["name"] for e in train for t in e.tools} & {t["name"] for e in dev for t in e.tools}


def test_what_is_in_dev_never_trains_and_duplicates_are_counted(world: World) -> None:
    rows = [task(i, "t") for i in (1, 2, 2, 3, 4)]
    (world.folder / "dev").mkdir()
    dev = rows_file(world.folder / "dev", [task(4, "t"), task(5, "t")])
    output = world.run({**rows_file(world.folder, rows), "dev": dev})
    assert [e.messages[0].content for e in examples(output, "train.jsonl")] == ["Day 1?", "Day 2?", "Day 3?"]
    assert [e.messages[0].content for e in examples(output, "dev.jsonl")] == ["Day 4?", "Day 5?"]
    assert output.counters["duplicates"] == 2


def test_several_sources_are_one_training_set_with_distinct_ids(world: World) -> None:
    output = world.run({**TOOLWORLD, "dev": DEV, "extra": [{"uri": "builtin://bfcl-exec", "format": "bfcl"}]})
    train = examples(output, "train.jsonl")
    assert len({example.id for example in train}) == len(train) == 40 + 237
    assert output.counters["rejected"] == 3
    assert {example.source for example in train} == {TOOLWORLD["uri"], "builtin://bfcl-exec"}


@pytest.mark.parametrize("call_format", ["hermes", "llama"])
def test_other_call_formats_change_answers_and_template(world: World, call_format: str) -> None:
    output = world.run({**TOOLWORLD, "dev": DEV, "callFormat": call_format})
    answers = [example.answer for example in examples(output, "train.jsonl") if example.has_call]
    assert all(answer.startswith("<tool_call>" if call_format == "hermes" else '{"name"') for answer in answers)


def test_sources_without_rows_are_an_error(world: World) -> None:
    with pytest.raises(DataError, match="the sources hold no rows"):
        world.run({"uri": "builtin://toolworld?rows=0", "dev": {"uri": "builtin://toolworld?rows=0"}})


def test_the_toolace_sample_is_prepared(world: World, data_dir: Path) -> None:
    data = {"uri": str(data_dir / "toolace-sample.json"), "devFraction": 0.05}
    output = world.run(data, stages={"prepare": {"maxLength": 65536}})
    train, dev = examples(output, "train.jsonl"), examples(output, "dev.jsonl")
    assert not {t["name"] for e in train for t in e.tools} & {t["name"] for e in dev for t in e.tools}
    assert output.counters["rejected"] == 3
    assert len(train) + len(dev) > 400


def test_the_module_imports_nothing_heavy() -> None:
    script = (
        "import sys, itrain_pipeline.stages.prepare; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
