"""An evaluation without a run: what is asked, kept, refused and told, whatever the endpoint does."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from itrain_contract.names import ExitCode
from itrain_pipeline.evals.asking import Failure
from itrain_pipeline.evals.endpoint import Kind
from itrain_pipeline.evals.evaluateview import Meter, Tally, summary_lines
from itrain_pipeline.evaluating import __main__ as evaluating
from itrain_pipeline.records import Prediction, read_jsonl
from itrain_testing.chatserver import Said, chat_server, completion, fault
from itrain_testing.evaluation import RIGHT, TOOL
from itrain_testing.stageports import Silent
from itrain_testing.tiny_model import write_random_adapter, write_tiny_model

Reply = Callable[[dict[str, Any]], Said]
SECRET = "sk-a-very-secret-key"
CALLS, NO_CALLS = 12, 3


def main(argv: list[str]) -> int:
    return evaluating.main(argv, Silent())


def write_dev(folder: Path, *, broken: int = 0) -> Path:
    """Rows in OpenAI's shape; question N asks for N days."""
    rows: list[dict[str, Any]] = []
    for at in range(CALLS + NO_CALLS):
        arguments = json.dumps({"city": "Rome", "days": at})
        call = [{"type": "function", "function": {"name": TOOL["name"], "arguments": arguments}}]
        answer = {"role": "assistant", "content": None, "tool_calls": call}
        if at >= CALLS:
            answer = {"role": "assistant", "content": "Which city?"}
        asked = {"role": "user", "content": f"Weather in Rome for {at} days?"}
        tool = {**TOOL, "description": "Weather"}
        rows.append({"tools": [{"type": "function", "function": tool}], "messages": [asked, answer]})
    rows += [{"messages": []}] * broken
    path = folder / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def days(body: dict[str, Any]) -> int:
    found = re.search(r"for (\d+) days", body["messages"][-1]["content"])
    assert found
    return int(found.group(1))


def right(body: dict[str, Any]) -> Said:
    """Every call right, every question without one answered with a call."""
    return completion(RIGHT.replace("days=3", f"days={days(body)}"))


def evaluate(folder: Path, url: str, *more: str, dev: Path | None = None) -> int:
    data = ["--benchmark", "dev", "--data", f"dev={dev or write_dev(folder)}", "--dev-format", "messages"]
    return main(["--endpoint", url, "--model", "m", "--out", str(folder / "out"), *data, "--retries", "0", *more])


def answers(folder: Path) -> list[Prediction]:
    return list(read_jsonl(folder / "out" / "predictions.jsonl", Prediction))


def test_every_item_is_asked_judged_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(right) as seen:
        assert evaluate(tmp_path, seen.url) == ExitCode.DONE
    told = capsys.readouterr()
    assert len(seen.bodies) == CALLS + NO_CALLS
    kept = answers(tmp_path)
    assert [p.correct for p in kept] == [True] * CALLS + [False] * NO_CALLS
    assert {p.error_class for p in kept} == {None, "hallucinated_call"}
    assert re.search(r"dev/call_accuracy +100\.0 +0\.0 +12 +0\.0", told.out)
    assert re.search(r"dev/accuracy +80\.0 +10\.3 +15 +20\.0", told.out)  # √(0.8·0.2/15) = 0.1033
    assert "hallucinated_call 3" in told.out
    assert told.err.splitlines()[-1] == "evaluate 15/15 80.0 % right"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["dev/accuracy"] == 0.8
    assert (summary["questions"], summary["answered"], summary["failed"]) == (15, 15, {})
    assert summary["counters"] == {"prompt_tokens": 150, "completion_tokens": 30}


def test_figures_in_json_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(right) as seen:
        evaluate(tmp_path, seen.url, "--output", "json")
    assert json.loads(capsys.readouterr().out)["metrics"]["dev/call_n"] == CALLS


def test_native_calls_are_judged_as_the_same_calls(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Said:
        name = body["tools"][0]["function"]["name"]
        assert name == "get_weather"
        arguments = json.dumps({"days": days(body), "city": "Rome"})
        return completion(None, tool_calls=[{"id": "1", "function": {"name": name, "arguments": arguments}}])

    with chat_server(reply) as seen:
        assert evaluate(tmp_path, seen.url, "--native") == ExitCode.DONE
    assert sum(p.correct for p in answers(tmp_path)) == CALLS


@pytest.mark.parametrize(
    ("said", "code", "kind"),
    [(fault(500), ExitCode.RETRYABLE, "server_error"), (fault(400, "bad schema"), ExitCode.PERMANENT, "refused")],
)
def test_items_without_an_answer_are_told_and_in_no_figure_and_the_same_command_asks_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: Said, code: ExitCode, kind: str
) -> None:
    with chat_server(lambda body: said if days(body) in (2, 5) else right(body)) as seen:
        assert evaluate(tmp_path, seen.url) == code
        told = capsys.readouterr().out
        assert f"no answer  2 items ({kind} 2): in none of the figures above" in told
        assert re.search(r"dev/call_accuracy +100\.0 +0\.0 +10 ", told)
        assert len(answers(tmp_path)) == 13
        failed = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
        assert [(f["category"], f["kind"]) for f in failed] == [("call", kind)] * 2
        asked = len(seen.bodies)
        said = right({"messages": [{"content": "for 2 days"}]})
        assert evaluate(tmp_path, seen.url) == ExitCode.DONE
    assert sorted(map(days, seen.bodies[asked:])) == [2, 5]
    assert not (tmp_path / "out" / "failures.jsonl").exists()
    assert [p.id for p in answers(tmp_path)] == sorted(p.id for p in answers(tmp_path))
    assert len(answers(tmp_path)) == 15


