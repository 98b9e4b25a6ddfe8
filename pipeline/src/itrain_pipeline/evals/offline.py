"""Any benchmark without a run: its questions as a file, and the verdicts on answers that were made elsewhere.

`python -m itrain_pipeline.evals.offline --benchmark NAME [--uri URI] --questions FILE` writes the questions;
with `--answers FILE --out FILE` it judges answers, one `{"category", "id", "output"}` a line, every question once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itrain_contract.names import ExitCode
from itrain_pipeline.data.sources import read_file
from itrain_pipeline.errors import ConfigError, DataError, StageError
from itrain_pipeline.evals.benchmark import Benchmark, Opening, open_benchmark
from itrain_pipeline.evals.metrics import flat_metrics, score_groups
from itrain_pipeline.evals.questions import build_questions, predict
from itrain_pipeline.files import atomic_writer
from itrain_pipeline.records import Message, Prediction, write_jsonl
from itrain_pipeline.toolcalls.parse import parse


class _Unasked:
    """Nothing is asked here, so nothing is rendered."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        return ()


def write_questions(benchmark: Benchmark, path: Path) -> int:
    """(category, id, messages, tools) of every item as JSON lines; the gold stays here. Returns their number."""
    items = benchmark.items()
    with atomic_writer(path) as out:
        for item in items:
            row = {
                "category": item.category,
                "id": item.id,
                "messages": [dataclasses.asdict(message) for message in item.messages],
                "tools": item.tools,
            }
            out.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return len(items)


def judge_answers(benchmark: Benchmark, answers: Iterable[object], *, call_format: str, point: str) -> list[Prediction]:
    """One judged record a question, in their order.

    Raises DataError for an answer of another shape, one to no question, a second one, and questions without one.
    """
    questions = {question.key[1:]: question for question in build_questions(benchmark, benchmark.items(), _Unasked())}
    outputs: dict[tuple[str, str], str] = {}
    for number, row in enumerate(answers, 1):
        texts = [row.get(key) for key in ("category", "id", "output")] if isinstance(row, Mapping) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"answer {number}: expected category, id and output, each a text")
        category, name, output = map(str, texts)
        if (category, name) not in questions or (category, name) in outputs:
            which = "a second time" if (category, name) in outputs else "but there is no such question"
            raise DataError(f"answer {number} is to {category}/{name}, {which}")
        outputs[category, name] = output
    missing = [key for key in questions if key not in outputs]
    if missing:
        raise DataError(f"{len(missing)} questions have no answer, the first is {'/'.join(missing[0])}")
    return [
        predict(question, point, outputs[key], lambda text: parse(text, call_format))
        for key, question in questions.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        told = _act(arguments)
    except StageError as error:
        sys.stderr.write(f"itrain: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(told) + "\n")
    return ExitCode.DONE


def _read(uri: str) -> list[object]:
    path = Path(uri.removeprefix("file://"))
    if not path.is_file():
        raise DataError(f"{uri}: there is no such file on this machine")
    return list(read_file(path, uri))


def _act(arguments: argparse.Namespace) -> dict[str, float]:
    opening = Opening(
        categories=tuple(arguments.category or ()), limit=arguments.limit, uri=arguments.uri or "", read=_read
    )
    benchmark = open_benchmark(arguments.benchmark, opening)
    if any(item.script is not None for item in benchmark.items()):
        raise ConfigError("a dialogue is not one question: python -m itrain_pipeline.evals.dialogues judges BFCL's")
    if arguments.questions:
        return {"questions": write_questions(benchmark, arguments.questions)}
    rows = _read(str(arguments.answers))
    judged = judge_answers(benchmark, rows, call_format=arguments.call_format, point=arguments.answers.stem)
    write_jsonl(arguments.out, judged)
    return flat_metrics(score_groups(judged, {benchmark.name: benchmark.groups}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m itrain_pipeline.evals.offline", description=__doc__)
    parser.add_argument("--benchmark", required=True, help="a name, or package.module:factory")
    parser.add_argument("--uri", help="the folder or file of this machine in which the benchmark's data lie")
    parser.add_argument("--category", action="append", help="one of its categories; may be given again")
    parser.add_argument("--limit", type=int, default=0, help="items per category, the first ones; 0 means all")
    parser.add_argument("--call-format", choices=("pythonic", "hermes", "llama"), default="pythonic")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--questions", type=Path, help="write the questions to this file")
    wanted.add_argument("--answers", type=Path, help="judge the answers in this file")
    parser.add_argument("--out", type=Path, default=Path("predictions.jsonl"), help="the judged answers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
