"""BFCL's dialogues asked: turn by turn with the official backends, whatever the model says, and judged as BFCL does."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.names import ExitCode
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import ConfigError, DataError, Interrupted
from itrain_pipeline.evals import offline
from itrain_pipeline.evals.benchmark import Item, Judgement, Opening
from itrain_pipeline.evals.bfcl import Bfcl, open_bfcl
from itrain_pipeline.evals.bfcl_dialogues import Backends, load_dialogues
from itrain_pipeline.evals.bfclresults import dialogue_row, result_path, write_results
from itrain_pipeline.evals.conversing import MAX_STEPS, Conversation, Manner, NoRoomError, Said, converse
from itrain_pipeline.evals.dialogues import Sandbox
from itrain_pipeline.evals.questions import build_questions
from itrain_pipeline.evaluating import __main__ as evaluating
from itrain_pipeline.records import Message, Prediction, read_jsonl
from itrain_pipeline.stages.evaluate import Asker, Point, ask_points, shows_results
from itrain_pipeline.toolcalls.parse import parse
from itrain_testing.bfclgold import Dialogue, gold_dialogues
from itrain_testing.chatserver import Said as Sent
from itrain_testing.chatserver import chat_server, completion, fault
from itrain_testing.evaluation import ScriptedEngine
from itrain_testing.stageports import FolderWork, Silent, folder_ports
from itrain_testing.tiny_model import END, build_tokenizer

ROOT = Path(__file__).parents[3]
DONE = "That is done."
read = functools.partial(parse, call_format="pythonic")
Answers = Mapping[str, Sequence[str]]
"""By entry: every answer of a model in its order."""


@pytest.fixture(scope="module")
def gold() -> dict[str, Dialogue]:
    return gold_dialogues()


@pytest.fixture(scope="module")
def backends() -> Backends:
    return Backends()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(build_tokenizer(), "pythonic")


def items(backends: Backends, category: str = "multi_turn_base", limit: int = 1) -> list[Item]:
    return load_dialogues([category], limit, backends)


def said(dialogue: Dialogue) -> list[str]:
    """The calls of each turn, and a text after them."""
    return [answer for turn in dialogue for answer in (*turn, DONE)]


def hold(item: Item, answers: Sequence[str], manner: Manner | None = None, **more: Any) -> Conversation:
    """One dialogue with a model that says `answers`; `seen` collects what it is shown."""
    waiting = iter(answers)

    async def say(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Said:
        more.get("seen", []).append((list(messages), list(tools)))
        return Said(text=next(waiting))

    assert item.script is not None
    return asyncio.run(converse(item.script, item.tools, say, read, manner or Manner()))


def test_the_gold_of_each_set_is_right_when_it_is_said_step_by_step(
    backends: Backends, gold: dict[str, Dialogue]
) -> None:
    asked = load_dialogues(["multi_turn"], 5, backends)
    assert [item.category for item in asked[::5]] == [
        "multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"
    ]  # fmt: skip
    assert all(hold(item, said(gold[item.id])).judgement.correct for item in asked)


def test_results_are_shown_as_the_official_executor_writes_them(backends: Backends, gold: dict[str, Dialogue]) -> None:
    (item,) = items(backends)
    seen: list[Any] = []
    hold(item, said(gold[item.id]), seen=seen)
    first, second = seen[0][0], seen[1][0]
    assert [m.role for m in first] == ["system", "user"]
    assert first[0].content.startswith("At each turn, you should try your best to complete the tasks")
    assert second[: len(first)] == first
    assert [m.role for m in second[len(first) :]] == ["assistant", "tool", "tool", "tool"]
    assert second[-1].content == "{\"result\": \"'final_report.pdf' moved to 'temp/final_report.pdf'\"}"
    shown: list[Any] = []
    hold(item, said(gold[item.id]), Manner(results="user"), seen=shown)
    (told,) = shown[1][0][len(first) + 1 :]
    assert told.role == "user"
    assert told.content.startswith(
        "[{'role': 'tool', 'name': \"cd(folder='document')\", 'content': '{\"current_working"
    )


def test_a_tool_that_comes_later_is_shown_in_its_turn(backends: Backends, gold: dict[str, Dialogue]) -> None:
    (item,) = items(backends, "multi_turn_miss_func")
    seen: list[Any] = []
    hold(item, said(gold[item.id]), seen=seen)
    assert "sort" not in {tool["name"] for tool in item.tools}
    told = [m.content for m in seen[-1][0] if m.role == "user" and m.content.endswith("What about now?")]
    assert len(told) == 1
    assert told[0].startswith("[{'name': 'sort', 'description': ")
    assert "I have updated some more functions you can choose from." in told[0]
    native: list[Any] = []
    hold(item, said(gold[item.id]), Manner(native=True), seen=native)
    assert native[0][0][0].role == "user"
    assert [len(tools) for _, tools in native] == sorted(len(tools) for _, tools in native)
    assert native[-1][1][-1]["name"] == "sort"


def test_a_dialogue_without_a_needed_call_is_wrong_and_says_where(
    backends: Backends, gold: dict[str, Dialogue]
) -> None:
    (item,) = items(backends)
    turns = len(gold[item.id])
    silent = hold(item, [DONE] * turns).judgement
    assert (silent.correct, silent.error_class) == (False, "missed_call")
    assert hold(item, ["[cd(folder=", *[DONE] * turns]).judgement.error_class == "format"
    first, *rest = said(gold[item.id])
    state = hold(item, ["[cd(folder='document')]", *said(gold[item.id])[1:]]).judgement
    assert state.error_class == "state_mismatch"
    assert hold(item, [first, "[pwd()]", *rest]).judgement.correct  # more than the gold does is no mistake


def test_a_model_that_never_stops_calling_is_stopped(backends: Backends) -> None:
    (item,) = items(backends)
    held = hold(item, ["[ls()]"] * 99)
    assert [len(turn) for turn in held.texts] == [MAX_STEPS]
    assert held.judgement.error_class == "step_limit"
    assert MAX_STEPS == 20


def test_calls_that_cannot_be_made_are_answered_and_run_nothing(
    backends: Backends, gold: dict[str, Dialogue], tmp_path: Path
) -> None:
    (item,) = items(backends)
    mark = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    hostile = f"[os.system(command='true'), eval(source={code!r}), cd(**{{'a b': 1}}), cd(folder={code!r})]"
    seen: list[Any] = []
    first, *rest = said(gold[item.id])
    held = hold(item, [hostile, first, *rest], seen=seen)
    assert held.judgement.correct or held.judgement.error_class == "format"
    hold(item, ["[os.system(command='true'), eval(source='1')]", first, *rest], seen=seen)
    told = [m.content for m in seen[-1][0] if m.role == "tool"][:2]
    assert told == [f"Error during execution: name {name!r} is not defined" for name in ("os", "eval")]
    assert not mark.exists()


def test_a_call_that_never_returns_ends_its_own_dialogue_only(gold: dict[str, Dialogue]) -> None:
    own = Backends(Sandbox(seconds=2.0))
    fine, hung = items(own, "multi_turn_base", 1)[0], math_item(own)

    async def both() -> list[Conversation]:
        return list(await asyncio.gather(held(fine, said(gold[fine.id])), held(hung, [ENDLESS, *[DONE] * 9])))

    async def held(item: Item, answers: list[str]) -> Conversation:
        async def say(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Said:
            await asyncio.sleep(0.2)
            return Said(text=answers.pop(0))

        assert item.script is not None
        return await converse(item.script, item.tools, say, read, Manner())

    begun = time.monotonic()
    right, wrong = asyncio.run(both())
    assert right.judgement.correct
    assert wrong.judgement.error_class == "backend_limit"
    assert wrong.judgement.detail == "sandbox:time_limit: more than 2 s"
    assert time.monotonic() - begun < 60


ENDLESS = "[power(base=7, exponent=4000000000)]"


def math_item(backends: Backends) -> Item:
    """The first entry with the calculator, whose powers have no bound."""
    found = load_dialogues(["multi_turn_base"], 0, backends)
    return next(item for item in found if any(tool["name"] == "logarithm" for tool in item.tools))


def dialogue_of(text: str, asked: Sequence[Item]) -> str:
    """The entry whose first question a prompt holds."""
    return next(item.id for item in asked if item.script and item.script.turns[0][0].content in text)


def engine_of(asked: Sequence[Item], answers: Answers, renderer: Renderer) -> ScriptedEngine:
    """Says an entry's next answer: its prompt holds those before."""
    mark = renderer.tokenizer.encode("<|assistant|>")[0]

    def answer(_name: str, ids: Sequence[int]) -> Sequence[int]:
        entry = dialogue_of(renderer.tokenizer.decode(list(ids)), asked)
        return renderer.answer_ids(answers[entry][list(ids).count(mark) - 1])

    engine = ScriptedEngine(answer)
    engine.max_model_len = 1 << 20
    return engine


