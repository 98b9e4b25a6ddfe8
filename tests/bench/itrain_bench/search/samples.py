"""What is searched: toolworld calls with prompts of a length, and ToolACE's rows where they are at hand."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from itrain_contract.spec import DataSpec
from itrain_contract.stagespec import Curriculum
from itrain_pipeline.data.examples import Conversion, convert, render
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.records import Example
from itrain_testing.toolworld_rows import toolworld_rows

SEED = 5
SPLIT = "dev"
"""Values and tools that the model was not trained on."""
ASKED_TOKENS = {200: 175, 800: 750, 2000: 1930}
"""What toolworld is asked for, so that prompts have about 200, 800, 2,000 tokens in the mean."""
TOOLACE = "toolace-sample.json"


def toolworld_calls(renderer: Renderer, count: int, prompt_tokens: int) -> list[Example]:
    """The first `count` rows whose answer is a call."""
    asked = ASKED_TOKENS.get(prompt_tokens, prompt_tokens)
    rows = toolworld_rows(
        renderer, SPLIT, 2 * count + 20, SEED, prompt_tokens=asked, name=f"toolworld-{prompt_tokens}/{{:05d}}"
    )
    return list(itertools.islice((row for row in rows if row.has_call), count))


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
