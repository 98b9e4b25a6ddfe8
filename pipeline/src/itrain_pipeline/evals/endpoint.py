"""An OpenAI-compatible endpoint: one question, one reply, or why there is none.

The protocol is the `openai` package's; retries are counted here, each attempt has a deadline of its own (a server that
sends a byte now and then is as away as one that sends none), and no error ever holds the key.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from itrain_pipeline.data.rendering import CallFormat
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.evals.benchmark import Item
from itrain_pipeline.evals.nativecalls import (
    native_text,
    prompt_messages,
    wire_dialogue,
    wire_messages,
    wire_names,
    wire_tools,
)
from itrain_pipeline.records import Message

FIRST_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 30.0
MAX_RETRY_AFTER_S: Final = 120.0
"""What a server may ask us to wait; a longer wish is not waited for."""
_NO_KEY: Final = "none"
_TOO_LONG: Final = re.compile(
    r"context.{0,3}length|maximum context|prompt is too long|input is too long", re.IGNORECASE
)


class Kind(StrEnum):
    """Why an item has no answer."""

    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BROKEN_ANSWER = "broken_answer"
    REFUSED = "refused"

    @property
    def passes(self) -> bool:
        """Whether another attempt may succeed."""
        return self is not Kind.REFUSED


class ItemError(Exception):
    """One item got no answer; the others go on."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.kind = kind
        self.detail = detail


