"""What a point is asked, and how an answer is judged: the dev set and BFCL under one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from itrain_pipeline.errors import DataError
from itrain_pipeline.evals.bfcl import Judgement, judge
from itrain_pipeline.evals.bfcl_data import BfclItem
from itrain_pipeline.evals.errors import ErrorClass, classify, exact_gold
from itrain_pipeline.records import Example, Message, Prediction
from itrain_pipeline.toolcalls.compare import exact_match
from itrain_pipeline.toolcalls.parse import ParseResult

ReadAnswer = Callable[[str], ParseResult]
"""Output text -> what our parser reads in it."""


class PromptRenderer(Protocol):
    """The part of `data.rendering.Renderer` that questions need."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item. With `obstacle` it cannot be asked: it is counted as wrong, with that reason."""

    benchmark: str
    category: str
    id: str
    prompt_ids: tuple[int, ...]
    judge: Callable[[ParseResult], Judgement]
    obstacle: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.benchmark, self.category, self.id


def dev_questions(examples: Iterable[Example]) -> list[Question]:
    """The dev set as `prepare` rendered it, in the categories `call` and `no_call`."""
    return [
        Question(
            benchmark="dev",
            category="call" if example.has_call else "no_call",
            id=example.id,
            prompt_ids=example.prompt_ids,
            judge=_dev_judge(example),
        )
        for example in examples
    ]


def bfcl_questions(items: Iterable[BfclItem], renderer: PromptRenderer) -> list[Question]:
    """BFCL items in the run's own rendering; what cannot be rendered keeps its place with an obstacle."""
    questions = []
    for item in items:
        prompt_ids: tuple[int, ...] = ()
        obstacle = ""
        try:
            prompt_ids = renderer.prompt_ids(item.messages, item.tools)
        except DataError as error:
            obstacle = str(error)
        questions.append(
            Question(
                benchmark="bfcl",
                category=item.category,
                id=item.id,
                prompt_ids=prompt_ids,
                judge=_bfcl_judge(item),
                obstacle=obstacle,
            )
        )
    return questions


def judge_dev(example: Example, answer: ParseResult) -> Judgement:
    """Right with exactly the gold calls in any order, each name and value equal; without gold calls, right iff none.

    An unreadable call is no call and no right answer: a format error in either category.
    """
    if answer.error is None and exact_match(answer.calls, example.calls):
        return Judgement(correct=True)
    gold = exact_gold(example.calls, example.tools)
    first = classify(answer.calls, gold, well_formed=answer.error is None)[0]
    where = ".".join(part for part in (first.tool, first.parameter) if part)
    detail = ": ".join(part for part in (where, first.detail) if part)
    return Judgement(correct=False, error_class=first.error_class, detail=detail)


def predict(question: Question, point: str, text: str, read: ReadAnswer, *, note: str = "") -> Prediction:
    """The judged record of one output; `note` is put before the detail (`cut at 512 tokens`)."""
    answer = read(text)
    return _prediction(question, point, text, question.judge(answer), note, answer.error or "")


def not_asked(question: Question, point: str, reason: str) -> Prediction:
    """A question that could not be asked: wrong, with the reason."""
    judgement = Judgement(correct=False, error_class=ErrorClass.NOT_ASKED, detail=reason)
    return _prediction(question, point, "", judgement)


def _prediction(question: Question, point: str, text: str, judgement: Judgement, *notes: str) -> Prediction:
    return Prediction(
        benchmark=question.benchmark,
        category=question.category,
        id=question.id,
        point=point,
        output=_writable(text),
        correct=judgement.correct,
        error_class=judgement.error_class.value if judgement.error_class else None,
        detail=_writable("; ".join(part for part in (*notes, judgement.detail) if part)),
    )


def _writable(text: str) -> str:
    """Text that UTF-8 can hold: a half surrogate pair, which a model can write as an escape, becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _dev_judge(example: Example) -> Callable[[ParseResult], Judgement]:
    return lambda answer: judge_dev(example, answer)


def _bfcl_judge(item: BfclItem) -> Callable[[ParseResult], Judgement]:
    return lambda answer: judge(item, answer.calls, well_formed=answer.error is None)
