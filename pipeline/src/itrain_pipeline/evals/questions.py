"""What a point is asked, and the record of one answer: every benchmark under one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from itrain_pipeline.errors import DataError, PermanentError, StageError
from itrain_pipeline.evals.benchmark import CATEGORY, Answer, Benchmark, Item, Judgement
from itrain_pipeline.evals.conversing import Manner, Say, converse
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.evals.scripts import Script
from itrain_pipeline.records import Message, Prediction
from itrain_pipeline.toolcalls.parse import ParseResult

ReadAnswer = Callable[[str], ParseResult]
"""Output text -> what our parser reads in it."""


class PromptRenderer(Protocol):
    """The part of `data.rendering.Renderer` that questions need."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """What a dialogue is held with."""

    script: Script
    tools: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One item. With `obstacle` it cannot be asked: it is counted as wrong, with that reason. Of a `dialogue`
    `prompt_ids` are the first prompt."""

    benchmark: str
    category: str
    id: str
    prompt_ids: tuple[int, ...]
    judge: Callable[[Answer], Judgement]
    obstacle: str = ""
    dialogue: Dialogue | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.benchmark, self.category, self.id


def build_questions(benchmark: Benchmark, items: Sequence[Item], renderer: PromptRenderer) -> list[Question]:
    """Items in the run's own rendering; what cannot be rendered keeps its place with an obstacle.

    Raises DataError for a category that can be no part of a metric's name.
    """
    questions = []
    for item in items:
        if not CATEGORY.fullmatch(item.category):
            raise DataError(f"benchmark {benchmark.name}: category {item.category!r}; allowed are a-z, 0-9 and _")
        prompt_ids, obstacle = item.prompt_ids, ""
        if not prompt_ids:
            try:
                prompt_ids = renderer.prompt_ids(item.messages, item.tools)
            except DataError as error:
                obstacle = str(error)
        questions.append(
            Question(
                benchmark=benchmark.name,
                category=item.category,
                id=item.id,
                prompt_ids=prompt_ids,
                judge=_judge(benchmark, item),
                obstacle=obstacle,
                dialogue=None if item.script is None else Dialogue(script=item.script, tools=item.tools),
            )
        )
    return questions


def predict(question: Question, point: str, text: str, read: ReadAnswer, *, note: str = "") -> Prediction:
    """The judged record of one output; `note` is put before the detail (`cut at 512 tokens`)."""
    answer = Answer(text=text, parsed=read(text))
    return _prediction(question, point, text, question.judge(answer), note, answer.parsed.error or "")


async def hold(
    question: Question, dialogue: Dialogue, point: str, say: Say, read: ReadAnswer, manner: Manner
) -> Prediction:
    """Hold a dialogue; the judged record of it. Raises what `say` raises, but for NoRoomError."""
    held = await converse(dialogue.script, dialogue.tools, say, read, manner)
    return _prediction(question, point, held.output, held.judgement, held.note)


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


def _judge(benchmark: Benchmark, item: Item) -> Callable[[Answer], Judgement]:
    """The benchmark's judge of one item. A judge that fails will fail again: no attempt is wasted on it."""

    def judge(answer: Answer) -> Judgement:
        try:
            return benchmark.judge(item, answer)
        except StageError:
            raise
        except Exception as error:
            where = f"benchmark {benchmark.name}: judging {item.category}/{item.id}"
            raise PermanentError(f"{where} failed with {type(error).__name__}: {error}") from error

    return judge