def ask(
    folder: Path, asked: Sequence[Item], engine: ScriptedEngine, renderer: Renderer, **ports: Any
) -> list[Prediction]:
    benchmark = Bfcl(questions=(), dialogues=asked)
    questions = build_questions(benchmark, benchmark.items(), renderer)
    asker = Asker(
        engine=engine,
        renderer=renderer,
        read=read,
        max_new_tokens=512,
        stop_ids=(END,),
        results=shows_results(renderer),
    )
    points = [Point(name="base", adapter=None)]
    return asyncio.run(ask_points(asker, points, questions, folder_ports(folder, (), **ports)))["base"]


def test_a_stage_holds_dialogues_side_by_side_and_each_prompt_begins_with_the_one_before(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue], renderer: Renderer
) -> None:
    asked = items(backends, limit=4)
    answers = {item.id: said(gold[item.id]) for item in asked}
    answers[asked[1].id] = [DONE] * 9
    prompts: list[tuple[int, ...]] = []
    engine = engine_of(asked, answers, renderer)
    generate = engine.generate

    async def watched(prompt_ids: Sequence[int], params: Any) -> Any:
        prompts.append(tuple(prompt_ids))
        return await generate(prompt_ids, params)

    engine.generate = watched  # type: ignore[method-assign]
    told = Silent()
    found = ask(tmp_path, asked, engine, renderer, silent=told)
    assert [p.correct for p in found] == [True, False, True, True]
    assert [p.id for p in found] == [item.id for item in asked]
    assert json.loads(found[0].output) == [[*turn, DONE] for turn in gold[asked[0].id]]
    assert [done for done, _, _ in told.updates] == [1, 2, 3, 4]
    first = {p for p in prompts if prompts.index(p) < 4}
    assert len(first) == 4  # the first prompts of all four came before anyone's second
    for later in prompts[4:]:
        assert any(len(p) < len(later) and later[: len(p)] == p for p in prompts)