class TooLongError(Exception):
    """The server says that prompt and answer do not fit into its context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`api_key` empty sends none that means anything. `retries` are attempts beyond the first."""

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    native: bool = False
    call_format: CallFormat = "pythonic"
    max_new_tokens: int = 512
    timeout_s: float = 120.0
    retries: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`text` is what is judged and kept: the content, or `native_text` of it. `note` says that it was cut."""

    text: str
    note: str = ""


class Endpoint:
    """Asks one server. `retried` counts attempts that were repeated, by kind; `tokens` sums what the server says.

    `sleep` and `jitter` are the waiting between attempts.
    """

    def __init__(
        self,
        target: Target,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Raises ConfigError for a URL that cannot be, and where the `openai` package is not installed."""
        if not _is_address(target.url):
            raise ConfigError(f"--endpoint: got {target.url!r}, expected a URL as in http://127.0.0.1:8000/v1")
        try:
            self._openai: Any = importlib.import_module("openai")
        except ImportError as missing:
            raise ConfigError("--endpoint needs the package openai: pip install 'openai>=3,<4'") from missing
        self._target = target
        self._sleep, self._jitter = sleep, jitter
        self._client: Any = self._openai.AsyncOpenAI(
            base_url=target.url, api_key=target.api_key or _NO_KEY, max_retries=0, timeout=target.timeout_s
        )
        self.retried: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def body(self, item: Item) -> tuple[dict[str, Any], dict[str, str]]:
        """The request of an item, and the names of its tools as sent. Raises DataError for a dialogue that cannot be
        sent."""
        if not self._target.native:
            return self._body(prompt_messages(item.messages, item.tools, self._target.call_format)), {}
        names = wire_names(item.tools)
        return self._body(wire_messages(item.messages, names, self._target.call_format), item.tools, names), names

    def _body(
        self,
        messages: list[Any],
        tools: Sequence[Mapping[str, Any]] = (),
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        target = self._target
        body = {"model": target.model, "temperature": 0.0, "max_tokens": target.max_new_tokens, "messages": messages}
        return body | ({"tools": wire_tools(tools, names), "tool_choice": "auto"} if tools else {})

    async def ask(self, item: Item) -> Reply:
        """Greedy. Raises ItemError once the retries are used up or the server refuses the item, TooLongError, and
        ConfigError for a key or a model that it does not know."""
        return await self._send(*self.body(item))

    async def say(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Reply:
        """The next answer of a dialogue, whose earlier answers are texts that this endpoint gave. Raises as `ask`."""
        if not self._target.native:
            return await self._send(self._body(prompt_messages(messages, tools, self._target.call_format)), {})
        names = wire_names(tools)
        return await self._send(self._body(wire_dialogue(messages, names), tools, names), names)

    async def _send(self, body: dict[str, Any], names: Mapping[str, str]) -> Reply:
        for attempt in range(self._target.retries + 1):
            try:
                async with asyncio.timeout(self._target.timeout_s):
                    raw = await self._client.chat.completions.with_raw_response.create(**body)
                return self._read(raw.http_response.content, names)
            except (self._openai.OpenAIError, TimeoutError, BrokenReplyError) as error:
                problem, wish = self._problem(error)
                if not problem.kind.passes or attempt == self._target.retries or wish > MAX_RETRY_AFTER_S:
                    raise problem from None
            self.retried[problem.kind.value] += 1
            grown = min(MAX_DELAY_S, FIRST_DELAY_S * 2**attempt)
            await self._sleep(wish or grown * (1 - 0.25 * self._jitter()))
        raise AssertionError("the last attempt returns or raises")

    async def aclose(self) -> None:
        await self._client.close()

    def _read(self, content: bytes, names: Mapping[str, str]) -> Reply:
        try:
            reply = json.loads(content)
            choice = reply["choices"][0]
            message = choice["message"]
            text = native_text(message, names) if self._target.native else message.get("content") or ""
            if not isinstance(text, str):
                raise ValueError("content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            shown = content[:120].decode("utf-8", "replace")
            raise BrokenReplyError(f"{type(error).__name__} in the reply {shown!r}") from error
        usage = reply.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            count = usage.get(name) if isinstance(usage, Mapping) else None
            self.tokens[name] += count if isinstance(count, int) else 0
        return Reply(text=text, note="cut at the token limit" if choice.get("finish_reason") == "length" else "")

    def _problem(self, error: Exception) -> tuple[ItemError, float]:
        """The error as the item's, and the seconds that the server wants us to wait (0: it says nothing)."""
        api = self._openai
        if isinstance(error, BrokenReplyError):
            return ItemError(Kind.BROKEN_ANSWER, self._told(str(error))), 0.0
        if isinstance(error, TimeoutError | api.APITimeoutError):
            return ItemError(Kind.TIMEOUT, f"no answer within {self._target.timeout_s:g} s"), 0.0
        if not isinstance(error, api.APIStatusError):
            cause = error.__cause__ or error
            return ItemError(Kind.CONNECTION, self._told(f"{type(cause).__name__}: {cause}")), 0.0
        status, said = error.status_code, self._told(f"{error.status_code}: {_message(error)}")
        if status in (401, 403, 404):
            raise ConfigError(f"{self._target.url} with the model {self._target.model!r} answers {said}") from None
        if status == 429:
            return ItemError(Kind.RATE_LIMITED, said), _retry_after(error.response.headers)
        if status in (408, 409) or status >= 500:
            return ItemError(Kind.SERVER_ERROR, said), _retry_after(error.response.headers)
        if status in (400, 413, 422) and _TOO_LONG.search(said):
            raise TooLongError(said) from None
        return ItemError(Kind.REFUSED, said), 0.0

    def _told(self, text: str) -> str:
        key = self._target.api_key
        return " ".join((text.replace(key, "***") if key else text).split())[:300]


class BrokenReplyError(Exception):
    """A reply that is no chat completion."""


def _is_address(url: str) -> bool:
    """Whether it can be asked at all. A name or password in it would stand in files and messages."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (raises for one that is no port)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and url.isprintable()


def _message(error: Any) -> str:
    body = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    found = inner.get("message") if isinstance(inner, Mapping) else inner
    return str(found or error.response.text[:200] or error.response.reason_phrase)


def _retry_after(headers: Mapping[str, str]) -> float:
    """`Retry-After` in seconds (a date is not read); 0 without one."""
    try:
        return max(0.0, float(headers.get("retry-after-ms", "x")) / 1000)
    except ValueError:
        pass
    try:
        return max(0.0, float(headers.get("retry-after", "x")))
    except ValueError:
        return 0.0
