"""Made-up trees for the report: what a search records, with a prompt of any length and with what a model may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from itrain_pipeline.evals.trees import Searched, ShownTree, Why
from itrain_pipeline.records import Example, Message, ToolCall
from itrain_pipeline.search.treerecord import NodeRecord, TreeRecord

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</bdi></li></ol><h1>free</h1><img src=x onerror=alert(1)>",
    "\u202eevil reversed\u202c \u2067 and more",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; \"'`",
    "\x00\x1b[31m\ud800 bell\a",
    "W" * 10_000,
)
"""Output that would like to be more than text."""


def node(parent: int, text: str, *, visits: int = 1, q: float = 0.0, **more: Any) -> NodeRecord:
    fields = {"tokens": len(text), "prior": 1.0, "reward": None, "ending": "", "standing": "", "role": ""} | more
    return NodeRecord(parent=parent, text=text, visits=visits, q=q, **fields)


def weather_tree() -> tuple[NodeRecord, ...]:
    """A call with a right and two wrong ends: two pairs, one of them deeper."""
    right: dict[str, Any] = {"reward": 1.0, "ending": "stop", "standing": "right"}
    wrong: dict[str, Any] = {"ending": "stop", "standing": "wrong"}
    return (
        node(-1, "", visits=9, q=0.31),
        node(0, "[get_forecast(", visits=7, q=0.55, prior=0.71, role="chosen", standing="right"),
        node(1, "city='San Francisco, CA', ", visits=5, q=0.82, prior=0.62, role="chosen", standing="right"),
        node(2, "unit='celsius', days=3)]", visits=4, q=1.0, prior=0.8, **right),
        node(2, "unit='celsius', days='three')]", q=0.1, prior=0.2, reward=0.1, **wrong),
        node(
            1,
            "location='San Francisco')]",
            visits=2,
            q=-0.13,
            prior=0.38,
            reward=-0.13,
            role="rejected",
            **wrong,
        ),
        node(0, "[get_current_weather(", visits=2, q=-0.53, prior=0.21, role="rejected", standing="wrong"),
        node(6, "city='San Francisco')]", visits=2, q=-0.53, prior=1.0, reward=-0.53, **wrong),
        node(0, "I am sorry, ", q=-1.0, prior=0.08, standing="wrong"),
        node(8, "I cannot look at the weather.", q=-1.0, reward=-1.0, **wrong),
    )


def record(sample_id: str, drawn: Sequence[NodeRecord], **changes: Any) -> TreeRecord:
    rewards = [one.reward for one in drawn if one.reward is not None]
    fields: dict[str, Any] = {
        "sample_id": sample_id,
        "reason": "quota",
        "simulations": 5,
        "nodes": len(drawn),
        "expanded": 3,
        "answers": len(rewards),
        "best_reward": max(rewards, default=-1.0),
        "mean_reward": drawn[0].q if drawn else 0.0,
        "pairs": sum(one.role == "chosen" for one in drawn),
        "requests": 3,
        "judge_calls": 0,
        "prompt_tokens": 7_245,
        "decoded_tokens": 281,
        "sequences": 9,
        "prompt_length": 805,
        "node_tokens": 112,
        "question": "What will the weather be like in San Francisco over the next three days, in degrees Celsius?",
        "truth": "[get_forecast(city='San Francisco, CA', unit='celsius', days=3)]",
        "drawn": tuple(drawn),
    }
    return TreeRecord(**fields | changes)


def example(sample_id: str, *, tools: int = 8, words: int = 1_400) -> Example:
    """A prompt of about 2,000 tokens by default."""
    asked = "What will the weather be like in San Francisco over the next three days, in degrees Celsius?"
    defined = tuple(
        {
            "name": f"get_forecast_{k}" if k else "get_forecast",
            "description": "Daily forecast of a place. " * 4,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        }
        for k in range(tools)
    )
    return Example(
        id=sample_id,
        messages=(
            Message(role="system", content="You answer with calls. " + "Careful words matter. " * (words // 3)),
            Message(role="user", content=asked),
        ),
        tools=defined,
        answer="[get_forecast(city='San Francisco, CA', unit='celsius', days=3)]",
        calls=(ToolCall(name="get_forecast", arguments={"days": 3}),),
        bucket="hard",
        source="made up",
        prompt_ids=tuple(range(2_014)),
        answer_ids=(1, 2),
    )


def shown_trees(iterations: Sequence[int] = (1, 2)) -> tuple[ShownTree, ...]:
    """For each iteration: the widest gap, one that found nothing right, one without a pair."""
    lost = (
        node(-1, "", visits=6, q=-0.7),
        node(0, "[book_table(", visits=4, q=-0.55, prior=0.6, standing="wrong"),
        node(1, "name='Da Enzo', people=2)]", visits=4, q=-0.55, reward=-0.55, ending="stop", standing="wrong"),
        node(0, "[reserve(place='Da Enzo", visits=2, q=-1.0, prior=0.4, reward=-1.0, ending="length", standing="wrong"),
    )
    same = (
        node(-1, "", visits=3, q=1.0),
        node(0, "[get_forecast(city='Oslo')]", visits=3, q=1.0, reward=1.0, ending="stop", standing="right"),
    )
    found = []
    for i in iterations:
        for why, name, drawn, reason in (
            (Why.GAP, "toolace/1042", weather_tree(), "quota"),
            (Why.FAILED, "toolace/0077", lost, "budget"),
            (Why.NO_PAIR, "toolace/2310", same, "agreed"),
        ):
            made = record(name, drawn, reason=reason)
            found.append(ShownTree(iteration=i, why=why, record=made, example=example(name)))
    return tuple(found)


def hostile_tree() -> ShownTree:
    """Every hostile text as a step, as the question, as the truth, as a role's message and as a tool's name."""
    drawn = (node(-1, "", visits=6), *(node(0, text, prior=0.2, role="rejected") for text in HOSTILE))
    plain = example("x")
    bad = Example(
        id="x",
        messages=tuple(Message(role="user", content=text) for text in HOSTILE),
        tools=tuple({"name": text, "description": text} for text in HOSTILE),
        answer=HOSTILE[0],
        calls=plain.calls,
        bucket="hard",
        source="made up",
    )
    made = record("<b>" + "i" * 300, drawn, question="".join(HOSTILE), truth="".join(HOSTILE))
    return ShownTree(iteration=1, why=Why.GAP, record=made, example=bad)


def searched(trees: Sequence[ShownTree]) -> tuple[Searched, ...]:
    numbers = sorted({tree.iteration for tree in trees})
    return tuple(
        Searched(iteration=i, records=tuple(tree.record for tree in trees if tree.iteration == i)) for i in numbers
    )