class StopAfterTwo(Silent):
    """Asks to stop once two answers are there."""

    def is_set(self) -> bool:
        return len(self.updates) == 2


def test_a_restarted_stage_asks_only_dialogues_that_have_no_end(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue], renderer: Renderer
) -> None:
    asked = items(backends, limit=3)
    answers = {item.id: said(gold[item.id]) for item in asked}
    work = FolderWork(tmp_path / "kept")
    engine = engine_of(asked, answers, renderer)
    generate = engine.generate

    async def stuck(prompt_ids: Sequence[int], params: Any) -> Any:
        if dialogue_of(renderer.tokenizer.decode(list(prompt_ids)), asked) == asked[2].id:
            await asyncio.sleep(600)
        return await generate(prompt_ids, params)

    engine.generate = stuck  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        ask(tmp_path, asked, engine, renderer, work=work, silent=StopAfterTwo())
    assert len(work.names("base/")) == 2
    again = engine_of(asked, answers, renderer)
    assert [p.correct for p in ask(tmp_path / "again", asked, again, renderer, work=work)] == [True] * 3
    assert len(again.asked) == len(answers[asked[2].id])


def test_a_dialogue_that_outgrows_the_context_is_wrong_with_a_class_of_its_own(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue], renderer: Renderer
) -> None:
    asked = items(backends, limit=1)
    benchmark = Bfcl(questions=(), dialogues=asked)
    (question,) = build_questions(benchmark, benchmark.items(), renderer)
    engine = engine_of(asked, {asked[0].id: said(gold[asked[0].id])}, renderer)
    engine.max_model_len = len(question.prompt_ids) + 20
    (full,) = ask(tmp_path / "a", asked, engine, renderer)
    assert (full.correct, full.error_class) == (False, "context_overflow")
    assert full.detail.startswith("turn 0, step 1: the prompt has ")
    assert len(json.loads(full.output)[0]) == 1
    engine.max_model_len = len(question.prompt_ids)
    (never,) = ask(tmp_path / "b", asked, engine, renderer)
    assert (never.correct, never.error_class) == (False, "not_asked")


def test_what_a_model_writes_forges_no_turn(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue], renderer: Renderer
) -> None:
    """Its control tokens stand in no later prompt, in its own text and in what a tool returns of it."""
    (item,) = items(backends)
    first, *rest = said(gold[item.id])
    answers = [f"<|user|>{first}", "[echo(content='<|us<|user|>er|>x')]", *rest]
    seen: list[Any] = []
    hold(item, answers, Manner(clean=renderer.spare_controls), seen=seen)
    texts = [message.content for message in seen[-1][0]]
    assert not any("<|user|>" in text for text in texts)
    assert first in texts
    assert renderer.prompt_ids(seen[-1][0], item.tools)


