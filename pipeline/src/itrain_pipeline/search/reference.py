"""The released search, to be measured against; never used by default.

Our own implementation, from a description, of what the code beside the paper does, over the same Engine port and
examples. Each thing it does worse than it could is a switch of `Quirks`; with all of them off what remains is a plain
tree search that cuts by text and judges every simulation. Prefix reuse is the engine's: whoever measures switches it.

What is not here: a repetition penalty of 0.75, and the judge's next likely tokens; the Engine port has neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from itrain_pipeline.errors import PermanentError
from itrain_pipeline.ports import Completion, Engine, SamplingParams
from itrain_pipeline.records import Example, Lineage, PreferencePair
from itrain_pipeline.search.judge import RUBRIC, judge_value, option_ids
from itrain_pipeline.search.pairs import word_overlap
from itrain_pipeline.search.puct import puct_score
from itrain_pipeline.search.reference_judge import (
    JUDGE_TEMPERATURE,
    JUDGE_TOKENS,
    fast_reward,
    judge_text,
    written_verdict,
)
from itrain_pipeline.search.reference_steps import Step, completion_steps, joined
from itrain_pipeline.search.sample import Language
from itrain_pipeline.search.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """What the released code does, each a switch. All on is the release."""

    expand_twice: bool = True
    """Descend only past more children than one expansion adds: the root is expanded a second time."""
    one_seed: bool = True
    """Every request has the same seed, so the same prompt gives the same completions again."""
    spaces: bool = True
    """Steps are joined with a blank before each: the next prompt is not what was sampled."""
    rubric_last: bool = True
    """The judge reads ground truth and response before the rubric, so that no prefix is shared."""
    written_verdict: bool = True
    """The judge writes seven tokens, matched by substrings; else one, by the options' logprobs."""
    freeze: bool = True
    """A leaf with nothing to expand is left without a visit, so it is selected until the budget ends."""
    value_sums: bool = True
    """Q is the sum of a node's fast reward and values; else the mean of the values."""
    uct: bool = True
    """value/(n+1) + c·p·√(ln N/(n+1)); else PUCT."""
    stuck_prior: bool = True
    """Priors are lost behind the first token across a separator."""
    whole_pairs: bool = True
    """Chosen and rejected repeat the answer before the step; else it is context."""


RELEASED = Quirks()
WORKERS = 30
"""Trees at a time of the released script; within a tree every request waits for the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """The released script's numbers."""

    actions: int = 3
    iterations: int = 5
    depth: int = 3
    step_limit: int = 2
    """Fragments of a step, its separators counted."""
    walk_steps: int = 2
    """Of a simulation: the first goes to a child of the expanded node."""
    max_tokens: int = 50
    temperature: float = 1.5
    top_p: float = 1.0
    exploration: float = 1.0
    seed: int = 42
    min_gap: float = 0.1
    max_overlap: float = 0.95
    min_best: float = -0.3
    rubric: str = RUBRIC


@dataclass(slots=True, kw_only=True, eq=False)
class ReferenceNode:
    """`ids` are those sampled, whatever the joined text is encoded to."""

    text: str = ""
    ids: tuple[int, ...] = ()
    prior: float = 1.0
    fast: float = 0.0
    """What it is worth before its first visit."""
    total: float = 0.0
    """Sum of the values of its visits."""
    visits: int = 0
    terminal: bool = False
    expanded: bool = False
    parent: ReferenceNode | None = None
    level: int = 0
    judged: float | None = None
    children: list[ReferenceNode] = field(default_factory=list)

    def path(self) -> Iterator[ReferenceNode]:
        """The node and its ancestors, root last."""
        node: ReferenceNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator[ReferenceNode]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(slots=True, kw_only=True)
class ReferenceRecord:
    """One tree in numbers; what `search/bounds.py` reads is named as in a TreeRecord."""

    sample_id: str
    requests: int = 0
    """For completions; judgements are counted beside them."""
    judge_calls: int = 0
    sequences: int = 0
    duplicate_requests: int = 0
    """Requests for completions with a prompt and seeds asked for before."""
    prompt_tokens: int = 0
    decoded_tokens: int = 0
    nodes: int = 0
    frozen: int = 0
    """Simulations that found nothing to expand."""
    pairs: int = 0
    prompt_length: int = 0
    node_tokens: int = 0
    """Sampled tokens that a tree without duplicates holds: each once."""
    truth_tokens: int = 0
    judged: int = 0
    judged_tokens: int = 0


