"""What is searched: toolworld calls with prompts of a length, and ToolACE's rows where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

from itrain_contract.spec import DataSpec
from itrain_contract.stagespec import Curriculum
from itrain_pipeline.data.examples import Conversion, convert, render
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.toolworld import generate_tasks
from itrain_pipeline.records import Example, Message

SEED = 5
SPLIT = "dev"
"""Values and tools that the model was not trained on."""
ASKED_TOKENS = {200: 175, 800: 750, 2000: 1930}
"""What toolworld is asked for, so that prompts have about 200, 800, 2,000 tokens in the mean."""
TOOLACE = "toolace-sample.json"


def toolworld_calls(renderer: Renderer, count: int, prompt_tokens: int) -> list[Example]:
    """The first `count` rows whose answer is a call."""
    examples: list[Example] = []
    asked = ASKED_TOKENS.get(prompt_tokens, prompt_tokens)
    for number, task in enumerate(generate_tasks(SPLIT, 2 * count + 20, SEED, prompt_tokens=asked)):
        turn = task.turns[0]
        if not turn.calls:
            continue
        messages = (Message(role="user", content=turn.query),)
        examples.append(
            Example(
                id=f"toolworld-{prompt_tokens}/{number:05d}",
                messages=messages,
                tools=task.tools,
                answer=turn.answer,
                calls=turn.calls,
                bucket=task.bucket,
                source="toolworld",
                prompt_ids=renderer.prompt_ids(messages, task.tools),
                answer_ids=renderer.answer_ids(turn.answer),
            )
        )
        if len(examples) == count:
            break
    return examples


def toolace_rows(renderer: Renderer, count: int) -> list[Example] | str:
    """The rows with the shortest prompts of the ToolACE sample in ITRAIN_DATA_DIR, or why there are none.

    The shipped model's vocabulary is small, so that a prompt of 700 tokens elsewhere has some 2,000 here.
    """
    folder = os.environ.get("ITRAIN_DATA_DIR")
    if not folder:
        return "ITRAIN_DATA_DIR is not set"
    path = Path(folder) / TOOLACE
    if not path.is_file():
        return f"ITRAIN_DATA_DIR has no {TOOLACE}"
    rows = json.loads(path.read_text(encoding="utf-8"))
    how = Conversion(
        source="toolace",
        prefix="toolace",
        data_format="toolace",
        call_format=DataSpec.model_fields["call_format"].default,
        turns="last",
        curriculum=Curriculum(),
    )
    found = convert(rows, how)
    examples, _ = render(found.examples, renderer, 8192, found.rows)
    return sorted(examples, key=lambda e: (len(e.prompt_ids), e.id))[:count]