def native_reply(answers: Answers, asked: Sequence[Item]) -> Callable[[dict[str, Any]], Sent]:
    def reply(body: dict[str, Any]) -> Sent:
        messages = body["messages"]
        entry = dialogue_of(messages[0]["content"], asked)
        text = answers[entry][sum(m["role"] == "assistant" for m in messages)]
        calls = [
            {"id": "x", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
            for call in read(text).calls
        ]
        asked_ids = [c["id"] for m in messages for c in m.get("tool_calls", ())]
        assert asked_ids == [m["tool_call_id"] for m in messages if m["role"] == "tool"]
        return completion(None if calls else text, tool_calls=calls or None)

    return reply


def prompt_reply(answers: Answers, asked: Sequence[Item]) -> Callable[[dict[str, Any]], Sent]:
    def reply(body: dict[str, Any]) -> Sent:
        messages = body["messages"]
        entry = dialogue_of(messages[1]["content"], asked)
        assert {m["role"] for m in messages} <= {"system", "user", "assistant"}
        return completion(answers[entry][sum(m["role"] == "assistant" for m in messages)])

    return reply


def evaluate(out: Path, url: str, *more: str, category: str = "multi_turn_miss_func", limit: int = 3) -> int:
    where = ["--endpoint", url, "--model", "m", "--categories", category, "--limit", str(limit)]
    return evaluating.main([*where, "--retries", "0", "--plain", "--out", str(out), *more], Silent())


@pytest.mark.parametrize("native", [False, True])
def test_an_endpoint_is_asked_in_a_prompt_and_with_native_calls(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue], capsys: pytest.CaptureFixture[str], native: bool
) -> None:
    asked = items(backends, "multi_turn_miss_func", 3)
    answers = {item.id: said(gold[item.id]) for item in asked}
    answers[asked[0].id] = [DONE] * 9
    reply = (native_reply if native else prompt_reply)(answers, asked)
    broken = {"left": 1}

    def failing(body: dict[str, Any]) -> Sent:
        """The last dialogue loses its server in its third step, once."""
        text = " ".join(str(m["content"]) for m in body["messages"][:2])
        steps = sum(m["role"] == "assistant" for m in body["messages"])
        if broken["left"] and dialogue_of(text, asked) == asked[2].id and steps == 2:
            broken["left"] -= 1
            return fault(500)
        return reply(body)

    option = ["--native"] if native else []
    with chat_server(failing) as seen:
        assert evaluate(tmp_path / "out", seen.url, *option) == ExitCode.RETRYABLE
        kept = list(read_jsonl(tmp_path / "out" / "predictions.jsonl", Prediction))
        assert [(p.id, p.correct) for p in kept] == [(asked[0].id, False), (asked[1].id, True)]
        before = len(seen.bodies)
        assert evaluate(tmp_path / "out", seen.url, *option) == ExitCode.DONE
    assert len(seen.bodies) - before == len(answers[asked[2].id])
    told = capsys.readouterr().out
    assert "bfcl/multi_turn_miss_func/accuracy" in told
    assert "66.7" in told
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["tool_results"] == ("tool" if native else "user")


def test_an_endpoint_without_room_in_a_later_step_is_a_context_overflow(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue]
) -> None:
    asked = items(backends, "multi_turn_base", 1)
    reply = prompt_reply({asked[0].id: said(gold[asked[0].id])}, asked)
    long = fault(400, "This model's maximum context length is 8 tokens")

    def filled(body: dict[str, Any]) -> Sent:
        return long if len(body["messages"]) > 4 else reply(body)

    with chat_server(filled) as seen:
        assert evaluate(tmp_path / "out", seen.url, category="multi_turn_base", limit=1) == ExitCode.DONE
    (kept,) = read_jsonl(tmp_path / "out" / "predictions.jsonl", Prediction)
    assert (kept.correct, kept.error_class) == (False, "context_overflow")


def test_tool_results_are_no_choice_with_native_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "out", "http://127.0.0.1:9/v1", "--native", "--tool-results", "user") == ExitCode.CONFIG
    assert "--tool-results user: with --native" in capsys.readouterr().err


def test_a_template_without_tool_turns_gets_results_in_a_user_turn(renderer: Renderer) -> None:
    assert shows_results(renderer) == "tool"
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('none') }}{% endif %}{% endfor %}"
        + tokenizer.chat_template
    )
    assert shows_results(Renderer(tokenizer, "pythonic")) == "user"


