"""Toolworld: seeded tool-calling tasks in ToolACE's raw row shape, small enough for a tiny model to learn.

A row's tools are named after an action and a thing (`find_flight`, `rentBike`, "Cancel Tour"); their parameters are
concepts that each tool names in its own way. To answer, a model must pick the tool by the question's words, take the
parameter names from the schema and copy the values out of the question. Tools (action and thing together) and open
values belong to exactly one split by the hash of their text, so dev and test ask for tools and values never trained.

Row `i` depends on `(seed, split, i)` alone: any slice can be made without the rows before it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal, get_args

from itrain_pipeline.data import toolworld_words as words
from itrain_pipeline.data.toolworld_rare import RARE_CONCEPTS
from itrain_pipeline.data.toolworld_words import Concept
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.records import Bucket, ToolCall
from itrain_pipeline.toolcalls.serialise import serialise

Split = Literal["train", "dev", "test"]

CHARS_PER_TOKEN: Final = 3.2
"""Characters of a prompt per token of the quickstart model's tokenizer, for asking for a prompt length."""

_SYSTEM: Final = (
    "You are an expert in composing functions. Here is a list of functions in JSON format that you can invoke:\n{tools}"
    "\nPut the calls in the format [func1(name=value, ...), func2(...)]. If no function fits, or a parameter is "
    "missing, say so."
)
_FIXED_TOKENS: Final = 120
"""Of a prompt beside its tools: the wording and a question."""
_MIX: Final[tuple[tuple[Bucket, float], ...]] = (("easy", 0.4), ("medium", 0.35), ("hard", 0.25))
_ROOM_FOR_MEDIUM: Final = 250
"""Tokens below which a prompt of a length asked for is easy: one tool with one or two parameters."""
_NEAR_SHARE: Final = 0.1
"""Of the distractors that share the action or the thing with the first tool."""
_NO_FIT_SHARE: Final = 0.05
_ASK_BACK_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    query: str
    answer: str
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Tools and one or more independent questions about them."""

    bucket: Bucket
    tools: tuple[dict[str, Any], ...]
    turns: tuple[Turn, ...]
    rare: bool = False
    """Whether the first tool has a parameter of `toolworld_rare`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    action: str
    thing: str
    name: str
    parameters: tuple[tuple[str, Concept, bool], ...]
    """Name, concept, required; in the schema's order, which is the order of a call's arguments."""

    def schema(self) -> dict[str, Any]:
        properties = {name: _property(concept) for name, concept, _ in self.parameters}
        required = [name for name, _, needed in self.parameters if needed]
        return {
            "name": self.name,
            "description": f"{self.action.capitalize()} a {self.thing}.",
            "parameters": {"type": "object", "properties": properties, "required": required},
        }


def generate(
    split: Split,
    rows: int,
    seed: int,
    *,
    offset: int = 0,
    distractors: int | None = None,
    prompt_tokens: int | None = None,
    rare: int = 0,
) -> Iterator[dict[str, Any]]:
    """`rows` raw rows `{"system", "conversations": [{"from", "value"}, …]}` from row `offset` on.

    `distractors` sets the number of tools beside those that the answer needs; `prompt_tokens` adds such tools until a
    prompt has about that many tokens of the quickstart model. `rare` per cent of the rows have a required parameter
    that the quickstart model never met (`toolworld_rare`). About one row in ten has no call: nothing fits, or a
    required parameter is missing. Raises `ConfigError` for a split or number that does not exist.
    """
    tasks = generate_tasks(
        split, rows, seed, offset=offset, distractors=distractors, prompt_tokens=prompt_tokens, rare=rare
    )
    for task in tasks:
        conversations = []
        for turn in task.turns:
            conversations.append({"from": "user", "value": turn.query})
            conversations.append({"from": "assistant", "value": turn.answer})
        tools = json.dumps(list(task.tools), ensure_ascii=False)
        yield {"system": _SYSTEM.format(tools=tools), "conversations": conversations}


def generate_tasks(
    split: Split,
    rows: int,
    seed: int,
    *,
    offset: int = 0,
    distractors: int | None = None,
    prompt_tokens: int | None = None,
    rare: int = 0,
) -> Iterator[Task]:
    """The tasks behind `generate`, in the same order."""
    if split not in get_args(Split):
        raise ConfigError(f"toolworld split: got {split!r}, allowed are {', '.join(get_args(Split))}")
    asked = (
        ("rows", rows, 0),
        ("offset", offset, 0),
        ("distractors", distractors, 0),
        ("prompt_tokens", prompt_tokens, 1),
        ("rare", rare, 0),
    )
    for name, value, least in asked:
        if value is not None and value < least:
            raise ConfigError(f"toolworld {name}: got {value}, allowed is {least} or more")
    if rare > 100:
        raise ConfigError(f"toolworld rare: got {rare}, allowed is 100 (per cent) or less")
    for index in range(offset, offset + rows):
        rng = random.Random(f"{seed}/{split}/{index}")
        bucket = rng.choices([name for name, _ in _MIX], [weight for _, weight in _MIX])[0]
        if prompt_tokens is not None and prompt_tokens < _ROOM_FOR_MEDIUM:
            bucket = "easy"
        asks_rare = bool(rare) and rng.random() * 100 < rare
        yield draw_task(rng, split, bucket, distractors=distractors, prompt_tokens=prompt_tokens, rare=asks_rare)