class ReferenceTree:
    """One tree, request after request. Raises what the engine raises, and PermanentError where nothing was sampled."""

    def __init__(
        self, settings: ReferenceSettings, quirks: Quirks, *, engine: Engine, language: Language, example: Example
    ) -> None:
        self.root = ReferenceNode()
        self.record = ReferenceRecord(sample_id=example.id, prompt_length=len(example.prompt_ids))
        self._settings, self._quirks = settings, quirks
        self._engine, self._language, self._example = engine, language, example
        self._asked: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        self._sampled: set[tuple[int, ...]] = set()
        self._judged: set[str] = set()

    async def run(self) -> list[PreferencePair]:
        for _ in range(self._settings.iterations):
            node = self._select()
            if not node.terminal and node.level < self._settings.depth:
                await self._expand(node)
                self._back_up(node, await self._judge(await self._walk(node)))
                continue
            self.record.frozen += 1
            if not self._quirks.freeze:
                if node.judged is None:
                    node.judged = await self._judge(self._text(node))
                self._back_up(node, node.judged)
        self.record.nodes = sum(1 for _ in self.root.walk())
        self.record.node_tokens = len(self._sampled)
        self.record.judged = len(self._judged)
        self.record.judged_tokens = sum(len(self._language.encode(text)) for text in self._judged)
        self.record.truth_tokens = len(self._language.encode(self._example.answer)) if self._judged else 0
        pairs = list(self._pairs())
        self.record.pairs = len(pairs)
        return pairs

    def q(self, node: ReferenceNode) -> float:
        if self._quirks.value_sums:
            return node.fast + node.total
        return node.total / node.visits if node.visits else node.fast

    def _select(self) -> ReferenceNode:
        node = self.root
        while len(node.children) > self._settings.actions if self._quirks.expand_twice else node.expanded:
            node = max(node.children, key=lambda child: self._score(child, node.visits))
        return node

    def _score(self, child: ReferenceNode, parent_visits: int) -> float:
        c = self._settings.exploration
        if self._quirks.uct:
            spread = math.sqrt(math.log(max(parent_visits, 1)) / (child.visits + 1))
            return (child.fast + child.total) / (child.visits + 1) + c * child.prior * spread
        return puct_score(q=self.q(child), prior=child.prior, parent_visits=parent_visits, visits=child.visits, c=c)

    async def _expand(self, node: ReferenceNode) -> None:
        for completion in await self._complete(node):
            self._thread(node, completion)
        node.expanded = True
        if not node.children:
            raise PermanentError(f"{self._example.id}: nothing was sampled behind {self._text(node)!r}")

    def _thread(self, node: ReferenceNode, completion: Completion) -> None:
        """One completion as a chain of its own, equal steps or not."""
        steps = self._steps(completion, levels=self._settings.depth - node.level)
        for step in steps:
            child = ReferenceNode(text=step.text, ids=step.ids, prior=step.prior, parent=node, level=node.level + 1)
            child.fast = fast_reward(self._text(child), self._example.answer)
            node.children.append(child)
            node = child
        if steps:
            node.terminal = completion.finish_reason == "stop"

    def _steps(self, completion: Completion, *, levels: int) -> list[Step]:
        return completion_steps(
            completion,
            self._language.decode,
            step_limit=self._settings.step_limit,
            levels=levels,
            spaces=self._quirks.spaces,
            stuck_prior=self._quirks.stuck_prior,
        )

    async def _walk(self, node: ReferenceNode) -> str:
        """From the expanded node by value; what a childless node lacks is generated, for the judge's eyes only."""
        for _ in range(self._settings.walk_steps):
            if node.children:
                node = max(node.children, key=self.q)
                continue
            if node.terminal:
                break
            first, *_ = await self._complete(node)
            texts = [step.text for step in self._steps(first, levels=self._settings.depth)]
            return self._text(node) + joined(texts, spaces=self._quirks.spaces)
        return self._text(node)

    async def _complete(self, node: ReferenceNode) -> list[Completion]:
        settings, record = self._settings, self.record
        first = settings.seed if self._quirks.one_seed else self._own_seed()
        seeds = tuple(first + n for n in range(settings.actions))
        prompt = self._prompt(node)
        params = SamplingParams(
            seeds=seeds,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop_token_ids=self._language.stop_token_ids,
        )
        done = await self._engine.generate(prompt, params)
        record.duplicate_requests += (prompt, seeds) in self._asked
        self._asked.add((prompt, seeds))
        record.requests += 1
        record.sequences += len(done)
        record.prompt_tokens += len(prompt) * len(done)
        record.decoded_tokens += sum(len(completion.token_ids) for completion in done)
        before = self._ids(node)
        for completion in done:
            ids = (*before, *completion.token_ids)
            self._sampled.update(ids[:n] for n in range(len(before) + 1, len(ids) + 1))
        return done

    async def _judge(self, answer: str) -> float:
        language, record = self._language, self.record
        text = judge_text(
            self._example.answer, answer, rubric_last=self._quirks.rubric_last, rubric=self._settings.rubric
        )
        record.judge_calls += 1
        record.sequences += 1
        self._judged.add(answer)
        if not self._quirks.written_verdict:
            prompt = (*language.bos_ids, *language.encode(f"{text} ("))
            record.prompt_tokens += len(prompt)
            return judge_value(await self._engine.option_logprobs(prompt, option_ids(language.encode)))
        prompt = (*language.bos_ids, *language.encode(text))
        params = SamplingParams(
            seeds=(self._settings.seed if self._quirks.one_seed else self._own_seed(),),
            max_tokens=JUDGE_TOKENS,
            temperature=JUDGE_TEMPERATURE,
        )
        (done,) = await self._engine.generate(prompt, params)
        record.prompt_tokens += len(prompt)
        record.decoded_tokens += len(done.token_ids)
        return written_verdict([language.decode((token,)) for token in done.token_ids])

    def _back_up(self, node: ReferenceNode, value: float) -> None:
        for ancestor in node.path():
            ancestor.visits += 1
            ancestor.total += value

    def _own_seed(self) -> int:
        return derive_seed(
            run_seed=self._settings.seed,
            iteration=0,
            sample_id=self._example.id,
            answer_ids=(),
            visit=self.record.sequences,
        )

    def _prompt(self, node: ReferenceNode) -> tuple[int, ...]:
        """The ids of prompt and answer so far: of its joined text, or those sampled."""
        if not self._quirks.spaces:
            return (*self._example.prompt_ids, *self._ids(node))
        return (*self._example.prompt_ids, *self._language.encode(self._text(node)))

    def _ids(self, node: ReferenceNode) -> tuple[int, ...]:
        return tuple(token for ancestor in reversed(list(node.path())) for token in ancestor.ids)

    def _text(self, node: ReferenceNode) -> str:
        texts = [ancestor.text for ancestor in reversed(list(node.path())) if ancestor.parent is not None]
        return joined(texts, spaces=self._quirks.spaces)

    def _pairs(self) -> Iterator[PreferencePair]:
        for number, node in enumerate(self.root.walk()):
            if len(node.children) < 2:
                continue
            best, worst = max(node.children, key=self.q), min(node.children, key=self.q)
            if self._passes(best, worst):
                yield self._pair(number, node, best, worst)

    def _passes(self, best: ReferenceNode, worst: ReferenceNode) -> bool:
        settings = self._settings
        return (
            self.q(best) - self.q(worst) >= settings.min_gap
            and self.q(best) >= settings.min_best
            and word_overlap(best.text, worst.text) <= settings.max_overlap
        )

    def _pair(self, number: int, node: ReferenceNode, best: ReferenceNode, worst: ReferenceNode) -> PreferencePair:
        whole, encode = self._quirks.whole_pairs, self._language.encode

        def side(step: ReferenceNode) -> Sequence[int]:
            if self._quirks.spaces:
                return encode(self._text(step) if whole else joined([step.text], spaces=True))
            return (*self._ids(node), *step.ids) if whole else step.ids

        return PreferencePair(
            id=f"{self._example.id}/reference/{number}",
            prompt_ids=self._example.prompt_ids,
            shared_ids=() if whole else self._prompt(node)[len(self._example.prompt_ids) :],
            chosen_ids=tuple(side(best)),
            rejected_ids=tuple(side(worst)),
            chosen_q=self.q(best),
            rejected_q=self.q(worst),
            chosen_visits=best.visits,
            rejected_visits=worst.visits,
            lineage=Lineage(
                sample_id=self._example.id,
                iteration=0,
                adapter_sha256="",
                template_sha256="",
                sampling={"method": "reference", "temperature": self._settings.temperature},
            ),
        )
