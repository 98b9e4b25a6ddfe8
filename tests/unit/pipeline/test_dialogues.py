"""BFCL's multi-turn backends in a process of their own: gold is right, little else is, and nothing gets out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from itrain_contract.names import ExitCode
from itrain_pipeline.errors import DataError, RetryableError
from itrain_pipeline.evals.bfcl_sandbox import CATEGORIES, UNKNOWN, call_text
from itrain_pipeline.evals.dialogues import Sandbox, main, read_turns
from itrain_pipeline.records import Prediction, ToolCall, read_jsonl
from itrain_pipeline.toolcalls.serialise import serialise
from itrain_testing.bfclgold import Dialogue, gold_dialogues


@pytest.fixture(scope="module")
def gold() -> dict[str, Dialogue]:
    return gold_dialogues()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def right(sandbox: Sandbox, entry: str, dialogue: Dialogue) -> bool:
    return sandbox.judge(entry, read_turns(dialogue, "pythonic")).valid


def test_every_gold_dialogue_is_right_and_without_a_first_call_wrong(
    sandbox: Sandbox, gold: dict[str, Dialogue]
) -> None:
    """800 of 800 through our parser, right after a wrong answer to the same entry: nothing of that one is left."""
    assert Counter(name.rsplit("_", 1)[0] for name in gold) == {f"multi_turn_{name}": 200 for name in CATEGORIES}
    assert set(sandbox.entries) == set(gold)
    refused = [name for name, dialogue in gold.items() if not right(sandbox, name, shortened(dialogue))]
    accepted = [name for name, dialogue in gold.items() if right(sandbox, name, dialogue)]
    assert len(accepted) == 800
    assert len(refused) == 800


def shortened(dialogue: Dialogue) -> Dialogue:
    """Without the last call of the first turn that has one."""
    at = next(at for at, turn in enumerate(dialogue) if turn)
    (calls,) = read_turns([dialogue[at]], "pythonic")[0]
    rest = serialise(calls[:-1], "pythonic")
    return [*dialogue[:at], [rest] if rest else [], *dialogue[at + 1 :]]


def test_the_process_is_closed_off(sandbox: Sandbox) -> None:
    assert sandbox.network in ("none", "audited")
    script = (
        "import os, socket, subprocess, sys, pathlib\n"
        "from itrain_pipeline.evals.bfcl_sandbox import close_off\n"
        "close_off(1 << 30)\n"
        "tries = {'connect': lambda: socket.create_connection(('127.0.0.1', 9)), 'bind': lambda: socket.socket(),\n"
        "  'write': lambda: open('left-behind', 'w'), 'child': lambda: subprocess.run(['true']),\n"
        "  'shell': lambda: os.system('true'), 'fork': os.fork, 'delete': lambda: os.remove('there'),\n"
        "  'memory': lambda: bytearray(2 << 30)}\n"
        "for name, act in tries.items():\n"
        "    try: act(); print(name, 'done')\n"
        "    except (PermissionError, MemoryError) as error: print(name, type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    told = dict(line.split() for line in done.stdout.splitlines())
    assert told.pop("memory") == "MemoryError"
    assert set(told) == {"connect", "bind", "write", "child", "shell", "fork", "delete"}
    assert set(told.values()) == {"PermissionError"}


def test_model_text_is_never_evaluated(sandbox: Sandbox, gold: dict[str, Dialogue], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for step in (f"[cd(folder={code})]", f"[{code}]", f"[cd(folder={code!r})]", f"[cd(folder='a', **{{'b': {code}}})]"):
        dialogue = [[step] for _ in gold["multi_turn_base_0"]]
        assert not right(sandbox, "multi_turn_base_0", dialogue)
    assert not mark.exists()


def test_only_methods_and_literals_become_calls() -> None:
    known = frozenset({"cd", "mean"})
    assert call_text("cd", {"folder": "a'); x('"}, known) == "cd(folder=\"a'); x('\")"
    assert call_text("mean", {"numbers": [1, 2.5, None, True]}, known) == "mean(numbers=[1, 2.5, None, True])"
    for name, arguments in (
        ("__init__", {}),
        ("os.system", {"command": "true"}),
        ("cd", {"a b": 1}),
        ("cd", {"class": 1}),
        ("cd", {"x=1) or f(y": 1}),
        ("cd", {"n": float("inf")}),
        ("cd", ["a"]),
        (None, {}),
    ):
        assert call_text(name, arguments, known) == UNKNOWN


def test_an_entry_that_bfcl_does_not_have_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(DataError, match="no multi-turn entry 'multi_turn_base_999'"):
        sandbox.judge("multi_turn_base_999", [])


def test_another_number_of_turns_is_wrong(sandbox: Sandbox) -> None:
    assert sandbox.judge("multi_turn_base_0", []).error_type == "multi_turn:force_terminated"


SERVER = (
    "import json, os, sys, time\n"
    "print(json.dumps({'ready': ['hang', 'die', 'fine'], 'network': 'none'}), flush=True)\n"
    "for line in sys.stdin:\n"
    "    name = json.loads(line)['id']\n"
    "    if name == 'hang': time.sleep(600)\n"
    "    if name == 'die': os._exit(7)\n"
    "    print(json.dumps({'valid': True, 'error_type': '', 'message': str(os.getpid())}), flush=True)\n"
)


def test_a_dialogue_that_hangs_or_kills_the_process_is_wrong_and_the_next_has_a_new_one() -> None:
    with Sandbox(seconds=1.0, command=[sys.executable, "-c", SERVER]) as served:
        first = served.judge("fine", [])
        hung = served.judge("hang", [])
        second = served.judge("fine", [])
        died = served.judge("die", [])
        third = served.judge("fine", [])
    assert (hung.valid, hung.error_type, hung.message) == (False, "sandbox:time_limit", "more than 1 s")
    assert (died.valid, died.error_type, died.message) == (False, "sandbox:died", "exit code 7")
    assert first.valid
    assert second.valid
    assert third.valid
    assert len({first.message, second.message, third.message}) == 3


def test_a_process_that_does_not_start_is_tried_again_later() -> None:
    with pytest.raises(RetryableError, match="did not start"), Sandbox(command=[sys.executable, "-c", ""]):
        pass


def test_steps_are_read_as_text_or_as_tool_calls() -> None:
    call = ToolCall(name="cd", arguments={"folder": "a"})
    assert read_turns([["[cd(folder='a')]", "done"], [[{"cd": '{"folder": "a"}'}]], []], "pythonic") == [
        [[call]], [[call]], []
    ]  # fmt: skip
    assert read_turns([[[{"cd": "{broken"}]]], "pythonic") == [[]]
    assert len(read_turns([["[cd(folder='a')]"] * 30], "pythonic")[0]) == 20
    for wrong in (None, ["[f()]"], [[7]], [[[{"a": "{}", "b": "{}"}]]]):
        with pytest.raises(DataError):
            read_turns(wrong, "pythonic")


def test_a_result_file_is_judged_and_counted(
    tmp_path: Path, gold: dict[str, Dialogue], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["multi_turn_base_0", "multi_turn_base_1", "multi_turn_long_context_0"]
    rows = [{"id": name, "result": gold[name]} for name in names]
    rows[1]["result"] = [[] for _ in gold[names[1]]]
    results, out = tmp_path / "results.json", tmp_path / "judged.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--results", str(results), "--out", str(out)]) == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["bfcl/multi_turn_base/accuracy"], told["bfcl/multi_turn_base/n"]) == (0.5, 2)
    judged = list(read_jsonl(out, Prediction))
    assert [(row.id, row.correct) for row in judged] == [(name, name != names[1]) for name in names]
    assert judged[1].detail.startswith("multi_turn:empty_turn_model_response: ")
    results.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + "\n")
    assert main(["--results", str(results), "--out", str(out)]) == ExitCode.DATA
    assert "row 2: expected an id that was not there before" in capsys.readouterr().err
