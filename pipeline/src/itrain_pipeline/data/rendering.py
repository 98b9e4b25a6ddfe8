"""The one rendering of a dialogue into token ids, used by score, rollout, train and evaluate alike.

The tools stand in the system turn as text of ours, never in the chat template's own tools slot: templates put them in
different turns and ask for different answer formats (method document, trap 7). `template_sha256` names everything
that the ids depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.records import Message
from itrain_pipeline.timelimit import time_limit

CallFormat = Literal["pythonic", "hermes", "llama"]

TEMPLATE_SECONDS: Final = 20.0
"""For one rendering, which takes a millisecond."""
PINNED_DATE: Final = "26 Jul 2024"
"""What templates that print today's date are given instead (Llama-3.1's own default)."""

_TASK: Final = (
    "You are an expert in composing functions. Answer the question with calls of the functions below. "
    "If none of them fits, or a required parameter is missing, say so in plain text."
)
_WORDING: Final[Mapping[str, tuple[str, str]]] = {
    "pythonic": (
        f"{_TASK} Write calls as [function_name(parameter=value, ...), ...] and no other text.\nFunctions:\n",
        "",
    ),
    "hermes": (
        f"{_TASK}\n<tools>\n",
        "\n</tools>\nWrite each call as\n<tool_call>\n"
        '{"name": <function name>, "arguments": <JSON object>}\n</tool_call>\nand no other text.',
    ),
    "llama": (
        f'{_TASK} Write each call as {{"name": <function name>, "parameters": <JSON object>}} and no other text.\n'
        "Functions:\n",
        "",
    ),
}
_PROBE_TOOLS: Final = (
    {
        "name": "probe",
        "description": "Probe",
        "parameters": {"type": "dict", "properties": {"a b": {"type": "string"}}, "required": ["a b"]},
    },
)
_PROBE_ANSWERS: Final = (
    "[probe(a b='x')]",
    '<tool_call>\n{"name":"probe","arguments":{"a b":"x"}}\n</tool_call>',
    '{"name":"probe","parameters":{"a b":1}}',
    "Which city?",
    "Zürich: 12",
)


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that rendering needs."""

    chat_template: Any

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def all_special_tokens(self) -> list[str]: ...
    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any: ...
    def encode(self, text: str, **kwargs: Any) -> list[int]: ...
    def decode(self, token_ids: list[int], **kwargs: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...


def system_text(tools: Sequence[Mapping[str, Any]], call_format: str, extra_system: str | None = None) -> str:
    """The system turn: the caller's own system text first, then how to call, then the tools as compact JSON.

    Empty when there is neither a tool nor an extra text. The order of keys and tools is kept.
    Raises `ConfigError` for a call format that does not exist.
    """
    if call_format not in _WORDING:
        raise ConfigError(f"callFormat: got {call_format!r}, allowed are {', '.join(sorted(_WORDING))}")
    parts = [extra_system.strip()] if extra_system and extra_system.strip() else []
    if tools:
        before, after = _WORDING[call_format]
        parts.append(before + json.dumps(list(tools), ensure_ascii=False, separators=(",", ":")) + after)
    return "\n\n".join(parts)


class Renderer:
    """Messages and tools to token ids, by one tokenizer's chat template and one call format.

    Building one proves the template usable: it must be prefix-preserving and end every assistant turn with a token.
    Raises `ConfigError` with the remedy where it is not.
    """

    def __init__(self, tokenizer: Tokenizer, call_format: str = "pythonic") -> None:
        system_text((), call_format)
        if not tokenizer.chat_template:
            raise ConfigError("the model's tokenizer has no chat template: use an instruction-tuned model's tokenizer")
        self.call_format = call_format
        self.tokenizer = tokenizer
        self._controls = tuple(sorted({text for text in tokenizer.all_special_tokens if text}))
        self._bos = _own_bos(tokenizer)
        self.end_of_turn_id = self._find_end_of_turn()
        for answer in _PROBE_ANSWERS:
            self.check_prefix((Message(role="user", content="Probe?"),), _PROBE_TOOLS, answer)
        self.template_sha256 = self._hash()

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids that end exactly where the next answer begins, with one BOS where the tokenizer has one.

        A leading system message is the row's own system text and is joined with ours.
        Raises `DataError` for an empty dialogue, a system message elsewhere, or a control token in a text.
        """
        return self._encode(self._text(messages, tools, generation=True))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with its end-of-turn token. Outer white space is dropped, as templates do."""
        self._refuse_controls(text)
        return (*self._plain(text.strip()), self.end_of_turn_id)

    def spare_controls(self, text: str) -> str:
        """A text without control tokens, which would end or forge a turn: what a model wrote or a tool returned, as
        it may stand in a later prompt."""
        while any(control in text for control in self._controls):
            for control in self._controls:
                text = text.replace(control, "")
        return text

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text of sampled ids up to the end of the turn; the inverse of `answer_ids` for stripped texts."""
        kept = list(ids)
        if self.end_of_turn_id in kept:
            del kept[kept.index(self.end_of_turn_id) :]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def check_prefix(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], answer: str) -> None:
        """Prove that prompt(history) + answer is a prefix of the prompt of the next turn.

        Raises `ConfigError`: with such a template a cached or trained prefix is not the one served later.
        """
        before = self.prompt_ids(messages, tools) + self.answer_ids(answer)
        following = (
            *messages,
            Message(role="assistant", content=answer.strip()),
            Message(role="user", content="Next?"),
        )
        after = self.prompt_ids(following, tools)
        if after[: len(before)] != before:
            at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
            raise ConfigError(
                f"the chat template is not prefix-preserving: after the answer {answer!r} the next prompt differs "
                f"from token {at} on. Use a template that leaves earlier turns as they are "
                "(no dropped reasoning, no moved tools), or data.turns: last with another tokenizer"
            )

    def _text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, generation: bool) -> str:
        own = messages[0].content if messages and messages[0].role == "system" else None
        turns = list(messages[1:] if own is not None else messages)
        if not turns:
            raise DataError("messages: got no turn, at least one user turn is needed")
        if any(turn.role == "system" for turn in turns):
            raise DataError("messages: a system message is allowed in the first place only")
        conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
        system = system_text(tools, self.call_format, own)
        if system:
            conversation.insert(0, {"role": "system", "content": system})
        for turn in conversation:
            self._refuse_controls(turn["content"])
        return _rendered(
            self.tokenizer,
            conversation,
            add_generation_prompt=generation,
            date_string=PINNED_DATE,
            strftime_now=_pinned_strftime,
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        ids = self._plain(text)
        if self._bos is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == self._bos:
            start += 1
        return (self._bos, *ids[start:])

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _refuse_controls(self, text: str) -> None:
        found = next((control for control in self._controls if control in text), None)
        if found is not None:
            raise DataError(f"a text holds the control token {found!r}, which would end or forge a turn: remove it")

    def _find_end_of_turn(self) -> int:
        mark = "itrain probe answer"
        turns = (Message(role="user", content="Probe?"), Message(role="assistant", content=mark))
        tail = self._plain(self._text(turns, (), generation=False).rpartition(mark)[2])
        if not tail:
            raise ConfigError("the chat template ends an assistant turn without a token: answers could never stop")
        return tail[0]

    def _hash(self) -> str:
        probe = self._text((Message(role="user", content="Probe?"),), _PROBE_TOOLS, generation=True)
        ingredients = [
            self.call_format,
            _WORDING[self.call_format],
            PINNED_DATE,
            probe,
            self.tokenizer.chat_template,
            self._bos,
            self.end_of_turn_id,
            _tokenizer_state(self.tokenizer),
        ]
        return hashlib.sha256(json.dumps(ingredients, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _pinned_strftime(_format: str) -> str:
    return PINNED_DATE


def _rendered(tokenizer: Tokenizer, conversation: list[dict[str, str]], **variables: Any) -> str:
    """What the template makes of the turns. A template is a program of the model's author: it runs in transformers'
    sandbox of jinja2, and not for ever. Whatever it raises is a `ConfigError`."""
    try:
        with time_limit(TEMPLATE_SECONDS):
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, **variables))
    except Exception as error:
        roles = ", ".join(turn["role"] for turn in conversation)
        why = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the chat template refuses the turns ({roles}): {why[:300]}. Use a tokenizer whose template takes "
            "system and tool turns, or data with user and assistant turns alone"
        ) from error


def _own_bos(tokenizer: Tokenizer) -> int | None:
    """BOS where the model expects one: its tokenizer adds it or its template prints it."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    template = tokenizer.chat_template
    added = list(tokenizer.encode("x"))[:1] == [bos]
    printed = isinstance(template, str) and list(
        tokenizer.encode(
            _rendered(tokenizer, [{"role": "user", "content": "x"}]),
            add_special_tokens=False,
        )
    )[:1] == [bos]
    return bos if added or printed else None


def _tokenizer_state(tokenizer: Tokenizer) -> Any:
    """Vocabulary, merges, normaliser and pre-tokeniser; not padding and truncation, which callers switch at will."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    state: dict[str, Any] = json.loads(backend.to_str())
    return {key: value for key, value in state.items() if key not in ("padding", "truncation")}
