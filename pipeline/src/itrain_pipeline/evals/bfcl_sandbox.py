"""The process in which BFCL's multi-turn backends run: `python -m itrain_pipeline.evals.bfcl_sandbox`.

The official executor evaluates call texts. Here such a text is only ever made from a whitelisted method's name and
literals, by our own serialiser, and the process has no network, writes no file, starts no process, and has a bound on
memory. One JSON request a line on standard input, one verdict or a step's results a line on standard output;
`dialogues.Sandbox` keeps the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import json
import keyword
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from itrain_pipeline.evals.bfcl import official
from itrain_pipeline.toolcalls.serialise import python_literal

CATEGORIES: Final = ("base", "miss_func", "miss_param", "long_context")
MEMORY_BYTES: Final = 2 << 30
CPU_SECONDS: Final = 3600
UNKNOWN: Final = "'no such tool'"
"""What stands for a call that cannot be made: a literal, whose value no gold result has."""
RESULT_CHARACTERS: Final = 1 << 17
"""Of one call's result: more than any context takes. Longer ones are cut."""
FORBIDDEN: Final = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill", "shutil.",
    "ctypes.dlopen", "pty.", "urllib.",
)  # fmt: skip
"""Audit events (by their beginning) that nothing in here has a reason for."""

_EVALUATOR: Final = "bfcl_eval.eval_checker.multi_turn_eval"
_NEW_USER, _NEW_NET, _PARENT_DEATH_SIGNAL, _KILL = 0x10000000, 0x40000000, 1, 9


@dataclass
class Backends:
    """The official entries, gold and checker, loaded before the process is closed off."""

    entries: Mapping[str, dict[str, Any]]
    gold: Mapping[str, list[list[str]]]
    check: Callable[..., dict[str, Any]]
    execute: Callable[..., tuple[list[str], dict[str, Any]]]
    instances: dict[str, Any]
    """The executor's module globals, where it keeps its backends under the model's name."""
    methods: Mapping[str, frozenset[str]]
    """Public methods by class: what a call may name."""
    calls: int = field(default=0)

    def judge(self, entry_id: str, turns: Sequence[Sequence[Sequence[Sequence[Any]]]]) -> dict[str, Any]:
        """The official verdict on `turns[turn][step][call] = (name, arguments)`.

        A name never used before for each call: the backends of an earlier answer would still be there.
        """
        entry, gold = self.entries[entry_id], self.gold[entry_id]
        if len(turns) != len(gold):
            return _verdict(False, "multi_turn:force_terminated", f"{len(turns)} turns instead of {len(gold)}")
        known = self._known(entry)
        texts = [[[call_text(name, arguments, known) for name, arguments in step] for step in turn] for turn in turns]
        with self._fresh() as model:
            found = self.check(texts, gold, entry, entry_id.rsplit("_", 1)[0], model)
        return _verdict(bool(found["valid"]), str(found.get("error_type", "")), str(found.get("error_message", "")))

    def run(self, entry_id: str, steps: Sequence[Sequence[Sequence[Any]]]) -> list[str]:
        """What the calls of the last step return to the model, all steps run from the entry's beginning."""
        entry = self.entries[entry_id]
        known = self._known(entry)
        results: list[str] = []
        with self._fresh() as model:
            for step in steps:
                texts = [call_text(name, arguments, known) for name, arguments in step]
                results, _ = self.execute(
                    texts,
                    entry["initial_config"],
                    entry["involved_classes"],
                    model,
                    entry_id,
                    long_context="long_context" in entry_id,
                )
                results = [
                    refusal(name, known) if text == UNKNOWN else result
                    for text, (name, _), result in zip(texts, step, results, strict=True)
                ]
        return [result[:RESULT_CHARACTERS] for result in results]

    def _known(self, entry: Mapping[str, Any]) -> frozenset[str]:
        return frozenset().union(*(self.methods[name] for name in entry["involved_classes"]))

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[str]:
        """A model's name never used before, whose backends are dropped at the end."""
        self.calls += 1
        model = f"itrain{self.calls}x"
        try:
            yield model
        finally:
            for name in [name for name in self.instances if name.startswith(model)]:
                del self.instances[name]


def refusal(name: object, known: frozenset[str]) -> str:
    """What the model is told of a call that cannot be made, in the official executor's words."""
    if isinstance(name, str) and name in known:
        return "Error during execution: invalid syntax"
    return f"Error during execution: name {str(name).partition('.')[0]!r} is not defined"


def call_text(name: object, arguments: object, known: frozenset[str]) -> str:
    """`name(key=literal, …)`, or the literal UNKNOWN for a name or parameter that cannot be called."""
    if not isinstance(name, str) or name not in known or not isinstance(arguments, dict):
        return UNKNOWN
    if not all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in arguments):
        return UNKNOWN
    try:
        return f"{name}({', '.join(f'{key}={python_literal(value)}' for key, value in arguments.items())})"
    except ValueError:
        return UNKNOWN


def load_backends() -> Backends:
    package = official()
    checker = importlib.import_module(f"{_EVALUATOR}.multi_turn_checker")
    utils = importlib.import_module(f"{_EVALUATOR}.multi_turn_utils")
    paths: Mapping[str, str] = utils.CLASS_FILE_PATH_MAPPING
    entries = [e for c in CATEGORIES for e in package.load_entries(f"multi_turn_{c}")]
    answers = [a for c in CATEGORIES for a in package.load_answers(f"multi_turn_{c}")]
    involved = sorted({name for entry in entries for name in entry["involved_classes"]})
    classes = {name: getattr(importlib.import_module(paths[name]), name) for name in involved}
    return Backends(
        entries={entry["id"]: entry for entry in entries},
        gold={answer["id"]: answer["ground_truth"] for answer in answers},
        check=checker.multi_turn_checker,
        execute=utils.execute_multi_turn_func_call,
        instances=vars(utils),
        methods={
            name: frozenset(m for m, _ in inspect.getmembers(cls, inspect.isfunction) if not m.startswith("_"))
            for name, cls in classes.items()
        },
    )


def close_off(memory_bytes: int = MEMORY_BYTES) -> bool:
    """Bound this process for good. True where it has a network namespace of its own, with nothing in it; where the
    kernel refuses one, the audit hook alone keeps it from sockets."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PARENT_DEATH_SIGNAL, _KILL)
    alone = libc.unshare(_NEW_NET) == 0 or libc.unshare(_NEW_USER | _NEW_NET) == 0
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    sys.addaudithook(_refuse)
    return alone


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event.startswith(FORBIDDEN) or (event == "open" and isinstance(arguments[2], int) and arguments[2] & writes):
        raise PermissionError(f"{event} is not allowed here")


def _verdict(valid: bool, error_type: str = "", message: str = "") -> dict[str, Any]:
    return {"valid": valid, "error_type": error_type, "message": message[:400]}


def main() -> None:
    """Serve until standard input ends. What the backends print goes nowhere: answers have a channel of their own."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    backends = load_backends()
    alone = close_off()
    answers.write(json.dumps({"ready": sorted(backends.entries), "network": "none" if alone else "audited"}) + "\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        if "steps" in request:
            told: dict[str, Any] = {"results": backends.run(request["id"], request["steps"])}
        else:
            told = backends.judge(request["id"], request["turns"])
        answers.write(json.dumps(told) + "\n")
        answers.flush()
    os._exit(0)  # the temporary folder is the parent's to remove


if __name__ == "__main__":
    main()