def test_a_prompt_without_room_counts_as_wrong_with_its_reason(tmp_path: Path) -> None:
    long = fault(400, "This model's maximum context length is 8 tokens")
    with chat_server(lambda body: long if days(body) == 0 else right(body)) as seen:
        assert evaluate(tmp_path, seen.url) == ExitCode.DONE
    assert [p.error_class for p in answers(tmp_path)].count("not_asked") == 1


def test_an_endpoint_that_is_away_ends_it_and_what_was_answered_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(lambda body: right(body) if days(body) < 3 else fault(503)) as seen:
        code = evaluate(tmp_path, seen.url, "--concurrency", "1", dev=write_dev(tmp_path))
    assert code == ExitCode.RETRYABLE
    assert "10 items in a row got no answer, the last one server_error: 503" in capsys.readouterr().err
    assert len(answers(tmp_path)) == 3


def test_a_finished_folder_asks_nothing_and_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(right) as seen:
        evaluate(tmp_path, seen.url)
        first = capsys.readouterr().out
        before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
        evaluate(tmp_path, seen.url)
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before
    assert len(seen.bodies) == 15


def test_a_line_that_a_killed_process_left_half_written_is_asked_again(tmp_path: Path) -> None:
    with chat_server(right) as seen:
        evaluate(tmp_path, seen.url)
        path = tmp_path / "out" / "predictions.jsonl"
        path.write_bytes(path.read_bytes()[:-30])
        assert evaluate(tmp_path, seen.url) == ExitCode.DONE
    assert len(seen.bodies) == 16
    assert len(answers(tmp_path)) == 15


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "other"], "model 'm', asked for is 'other'"),
        (["--native"], "mode 'prompt', asked for is 'native'"),
        (["--max-new-tokens", "9"], "max_new_tokens 512, asked for is 9"),
        (["--call-format", "hermes"], "'pythonic', asked for is 'hermes'|rendering|questions"),
        (["--limit", "2"], "limit 0, asked for is 2"),
    ],
)
def test_a_folder_of_another_model_or_other_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    with chat_server(right) as seen:
        evaluate(tmp_path, seen.url)
        before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
        capsys.readouterr()
        assert evaluate(tmp_path, seen.url, *more) == ExitCode.CONFIG
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert re.search(words, told[0])
    assert "give another folder" in told[0]
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_other_questions_of_the_same_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(right) as seen:
        dev = write_dev(tmp_path)
        evaluate(tmp_path, seen.url, dev=dev)
        dev.write_text(dev.read_text().replace("Weather in Rome for 1 ", "Weather in Oslo for 1 "))
        assert evaluate(tmp_path, seen.url, dev=dev) == ExitCode.CONFIG
    assert "questions_sha256" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    with chat_server(right) as seen:
        assert evaluate(tmp_path, seen.url) == ExitCode.CONFIG
    assert capsys.readouterr().err == f"itrain: {tmp_path / 'out'}: File exists\n"
    assert seen.bodies == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as held, chat_server(right) as seen:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert evaluate(tmp_path, seen.url) == ExitCode.RETRYABLE
    assert "another evaluation works" in capsys.readouterr().err
    assert seen.bodies == []


def test_answers_that_cannot_be_read_are_named_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(right) as seen:
        evaluate(tmp_path, seen.url)
        path = tmp_path / "out" / "predictions.jsonl"
        path.write_text(path.read_text().replace('"benchmark":"dev"', '"bench":"dev"', 1))
        assert evaluate(tmp_path, seen.url) == ExitCode.DATA
    assert "predictions.jsonl line 1 is no answer" in capsys.readouterr().err