def draw_task(
    rng: random.Random,
    split: Split,
    bucket: Bucket,
    *,
    turns: int = 1,
    distractors: int | None = None,
    prompt_tokens: int | None = None,
    rare: bool = False,
) -> Task:
    """One task whose tools and calls fall into a curriculum bucket (method document, section 1).

    With `rare` the first tool requires a parameter of `toolworld_rare`, in the place of another.
    """
    low, high = {"easy": (1, 2), "medium": (1, 3), "hard": (2, 3)}[bucket]
    optional = 0.0 if bucket == "easy" else 0.2
    calls = 1 if bucket == "easy" else rng.choices((1, 2), (0.8, 0.2))[0]
    needed = 2 if calls == 2 and rng.random() < 0.5 else 1
    total = {"easy": 1, "medium": rng.randint(2, 3), "hard": rng.randint(4, 8)}[bucket]
    if distractors is not None or prompt_tokens is not None:
        total = needed + (distractors or 0)
    tools = _draw_tools(rng, split, total, (low, high), optional)
    if prompt_tokens is not None:
        tools = _pad_tools(rng, split, tools, prompt_tokens, (low, high), optional)
    if rare:
        tools[0] = _with_rare_parameter(rng, tools[0])
    wanted = tools[:needed]
    spoken = []
    for _ in range(turns):
        kind = rng.random()
        if kind < _NO_FIT_SHARE:
            spoken.append(_turn_without_fit(rng, split, tools))
        elif kind < _NO_FIT_SHARE + _ASK_BACK_SHARE:
            spoken.append(_turn_without_value(rng, split, wanted[0]))
        else:
            spoken.append(_turn_with_calls(rng, split, [wanted[i % needed] for i in range(calls)]))
        if turns > 1:
            wanted = rng.sample(tools, needed)
    rng.shuffle(tools)
    return Task(bucket=bucket, tools=tuple(tool.schema() for tool in tools), turns=tuple(spoken), rare=rare)


def _turn_with_calls(rng: random.Random, split: Split, tools: list[_Tool]) -> Turn:
    requests, calls = [], []
    for tool in tools:
        chosen = [entry for entry in tool.parameters if entry[2] or rng.random() < 0.5]
        said = {name: _say(rng, split, concept) for name, concept, _ in chosen}
        requests.append((tool, [phrase for phrase, _ in said.values()]))
        calls.append(ToolCall(name=tool.name, arguments={name: value for name, (_, value) in said.items()}))
    query = _ask(rng, *requests[0])
    for tool, phrases in requests[1:]:
        query += rng.choice(words.JOINERS).format(rest=f"{_request(rng, tool, phrases)}.")
    return Turn(query=query, answer=serialise(calls, "pythonic"), calls=tuple(calls))


def _turn_without_value(rng: random.Random, split: Split, tool: _Tool) -> Turn:
    entries = [entry for entry in tool.parameters if entry[2]]
    missing = rng.choice(entries)[0]
    phrases = [_say(rng, split, concept)[0] for name, concept, _ in entries if name != missing]
    return Turn(query=_ask(rng, tool, phrases), answer=words.ASK_BACK.format(name=missing), calls=())


def _turn_without_fit(rng: random.Random, split: Split, tools: list[_Tool]) -> Turn:
    taken = {(tool.action, tool.thing) for tool in tools}
    action, thing = rng.choice([pair for pair in _pairs(split) if pair not in taken])
    other = _build_tool(rng, action, thing, 1, 0.0)
    phrases = [_say(rng, split, concept)[0] for _, concept, _ in other.parameters]
    return Turn(query=_ask(rng, other, phrases), answer=words.NO_FIT, calls=())


def _ask(rng: random.Random, tool: _Tool, phrases: list[str]) -> str:
    spoken = rng.sample(phrases, len(phrases))
    fronted = bool(spoken) and rng.random() < 0.15
    opener = words.FRONTED if fronted else rng.choice(words.OPENERS)
    request = _request(rng, tool, spoken[1:] if fronted else spoken)
    text = opener.format(do=request, where=spoken[0] if fronted else "")
    return text[:1].upper() + text[1:]


def _request(rng: random.Random, tool: _Tool, phrases: list[str]) -> str:
    spoken = rng.sample(phrases, len(phrases))
    return " ".join((rng.choice(words.ACTIONS[tool.action]), "a", tool.thing, *spoken))


def _say(rng: random.Random, split: Split, concept: Concept) -> tuple[str, Any]:
    """A phrase and the value it stands for."""
    if concept.choices:
        return rng.choice(concept.choices)
    value, spoken = _value(rng, split, concept)
    return rng.choice(concept.phrases).format(v=spoken), value


