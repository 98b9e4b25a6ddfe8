"""A stand-in for model and tokenizer like the one that the released search was counted with.

Synthetic calls of about 30 tokens behind prompts of a chosen length. The policy knows the truth and slips: a name or
value in so many is another one, some completions are one step, some go on until they are cut. The judge always writes
the same. How often which was not told; the shares here are those that bring three of the counts told together, and the
others are then what they are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from itrain_pipeline.ports import Completion, EngineCounters, KVCapacity, SamplingParams
from itrain_pipeline.records import Example, Message, ToolCall
from itrain_pipeline.search.judge import RUBRIC
from itrain_pipeline.search.sample import Language

PIECE = re.compile(r"='|'\)|\]|, | ?[A-Za-z]{1,5}|\d{1,3}|\s|.", re.DOTALL)
"""What is one token: short runs of letters or digits, and signs, some of them together as in real vocabularies."""
END = 0
REFUSAL = "none of the functions can be used to answer this question"
RUNAWAY = "and so on " * 20
PARAMETERS = (1, 2, 2, 3, 3, 3, 4, 4, 8)
"""Of a call; the longest answers do not end within the 50 tokens of a request."""
LONG_RUBRIC = 2 * RUBRIC
"""About 300 of these tokens, as the released one has of its model's."""
WORDS = (
    "paris",
    "london",
    "weather",
    "flight",
    "hotel",
    "ticket",
    "music",
    "order",
    "delta",
    "north",
    "river",
    "summer",
    "market",
    "report",
    "table",
    "blue",
)


class StubTokens:
    """Ids in the order in which pieces of text are met; END is the end of a turn."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: list[str] = [""]

    def encode(self, text: str) -> list[int]:
        found = []
        for piece in PIECE.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self._texts)
                self._texts.append(piece)
            found.append(self._ids[piece])
        return found

    def decode(self, ids: Sequence[int]) -> str:
        kept = list(ids)
        return "".join(self._texts[i] for i in (kept[: kept.index(END)] if END in kept else kept))

    def language(self) -> Language:
        return Language(
            decode=self.decode,
            encode=self.encode,
            cut=lambda ids: (ids,),
            bos_ids=(),
            stop_token_ids=(END,),
            call_format="pythonic",
        )


def stub_examples(
    tokens: StubTokens, count: int, *, prompt_tokens: int, spread: float = 0.25, seed: int = 0
) -> list[Example]:
    """Calls of texts and numbers behind prompts that are up to `spread` shorter or longer."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        name = f"{rng.choice(WORDS)}_{rng.choice(WORDS)}"
        arguments = {
            key: f"{rng.choice(WORDS).title()}, {rng.choice(WORDS)}" if rng.random() < 0.6 else rng.randint(1, 999)
            for key in rng.sample(WORDS, rng.choice(PARAMETERS))
        }
        answer = f"[{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"
        most = int(prompt_tokens * spread)
        length = prompt_tokens + rng.randint(-most, most)
        unlike = tokens.encode(f"{number} ")
        examples.append(
            Example(
                id=f"stub/{number}",
                messages=(Message(role="user", content="?"),),
                tools=(),
                answer=answer,
                calls=(ToolCall(name=name, arguments=arguments),),
                bucket="easy",
                source="stub",
                prompt_ids=(*unlike, *[tokens.encode("x")[0]] * (length - len(unlike))),
                answer_ids=(*tokens.encode(answer), END),
            )
        )
    return examples


@dataclass(kw_only=True)
class StubEngine:
    """No prefix is known twice: every request computes its whole prompt once, whatever it forks to."""

    tokens: StubTokens
    examples: Sequence[Example]
    verdict: str = " (A) is right"
    slip: float = 0.3
    """Share of names and values that are others."""
    refusals: float = 0.3
    """Share of completions from the root that say in one step that nothing fits."""
    runaways: float = 0.25
    """Share of completions that go on in one step until they are cut."""
    asked: list[tuple[tuple[int, ...], SamplingParams]] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    decoded: int = 0

    max_model_len = 100_000

    def __post_init__(self) -> None:
        self._by_prompt = {example.prompt_ids: example for example in self.examples}
        self._lengths = sorted({len(prompt) for prompt in self._by_prompt})

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Completion]:
        prompt = tuple(prompt_ids)
        self.asked.append((prompt, params))
        done = [self._completion(prompt, seed, params) for seed in params.seeds]
        self.computed += len(prompt)
        self.cached += len(prompt) * (len(done) - 1)
        self.decoded += sum(len(completion.token_ids) for completion in done)
        return done

    def _completion(self, prompt: tuple[int, ...], seed: int, params: SamplingParams) -> Completion:
        rng = random.Random(hash((seed, prompt)))
        example = next((self._by_prompt[prompt[:n]] for n in self._lengths if prompt[:n] in self._by_prompt), None)
        if example is None:
            ids = self.tokens.encode(self.verdict)[: params.max_tokens]
            return Completion(token_ids=tuple(ids), logprobs=(-0.1,) * len(ids), finish_reason="length")
        said = self.tokens.decode(prompt[len(example.prompt_ids) :])
        left, kind = rest_of(example.answer, said), rng.random()
        if kind < self.refusals and not said:
            left = REFUSAL
        elif kind > 1 - self.runaways:
            left = RUNAWAY
        parts = [(text, rng.random() < self.slip) for text in re.findall(r"\w+|\W+", left)]
        ids, logprobs = list[int](), list[float]()
        for text, slips in parts:
            wrong = slips and text.isalnum()
            new = self.tokens.encode(rng.choice(WORDS) if wrong else text)
            ids += new
            logprobs += [-rng.expovariate(1.0) if wrong else -rng.expovariate(4.0) for _ in new]
        ids.append(END)
        logprobs.append(-0.01)
        stop = len(ids) <= params.max_tokens
        return Completion(
            token_ids=tuple(ids[: params.max_tokens]),
            logprobs=tuple(logprobs[: params.max_tokens]),
            finish_reason="stop" if stop else "length",
        )

    async def option_logprobs(self, prompt_ids: Sequence[int], options: Sequence[int]) -> list[float]:
        self.computed += len(prompt_ids)
        return [-0.1 * (n + 1) for n, _ in enumerate(options)]

    def load_adapter(self, name: str, folder: object) -> None:
        return None

    def reset_prefix_cache(self) -> None:
        return None

    def kv_capacity(self) -> KVCapacity:
        return KVCapacity(block_tokens=16, total_blocks=10_000, free_blocks=10_000)

    def counters(self) -> EngineCounters:
        return EngineCounters(
            requests=len(self.asked), prefill_computed=self.computed, prefill_cached=self.cached, decoded=self.decoded
        )

    async def aclose(self) -> None:
        return None


def rest_of(answer: str, said: str) -> str:
    """What of the answer is left after as many signs, blanks aside, as were said."""
    left = len("".join(said.split()))
    for at, sign in enumerate(answer):
        if not left:
            return answer[at:]
        left -= not sign.isspace()
    return "" if not left else "."
