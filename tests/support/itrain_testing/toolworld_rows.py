"""Examples of the toolworld, rendered: the first turn of each task with its right answer."""

from __future__ import annotations

from collections.abc import Iterator

from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.toolworld import Split, Task, generate_tasks
from itrain_pipeline.records import Example, Message


def toolworld_rows(
    renderer: Renderer,
    split: Split,
    count: int,
    seed: int,
    *,
    name: str = "toolworld/{:04d}",
    prompt_tokens: int | None = None,
) -> Iterator[Example]:
    """One example for each of `count` tasks; `name` makes its id of the task's number.

    `prompt_tokens` is what the tools of a prompt are filled up to, as toolworld counts.
    """
    for number, task in enumerate(generate_tasks(split, count, seed, prompt_tokens=prompt_tokens)):
        yield toolworld_row(renderer, task, name.format(number))


def toolworld_row(renderer: Renderer, task: Task, name: str) -> Example:
    turn = task.turns[0]
    messages = (Message(role="user", content=turn.query),)
    return Example(
        id=name,
        messages=messages,
        tools=task.tools,
        answer=turn.answer,
        calls=turn.calls,
        bucket=task.bucket,
        source="toolworld",
        prompt_ids=renderer.prompt_ids(messages, task.tools),
        answer_ids=renderer.answer_ids(turn.answer),
    )