def test_the_key_comes_from_the_environment_and_stays_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with chat_server(lambda body: fault(400, SECRET) if days(body) == 1 else right(body)) as seen:
        evaluate(tmp_path, seen.url, "--api-key-env", "MY_KEY")
    assert set(seen.keys) == {f"Bearer {SECRET}"}
    told = capsys.readouterr()
    files = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert not any(SECRET in text for text in (told.out, told.err, *files))
    monkeypatch.setenv("MY_KEY", "schlüssel")
    assert evaluate(tmp_path, seen.url, "--api-key-env", "MY_KEY") == ExitCode.CONFIG
    assert "printable ASCII" in capsys.readouterr().err
    monkeypatch.delenv("MY_KEY")
    assert evaluate(tmp_path, seen.url, "--api-key-env", "MY_KEY") == ExitCode.CONFIG
    assert "MY_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give a model folder, or --endpoint"),
        (["model", "--endpoint", "http://x", "--model", "m"], "one of them"),
        (["--endpoint", "http://x"], "needs --model NAME"),
        (["model", "--native"], "--native is for --endpoint only"),
        (["--endpoint", "http://x", "--model", "m", "--adapter", "a"], "--adapter is for a model folder only"),
        (["model", "--concurrency", "0"], "--concurrency: got 0"),
        (["model", "--benchmark", "dev"], "--data dev=URI"),
        (["model", "--benchmark", "dev", "--export-bfcl", "x"], "--export-bfcl needs --benchmark bfcl"),
        (["model", "--data", "x"], "--data: got 'x', expected NAME=URI"),
        (["model", "--data", "apibank=x"], "--data names 'apibank', which is no --benchmark"),
        (["model", "--categories", "nonsense"], "--categories: no BFCL category 'nonsense'"),
        (["model", "--categories", "irrelevance", "--categories", "multiple"], "'bfcl' has two values"),
        (["model", "--benchmark", "nonsense"], "benchmark 'nonsense': known here are"),
        (["/nowhere", "--limit", "1"], "there is no such folder"),
        (["", "--limit", "1"], "MODEL ''"),
        (["--endpoint", "localhost:1", "--model", "m", "--limit", "1"], "expected a URL"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main([*options, "--out", str(tmp_path / "out")]) == ExitCode.CONFIG
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert words in told[0]
    assert not (tmp_path / "out").exists()


def test_a_dev_set_with_too_many_bad_rows_is_refused_and_few_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(right) as seen:
        assert evaluate(tmp_path, seen.url, dev=write_dev(tmp_path, broken=2)) == ExitCode.DATA
        assert "2 of 17 rows are of no use as messages: row 15" in capsys.readouterr().err
    assert seen.bodies == []


def test_ctrl_c_keeps_what_was_answered_and_the_same_command_goes_on(tmp_path: Path) -> None:
    slow = [True]

    def reply(body: dict[str, Any]) -> Said:
        return Said(hang_s=60) if slow[0] and days(body) > 3 else right(body)

    with chat_server(reply) as seen:
        data = ["--benchmark", "dev", "--data", f"dev={write_dev(tmp_path)}", "--dev-format", "messages"]
        command = [sys.executable, "-m", "itrain_pipeline.evaluating", "--endpoint", seen.url, "--model", "m"]
        command += ["--out", str(tmp_path / "out"), *data]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        path = tmp_path / "out" / "predictions.jsonl"
        deadline = time.monotonic() + 120
        while not (path.is_file() and path.read_bytes().count(b"\n") >= 4):
            assert time.monotonic() < deadline, running.poll()
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
        assert running.returncode == ExitCode.INTERRUPTED, told
        assert told.splitlines()[-1].startswith("itrain: stopped; every answer so far is saved")
        slow[0] = False
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4 of 15 answers are there already" in done.stderr
    assert len(answers(tmp_path)) == 15


def test_a_model_folder_and_its_adapter_answer_on_our_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_model(tmp_path / "model", context=2048)
    adapter = write_random_adapter(model, tmp_path / "adapter", seed=1, rank=4)
    data = ["--benchmark", "dev", "--data", f"dev={write_dev(tmp_path)}", "--dev-format", "messages"]
    command = [str(model), "--engine", "transformers", "--precision", "fp32", "--max-new-tokens", "4", *data]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == ExitCode.DONE
    assert [p.point for p in answers(tmp_path)] == ["base"] * 15
    capsys.readouterr()
    assert main([*command, "--out", str(out), "--adapter", str(adapter)]) == ExitCode.CONFIG
    assert "holds answers with adapter None" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "other"), "--adapter", str(adapter)]) == ExitCode.DONE
    assert main([*command, "--out", str(out)]) == ExitCode.DONE


def test_an_engine_that_is_none_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["m", "--engine", "other", "--out", str(tmp_path / "out")]) == ExitCode.CONFIG
    assert "--engine: got 'other', allowed are auto, transformers, vllm and package" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def prediction(correct: bool) -> Prediction:
    return Prediction(benchmark="dev", category="call", id="1", point="m", output="", correct=correct)


def test_progress_is_a_line_now_and_then_where_nobody_watches() -> None:
    out, now = StringIO(), [0.0]
    with Meter(Tally(total=9), out, clock=lambda: now[0]) as meter:
        for second in range(9):
            now[0] = float(second)
            meter.add(prediction(second % 2 == 0))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/9", "6/9", "9/9"]


def test_progress_is_a_bar_on_a_terminal() -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Meter(Tally(total=2), out) as meter:
        meter.add(prediction(True))
        meter.add(Failure(benchmark="dev", category="call", id="2", kind=Kind.TIMEOUT, detail=""))
    assert "2/2" in out.getvalue()
    assert "100.0 % right, 1 failed" in out.getvalue()


def test_a_table_of_nothing_is_no_table() -> None:
    out = StringIO()
    failure = Failure(benchmark="dev", category="call", id="[x]", kind=Kind.TIMEOUT, detail="[bold]")
    summary_lines([], {}, [failure], out)
    assert "call/[x]: [bold]" in out.getvalue()
