"""An endpoint that is slow, wrong, crowded or away: every fault is retried or named, and none is an answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import pytest

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.evals.benchmark import Item
from itrain_pipeline.evals.endpoint import (
    FIRST_DELAY_S,
    MAX_DELAY_S,
    Endpoint,
    ItemError,
    Kind,
    Reply,
    Target,
    TooLongError,
)
from itrain_pipeline.evals.nativecalls import read_native
from itrain_pipeline.records import Message, ToolCall
from itrain_testing.chatserver import Said, Seen, chat_server, completion, fault

TOOL = {"name": "get.weather", "description": "Weather", "parameters": {"type": "dict", "properties": {}}}
ITEM = Item(category="call", id="1", messages=(Message(role="user", content="Rome?"),), tools=(TOOL,), gold=None)
SECRET = "sk-a-very-secret-key"


def in_order(*said: Said) -> Callable[[dict[str, Any]], Said]:
    """One after another; the last one for ever."""
    replies: Iterator[Said] = chain(said, repeat(said[-1]))
    return lambda _body: next(replies)


def ask(seen: Seen, waits: list[float] | None = None, *, item: Item = ITEM, **target: Any) -> tuple[Reply, Endpoint]:
    async def sleep(seconds: float) -> None:
        (waits if waits is not None else []).append(seconds)

    async def whole() -> tuple[Reply, Endpoint]:
        endpoint = Endpoint(Target(url=seen.url, model="m", **target), sleep=sleep, jitter=lambda: 0.0)
        try:
            return await endpoint.ask(item), endpoint
        finally:
            await endpoint.aclose()

    return asyncio.run(whole())


def problem(*said: Said, **target: Any) -> tuple[ItemError, Seen]:
    with chat_server(in_order(*said)) as seen, pytest.raises(ItemError) as found:
        ask(seen, **target)
    return found.value, seen


def test_tools_stand_in_the_system_turn_and_the_answer_is_its_text() -> None:
    with chat_server(in_order(completion("[get.weather()]"))) as seen:
        reply, endpoint = ask(seen, max_new_tokens=77)
    (body,) = seen.bodies
    assert reply == Reply(text="[get.weather()]")
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"].endswith(json.dumps([TOOL], separators=(",", ":")))
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 77)
    assert "tools" not in body
    assert endpoint.tokens == {"prompt_tokens": 10, "completion_tokens": 2}


def test_native_tools_are_sent_and_calls_read_back_under_their_own_names() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    with chat_server(in_order(completion(None, tool_calls=[call]))) as seen:
        reply, _ = ask(seen, native=True)
    (body,) = seen.bodies
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert body["tool_choice"] == "auto"
    assert [turn["role"] for turn in body["messages"]] == ["user"]
    assert read_native(reply.text).calls == (ToolCall(name="get.weather", arguments={"city": "Rome"}),)


def test_a_cut_answer_says_so() -> None:
    with chat_server(in_order(completion("[get.wea", finish="length"))) as seen:
        assert ask(seen)[0].note == "cut at the token limit"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (fault(429), Kind.RATE_LIMITED),
        (fault(500), Kind.SERVER_ERROR),
        (fault(503), Kind.SERVER_ERROR),
        (Said(body=b'{"choices": [{"mess'), Kind.BROKEN_ANSWER),
        (Said(body=b"<html>gateway</html>", headers={"content-type": "text/html"}), Kind.BROKEN_ANSWER),
        (Said(body=b'{"choices": []}'), Kind.BROKEN_ANSWER),
        (Said(body=b'{"choices": [{"message": {"content": ["a"]}}]}'), Kind.BROKEN_ANSWER),
    ],
)
def test_what_passes_is_tried_again_with_growing_waits_and_counted(said: Said, kind: Kind) -> None:
    waits: list[float] = []
    with chat_server(in_order(said, said, completion("fine"))) as seen:
        reply, endpoint = ask(seen, waits)
    assert reply.text == "fine"
    assert endpoint.retried == {kind.value: 2}
    assert waits == [FIRST_DELAY_S, 2 * FIRST_DELAY_S]


@pytest.mark.parametrize("said", [fault(429), fault(500), Said(body=b"[]")])
def test_attempts_are_bounded(said: Said) -> None:
    error, seen = problem(said, retries=3)
    assert len(seen.bodies) == 4
    assert error.kind.passes


def test_waits_stop_growing() -> None:
    waits: list[float] = []
    with chat_server(in_order(fault(500))) as seen, pytest.raises(ItemError):
        ask(seen, waits, retries=12)
    assert max(waits) == MAX_DELAY_S


def test_a_server_is_waited_for_as_long_as_it_says_within_reason() -> None:
    waits: list[float] = []
    with chat_server(in_order(fault(429, retry_after="7"), fault(503, retry_after_ms="20"), completion("x"))) as seen:
        ask(seen, waits)
    assert waits == [7.0, 0.02]
    error, seen = problem(fault(429, retry_after="86400"))
    assert (error.kind, len(seen.bodies)) == (Kind.RATE_LIMITED, 1)


@pytest.mark.parametrize("said", [Said(hang_s=30.0), Said(body=b"0123456789" * 9, trickle_s=0.1)])
def test_a_server_that_hangs_or_trickles_is_left_at_the_deadline(said: Said) -> None:
    begun = time.monotonic()
    error, seen = problem(said, timeout_s=0.3, retries=1)
    assert error.kind == Kind.TIMEOUT
    assert len(seen.bodies) == 2
    assert time.monotonic() - begun < 10


def test_nobody_at_the_address_is_a_connection_error() -> None:
    with chat_server(in_order(completion("x"))) as seen:
        pass
    with pytest.raises(ItemError, match="connection") as found:
        ask(seen, retries=1)
    assert found.value.kind == Kind.CONNECTION


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_is_not_tried_again_and_carries_the_servers_words(status: int) -> None:
    error, seen = problem(fault(status, "tools.0.function.name is wrong"))
    assert (error.kind, len(seen.bodies)) == (Kind.REFUSED, 1)
    assert "tools.0.function.name is wrong" in error.detail


def test_a_prompt_without_room_is_told_apart_from_a_refusal() -> None:
    said = fault(400, "This model's maximum context length is 256 tokens. However, you requested 300 tokens")
    with chat_server(in_order(said)) as seen, pytest.raises(TooLongError, match="256"):
        ask(seen)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_everything_and_the_key_is_never_told(status: int) -> None:
    with (
        chat_server(in_order(fault(status, f"bad key {SECRET}"))) as seen,
        pytest.raises(ConfigError, match="bad key") as found,
    ):
        ask(seen, api_key=SECRET)
    assert seen.keys == [f"Bearer {SECRET}"]
    assert SECRET not in str(found.value)
    assert SECRET not in repr(Target(url="http://x", model="m", api_key=SECRET))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x/v1", "http://", "http://user:pass@host/v1", "http://h:99999", "http://[x/v1"]
)
def test_an_address_that_cannot_be_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="--endpoint"):
        Endpoint(Target(url=url, model="m"))


@pytest.mark.parametrize("calls", ["x", [1], [{}], [{"function": {"name": 3}}], [{"function": "f"}]], ids=str)
def test_tool_calls_of_another_shape_are_a_broken_answer(calls: Sequence[Any]) -> None:
    error, _ = problem(completion(None, tool_calls=calls), native=True, retries=0)
    assert error.kind == Kind.BROKEN_ANSWER