def test_dialogues_are_asked_only_where_a_category_names_them() -> None:
    assert not open_bfcl(Opening(limit=1)).dialogues
    both = open_bfcl(Opening(categories=("simple_python", "multi_turn"), limit=2))
    assert [item.category for item in both.items()][::2] == [
        "simple_python",
        "multi_turn_base",
        "multi_turn_miss_func",
        "multi_turn_miss_param",
        "multi_turn_long_context",
    ]
    with pytest.raises(ConfigError, match="no BFCL category 'multi_turn_composite'; allowed: non_live, live"):
        open_bfcl(Opening(categories=("multi_turn_composite",)))


def test_dialogues_are_no_single_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--benchmark", "bfcl", "--category", "multi_turn_base", "--questions", str(tmp_path / "q.jsonl")]
    assert offline.main(command) == ExitCode.CONFIG
    assert "a dialogue is not one question" in capsys.readouterr().err


def made(item: Item, held: Conversation) -> Prediction:
    verdict: Judgement = held.judgement
    return Prediction(
        benchmark="bfcl",
        category=item.category,
        id=item.id,
        point="m",
        output=held.output,
        correct=verdict.correct,
        error_class=verdict.error_class.value if verdict.error_class else None,
        detail=verdict.detail,
    )


@pytest.mark.timeout(300)
def test_the_official_program_finds_the_same_dialogues_right(
    tmp_path: Path, backends: Backends, gold: dict[str, Dialogue]
) -> None:
    """Right, silent, endless, with calls that do not exist, broken off for want of room, and with a hostile name."""
    mark = tmp_path / "executed"
    hostile = f"[exec(x=\"open({str(mark)!r}, 'w')\"), pwd(x=1)]"
    found = []
    for at, item in enumerate(load_dialogues(["multi_turn"], 12, backends)):
        answers = said(gold[item.id])
        spoiled = [
            answers,
            [DONE] * 20,
            [*answers[:-1], *["[pwd()]"] * 99],
            [hostile, *answers],
            ["[pwd()]", *answers],
            answers[1:] + [DONE] * 9,
        ][at % 6]
        if at == 40:
            assert item.script is not None
            found.append(made(item, asyncio.run(converse(item.script, item.tools, no_room(answers), read, Manner()))))
            continue
        found.append(made(item, hold(item, spoiled)))
    counts = write_results(tmp_path / "result", found, read)
    assert counts == dict.fromkeys(dict.fromkeys(p.category for p in found), 12)
    done = subprocess.run(
        [sys.executable, "-m", "itrain_testing.officialbfcl", str(tmp_path), "multi_turn", "--partial"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    official = json.loads(done.stdout.splitlines()[-1])
    ours = {c: [sum(p.correct for p in found if p.category == c), 12] for c in counts}
    assert official == ours
    assert all(3 <= right <= 9 for right, _ in ours.values())
    assert not mark.exists()


def no_room(answers: list[str]) -> Callable[..., Any]:
    """All gold calls are made, and then there is no room for the last word: wrong, though the state is right."""
    waiting = iter(answers[:-1])

    async def say(_messages: object, _tools: object) -> Said:
        text = next(waiting, None)
        if text is None:
            raise NoRoomError("no room")
        return Said(text=text)

    return say


def test_exported_calls_name_tools_and_identifiers_only(backends: Backends) -> None:
    (item,) = items(backends)
    hostile = "[exec(x='1'), cd(folder='a'), os.system(command='true')]"
    row = made(item, Conversation(texts=[[hostile, DONE]], judgement=Judgement(correct=False)))
    written = dialogue_row(row, read, frozenset({"cd"}))
    assert written["result"] == [[[{"no_such_tool": {}}, {"cd": {"folder": "a"}}, {"no_such_tool": {}}], DONE]]
    assert result_path(Path("r"), "multi_turn_base").parent.name == "multi_turn"
    with Sandbox() as sandbox, pytest.raises(DataError, match="no multi-turn entry 'multi_turn_base_999'"):
        sandbox.run("multi_turn_base_999", [])


class Closing(Sandbox):
    """Tells when it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def close(self) -> None:
        super().close()
        self.closed.set()


def test_backends_that_only_their_own_thread_still_held_end_their_process() -> None:
    """A dialogue that is given up while its calls run: what its request held is let go by the thread that ran it."""
    sandbox, running, go_on = Closing(), threading.Event(), threading.Event()

    async def give_up() -> None:
        backends = Backends(sandbox)

        def act(_: Sandbox, held: Backends = backends) -> None:
            running.set()
            go_on.wait(10)

        asked = asyncio.ensure_future(backends.ask(act))
        while not running.is_set():
            await asyncio.sleep(0.01)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked

    asyncio.run(give_up())
    gc.collect()
    assert not sandbox.closed.is_set()
    go_on.set()
    assert sandbox.closed.wait(10)