def _value(rng: random.Random, split: Split, concept: Concept) -> tuple[Any, str]:
    match concept.kind:
        case "name":
            value: Any = _name(rng, split)
        case "title":
            value = f"{_name(rng, split)} {_name(rng, split)}"
        case "names":
            value = [_name(rng, split), _name(rng, split)]
            return value, " and ".join(value)
        case "small":
            value = rng.randint(concept.low, concept.high)
        case "amount":
            value = int(_held(rng, split, lambda: str(rng.randint(concept.low, concept.high))))
        case "decimal":
            value = float(_held(rng, split, lambda: f"{rng.randint(concept.low, concept.high) / 10}"))
        case "code":
            value = _held(rng, split, lambda: _letters(rng, 2) + str(rng.randint(100, 9999)))
        case "date":
            value = _held(
                rng, split, lambda: f"{rng.randint(2020, 2031)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            )
        case _:
            value = f"{rng.randint(0, 23):02}:{rng.randrange(0, 60, 5):02}"
    return value, str(value)


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(count))


def _name(rng: random.Random, split: Split) -> str:
    return _held(rng, split, lambda: "".join(_syllable(rng) for _ in range(rng.randint(2, 3))).capitalize())


def _syllable(rng: random.Random) -> str:
    return rng.choice(words.ONSETS) + rng.choice(words.VOWELS) + rng.choice(words.CODAS)


def _held(rng: random.Random, split: Split, draw: Any) -> str:
    while True:
        text: str = draw()
        if _split_of(text) == split:
            return text


def _split_of(text: str) -> Split:
    """The split that owns a value or a tool: 80 % train, 10 % dev, 10 % test."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return "dev" if bucket == 8 else "test" if bucket == 9 else "train"


@cache
def _pairs(split: Split) -> tuple[tuple[str, str], ...]:
    pairs = [(action, thing) for action in words.ACTIONS for thing in words.THINGS]
    return tuple(pair for pair in pairs if _split_of(" ".join(pair)) == split)


def _draw_tools(
    rng: random.Random, split: Split, count: int, parameters: tuple[int, int], optional: float
) -> list[_Tool]:
    """Tools with different (action, thing); a few of those after the first share a word with it."""
    pairs = _pairs(split)
    chosen = [rng.choice(pairs)]
    action, thing = chosen[0]
    near = [pair for pair in pairs if (pair[0] == action) != (pair[1] == thing)]
    far = [pair for pair in pairs if pair[0] != action and pair[1] != thing]
    while len(chosen) < min(count, len(pairs) - 1):
        crowded = len(chosen) > len(far) // 2
        pair = rng.choice(near if near and (crowded or rng.random() < _NEAR_SHARE) else far)
        if pair not in chosen:
            chosen.append(pair)
        elif crowded:
            chosen.append(rng.choice([other for other in pairs if other not in chosen]))
    return [_build_tool(rng, *pair, rng.randint(*parameters), optional) for pair in chosen]


def _pad_tools(
    rng: random.Random, split: Split, tools: list[_Tool], tokens: int, parameters: tuple[int, int], optional: float
) -> list[_Tool]:
    missing = tokens - _FIXED_TOKENS - sum(_estimate(tool) for tool in tools)
    taken = {(tool.action, tool.thing) for tool in tools}
    free = [pair for pair in rng.sample(_pairs(split), len(_pairs(split))) if pair not in taken]
    padded = list(tools)
    while len(free) > 1:  # one action and thing stay without a tool, for questions that nothing fits
        more = _build_tool(rng, *free.pop(), rng.randint(*parameters), optional)
        if missing < _estimate(more) / 2:
            break
        padded.append(more)
        missing -= _estimate(more)
    return padded


def _estimate(tool: _Tool) -> float:
    return len(json.dumps(tool.schema(), separators=(",", ":"))) / CHARS_PER_TOKEN


def _build_tool(rng: random.Random, action: str, thing: str, count: int, optional: float) -> _Tool:
    style = rng.choices(("snake", "camel", "spaced"), (0.5, 0.25, 0.25))[0]
    concepts = rng.sample(words.CONCEPTS, count)
    needed = [index == 0 or rng.random() >= optional for index in range(count)]
    entries = [
        (_camel(name) if style == "camel" else name, concept, required)
        for concept, required in zip(concepts, needed, strict=True)
        for name in (rng.choice(concept.names),)
    ]
    name = {"snake": f"{action}_{thing}", "camel": action + thing.capitalize()}.get(
        style, f"{action.capitalize()} {thing.capitalize()}"
    )
    return _Tool(action=action, thing=thing, name=name, parameters=tuple(entries))


def _with_rare_parameter(rng: random.Random, tool: _Tool) -> _Tool:
    concept = rng.choice(RARE_CONCEPTS)
    entries = list(tool.parameters)
    entries[rng.randrange(len(entries))] = (rng.choice(concept.names), concept, True)
    return replace(tool, parameters=tuple(entries))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _property(concept: Concept) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": concept.json_type, "description": concept.description}
    if concept.kind == "choice":
        schema["enum"] = [value for _, value in concept.choices]
    if concept.kind == "names":
        schema["items"] = {"type": "string"}
    return schema
