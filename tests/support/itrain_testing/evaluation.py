"""What tests of evaluation share: an engine that answers by a script, and a finished `prepare` on a tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from itrain_contract.stageio import StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.ports import Completion, EngineCounters, SamplingParams
from itrain_pipeline.records import Example, Message, ToolCall, write_jsonl
from itrain_testing.stageports import folder_files, stage_result
from itrain_testing.tiny_model import build_tokenizer, write_tiny_model

TOOL = {"name": "get weather", "parameters": {"type": "dict", "properties": {"city": {}, "days": {}}}}
RIGHT = "[get weather(city='Rome', days=3)]"


class ScriptedEngine:
    """Answers by a function of (adapter name, prompt ids); counts requests."""

    max_model_len = 512

    def __init__(self, answer: Callable[[str, Sequence[int]], Sequence[int]]) -> None:
        self._answer = answer
        self.adapter = ""
        self.loaded: list[tuple[str, Path | None]] = []
        self.asked: list[SamplingParams] = []
        self.closed = False

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        self.asked.append(params)
        await asyncio.sleep(0)
        ids = tuple(self._answer(self.adapter, prompt_ids))[: params.max_tokens]
        finish = "stop" if ids and ids[-1] in params.stop_token_ids else "length"
        return [Completion(token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason=finish)]

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        raise AssertionError("evaluation judges nothing by the model")

    def load_adapter(self, name: str, folder: Path | None) -> None:
        self.adapter = name
        self.loaded.append((name, folder))

    def counters(self) -> EngineCounters:
        return EngineCounters(requests=len(self.asked), decoded=7)

    async def aclose(self) -> None:
        self.closed = True


def example(at: int, renderer: Renderer, *, call: bool = True) -> Example:
    messages = (Message(role="user", content=f"Weather in Rome for 3 days? ({at})"),)
    answer = RIGHT if call else "Which city?"
    return Example(
        id=f"row-{at}",
        messages=messages,
        tools=(TOOL,),
        answer=answer,
        calls=(ToolCall(name="get weather", arguments={"city": "Rome", "days": 3}),) if call else (),
        bucket="easy",
        source="test",
        prompt_ids=renderer.prompt_ids(messages, [TOOL]),
        answer_ids=renderer.answer_ids(answer),
    )


def prepared(folder: Path) -> tuple[StageResult, Renderer]:
    """A model, three dev rows (one without a call) and seven train rows, of which one is a dev row."""
    renderer = Renderer(build_tokenizer(), "pythonic")
    model = write_tiny_model(folder / "model", context=2048)
    write_jsonl(folder / "dev.jsonl", [example(i, renderer, call=i != 2) for i in range(3)])
    write_jsonl(folder / "train.jsonl", [example(i, renderer) for i in range(2, 9)])
    (folder / "manifest.json").write_text(json.dumps({"template_sha256": renderer.template_sha256}))
    rows = {name: folder / name for name in ("dev.jsonl", "train.jsonl", "manifest.json")}
    return stage_result(StageKind.PREPARE, files={**rows, **folder_files(model, "model/")}), renderer
