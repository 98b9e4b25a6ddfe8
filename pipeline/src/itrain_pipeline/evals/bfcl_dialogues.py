"""BFCL's multi-turn sets as items that are asked: official entries as scripts, official backends as their world.

The backends run in `dialogues.Sandbox`, one process for all open dialogues. It keeps none of their state: each request
brings all calls so far, so a process that one dialogue ended costs the others nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from itrain_contract.bfcl import MULTI_TURN, opened
from itrain_pipeline.evals.benchmark import Item, Judgement
from itrain_pipeline.evals.bfcl import official
from itrain_pipeline.evals.dialogues import Sandbox, SandboxError, judgement_of
from itrain_pipeline.evals.scripts import Script, Turns, WorldError
from itrain_pipeline.records import Message

T = TypeVar("T")


class Backends:
    """The sandbox and the one thread that talks with it; started at the first need, ended with this object."""

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox or Sandbox()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bfcl-backends")
        weakref.finalize(self, _close, self._sandbox, self._thread)

    async def ask(self, act: Callable[[Sandbox], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act, self._sandbox)


def _close(sandbox: Sandbox, thread: ThreadPoolExecutor) -> None:
    # Nothing is under way: what the thread is asked for holds the backends. It may be the one that let go of them last.
    thread.shutdown(wait=False)
    sandbox.close()


@dataclass(frozen=True, slots=True)
class BfclWorld:
    """One entry's backends (`itrain_pipeline.evals.scripts.World`)."""

    entry_id: str
    backends: Backends

    async def run(self, turns: Turns) -> list[str]:
        try:
            return await self.backends.ask(lambda sandbox: sandbox.run(self.entry_id, turns))
        except SandboxError as error:
            raise WorldError(str(error)) from error

    async def judge(self, turns: Turns, unreadable: frozenset[int]) -> Judgement:
        return judgement_of(await self.backends.ask(lambda sandbox: sandbox.judge(self.entry_id, turns)), unreadable)


def load_dialogues(categories: Sequence[str], limit: int = 0, backends: Backends | None = None) -> list[Item]:
    """The items of the multi-turn ones among `categories`, the first `limit` of each (0: all)."""
    wanted = [name for name in opened(categories) if name in MULTI_TURN] if categories else []
    if not wanted:
        return []
    package, prompts = official(), importlib.import_module("bfcl_eval.constants.default_prompts")
    instruction: str = prompts.PROMPT_STYLE_TEMPLATES["classic"]["multiturn_behavior"]
    again: str = prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
    shared = backends or Backends()
    items = []
    for category in wanted:
        entries = package.load_entries(category)
        chosen = entries[:limit] if limit else entries
        items += [_item(category, entry, shared, instruction, again) for entry in chosen]
    return items


def _item(category: str, entry: dict[str, Any], backends: Backends, instruction: str, again: str) -> Item:
    script = Script(
        turns=tuple(tuple(Message(role=m["role"], content=m["content"]) for m in turn) for turn in entry["question"]),
        world=lambda: BfclWorld(entry["id"], backends),
        instruction=instruction,
        added={int(turn): tuple(tools) for turn, tools in entry.get("missed_function", {}).items()},
        again=again,
    )
    return Item(
        category=category,
        id=entry["id"],
        messages=script.opening(),
        tools=tuple(entry["function"]),
        gold=None,
        script=script,
    )


def callable_names(entry_ids: Sequence[str]) -> dict[str, frozenset[str]]:
    """By entry, the tools that it ever shows: what a call may name that the official program is to run."""
    if not entry_ids:
        return {}
    package, wanted = official(), set(entry_ids)
    return {
        entry["id"]: frozenset(
            tool["name"] for tools in (entry["function"], *entry.get("missed_function", {}).values()) for tool in tools
        )
        for category in MULTI_TURN
        for entry in package.load_entries(category)
        if entry["id"] in wanted
    }
