"""BFCL's multi-turn answers, judged by its official backends in a process that can do nothing else.

`python -m itrain_pipeline.evals.dialogues --results FILE --out FILE` judges a result file in BFCL's own format
(`{"id", "result": [[step, …] per turn]}`, as `bfcl generate` writes it) and prints n, accuracy and standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from itrain_contract.names import ExitCode
from itrain_pipeline.data.sources import read_file
from itrain_pipeline.errors import DataError, RetryableError, StageError
from itrain_pipeline.evals.benchmark import Judgement
from itrain_pipeline.evals.conversing import MAX_STEPS
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.evals.metrics import flat_metrics, score_groups
from itrain_pipeline.records import Prediction, ToolCall, write_jsonl
from itrain_pipeline.toolcalls.parse import json_call, parse

Turns = Sequence[Sequence[Sequence[ToolCall]]]
"""[turn][step][call]."""

SECONDS = 20.0
"""For one dialogue; a gold one takes 2 ms."""
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`error_type` is BFCL's own, or `sandbox:time_limit` and `sandbox:died` where the process was ended."""

    valid: bool
    error_type: str = ""
    message: str = ""


class SandboxError(Exception):
    """The process hung (`time_limit`) or ended (`died`) over calls."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"sandbox:{kind}: {detail}")
        self.kind, self.detail = kind, detail


class Sandbox:
    """The judging process, started at the first need and again after one that was ended. A context manager."""

    def __init__(self, seconds: float = SECONDS, command: Sequence[str] = ()) -> None:
        self._seconds = seconds
        self._command = list(command) or [sys.executable, "-m", "itrain_pipeline.evals.bfcl_sandbox"]
        self._folder = tempfile.TemporaryDirectory(prefix="itrain-sandbox-")
        self._process: subprocess.Popen[str] | None = None
        self.entries: tuple[str, ...] = ()
        self.network = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def judge(self, entry_id: str, turns: Turns) -> Verdict:
        """The official verdict. A dialogue on which the process hangs or dies is wrong, and the next has a new one.

        Raises DataError for an entry that BFCL does not have.
        """
        try:
            told = self._told(entry_id, "turns", [[as_pairs(step) for step in turn] for turn in turns])
        except SandboxError as error:
            return Verdict(valid=False, error_type=f"sandbox:{error.kind}", message=error.detail)
        return Verdict(valid=told["valid"], error_type=told["error_type"], message=told["message"])

    def run(self, entry_id: str, turns: Turns) -> list[str]:
        """What the calls of the last step return to the model; all steps are run from the entry's beginning.

        Raises SandboxError where the process hangs or dies over it, DataError as `judge`.
        """
        results: list[str] = self._told(entry_id, "steps", [as_pairs(step) for turn in turns for step in turn])[
            "results"
        ]
        return results

    def close(self) -> None:
        self._end()
        self._folder.cleanup()

    def _told(self, entry_id: str, what: str, calls: Any) -> dict[str, Any]:
        """One request's answer. A process that dies is believed only when a second one does so too: the first may have
        used up its processor time on the dialogues before."""
        try:
            request = json.dumps({"id": entry_id, what: calls})
        except (ValueError, RecursionError) as error:  # a number or a depth that JSON cannot hold
            raise SandboxError("died", f"calls that cannot be sent: {error}") from error
        code = 0
        for _ in range(2):
            process = self._process or self._start()
            if entry_id not in self.entries:
                raise DataError(f"BFCL has no multi-turn entry {entry_id!r}")
            try:
                return self._ask(process, request, self._seconds)
            except TimeoutError:
                self._end()
                raise SandboxError("time_limit", f"more than {self._seconds:g} s") from None
            except (BrokenPipeError, EOFError):
                code = process.wait()
                self._end()
        raise SandboxError("died", f"exit code {code}")

    def _start(self) -> subprocess.Popen[str]:
        environ = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._folder.name,
            env={**environ, "TMPDIR": self._folder.name, "HOME": self._folder.name},
            text=True,
            encoding="utf-8",
        )
        try:
            told = self._ask(self._process, "", START_SECONDS)
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            self._end()
            raise RetryableError(f"the process for BFCL's multi-turn backends did not start: {error!r}") from error
        self.entries, self.network = tuple(told["ready"]), told["network"]
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[str], request: str, seconds: float) -> dict[str, Any]:
        """One line out, one line in. The process reads a whole request and writes an answer without computing between.

        Raises TimeoutError, EOFError where the process ended, BrokenPipeError where it had ended before.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        if request:
            process.stdin.write(request + "\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        line = process.stdout.readline()
        if not line:
            raise EOFError
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # a request that a dead process never read
                        stream.close()
            self._process = None


def as_pairs(step: Sequence[ToolCall]) -> list[list[Any]]:
    return [[call.name, call.arguments] for call in step]


_CLASSES: Mapping[str, ErrorClass] = {
    "multi_turn:force_terminated": ErrorClass.STEP_LIMIT,
    "multi_turn:empty_turn_model_response": ErrorClass.MISSED_CALL,
    "multi_turn:instance_state_mismatch": ErrorClass.STATE_MISMATCH,
    "multi_turn:execution_response_mismatch": ErrorClass.RESULT_MISMATCH,
    "sandbox:time_limit": ErrorClass.BACKEND_LIMIT,
    "sandbox:died": ErrorClass.BACKEND_LIMIT,
}


def judgement_of(verdict: Verdict, unreadable: frozenset[int] = frozenset()) -> Judgement:
    """A verdict in our own terms. `unreadable` are the turns that end in a call which cannot be read: where the first
    finding is that such a turn has no call, the class is `format`."""
    if verdict.valid:
        return Judgement(correct=True)
    error_class = _CLASSES.get(verdict.error_type)
    turn = re.search(r"for turn (\d+)", verdict.message)
    if error_class is ErrorClass.MISSED_CALL and turn and int(turn.group(1)) in unreadable:
        error_class = ErrorClass.FORMAT
    return Judgement(correct=False, error_class=error_class, detail=f"{verdict.error_type}: {verdict.message}")


def read_turns(result: object, call_format: str) -> list[list[list[ToolCall]]]:
    """BFCL's `result` of one dialogue. A step is a text, or `[{name: "<arguments as JSON>"}]` as tool-call models give
    it; a step without a readable call is none, as in the official runner.

    Raises DataError for another shape.
    """
    if not isinstance(result, list) or not all(isinstance(turn, list) for turn in result):
        raise DataError("result is no list of turns, each a list of steps")
    turns = []
    for turn in result:
        steps = [_read_step(step, call_format) for step in turn[:MAX_STEPS]]
        turns.append([step for step in steps if step])
    return turns


def _read_step(step: object, call_format: str) -> list[ToolCall]:
    if isinstance(step, str):
        return list(parse(step, call_format).calls)
    if isinstance(step, list) and all(isinstance(call, dict) and len(call) == 1 for call in step):
        named = [next(iter(call.items())) for call in step]
        try:
            return [json_call({"name": name, "arguments": arguments}) for name, arguments in named]
        except ValueError:  # arguments that are no JSON object: no readable call
            return []
    raise DataError(f"a step is a {type(step).__name__}, expected a text or a list of {{name: arguments}}")


def judge_results(rows: Iterable[object], sandbox: Sandbox, call_format: str, point: str) -> list[Prediction]:
    """One judged record a row. Raises DataError for a row of another shape or one that is there twice."""
    found: dict[str, Prediction] = {}
    for number, row in enumerate(rows, 1):
        name = row.get("id") if isinstance(row, Mapping) else None
        if not isinstance(row, Mapping) or not isinstance(name, str) or name in found:
            raise DataError(f"row {number}: expected an id that was not there before, found {name!r}")
        try:
            judgement = judgement_of(sandbox.judge(name, read_turns(row.get("result"), call_format)))
        except DataError as error:
            raise DataError(f"row {number} ({name}): {error}") from error
        found[name] = Prediction(
            benchmark="bfcl",
            category=name.rsplit("_", 1)[0],
            id=name,
            point=point,
            output=json.dumps(row.get("result"), ensure_ascii=False),
            correct=judgement.correct,
            error_class=judgement.error_class.value if judgement.error_class else None,
            detail=judgement.detail,
        )
    return list(found.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m itrain_pipeline.evals.dialogues", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="multi-turn results in BFCL's own format")
    parser.add_argument("--out", type=Path, required=True, help="the judged dialogues")
    parser.add_argument("--call-format", choices=("pythonic", "hermes", "llama"), default="pythonic")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.results.is_file():
            raise DataError(f"{arguments.results}: there is no such file on this machine")
        rows = list(read_file(arguments.results, arguments.results.name))
        with Sandbox() as sandbox:
            judged = judge_results(rows, sandbox, arguments.call_format, arguments.results.stem)
            told = {"network": sandbox.network}
    except StageError as error:
        sys.stderr.write(f"itrain: {error}\n")
        return error.exit_code
    write_jsonl(arguments.out, judged)
    sys.stdout.write(json.dumps({**flat_metrics(score_groups(judged)), **told}) + "\n")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
