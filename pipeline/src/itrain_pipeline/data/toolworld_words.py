"""The words of toolworld: actions, things, parameter concepts, and how a question speaks of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

ValueKind = Literal["name", "title", "code", "date", "time", "small", "amount", "decimal", "choice", "flag", "names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A parameter's meaning. A tool writes it under one of `names`; a question says it by one of `phrases`.

    `choices` map an enum's or flag's phrase to its value; for the other kinds `{v}` in a phrase takes the value.
    """

    key: str
    json_type: str
    kind: ValueKind
    names: tuple[str, ...]
    description: str
    phrases: tuple[str, ...] = ()
    choices: tuple[tuple[str, str | bool], ...] = ()
    low: int = 0
    high: int = 0


ACTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "find": ("find", "search for"),
    "book": ("book", "reserve"),
    "cancel": ("cancel",),
    "list": ("list", "show"),
    "update": ("update", "change"),
    "create": ("create", "make"),
    "delete": ("delete", "remove"),
    "compare": ("compare",),
    "track": ("track",),
    "share": ("share", "send"),
    "order": ("order", "buy"),
    "rent": ("rent", "hire"),
}

THINGS: Final[tuple[str, ...]] = (
    "flight", "hotel", "recipe", "movie", "song", "train", "car", "ticket", "meal", "game", "lesson", "parcel",
    "bike", "boat", "garden", "lamp", "phone", "camera", "chair", "table", "concert", "museum", "tour", "meeting",
    "report", "video", "house", "doctor", "room", "shop", "menu", "coat", "shoe", "ring", "clock", "piano",
)  # fmt: skip

CONCEPTS: Final[tuple[Concept, ...]] = (
    Concept(
        key="city",
        json_type="string",
        kind="name",
        names=("city", "town", "place", "location"),
        description="city",
        phrases=("in {v}", "near {v}", "around {v}"),
    ),
    Concept(
        key="origin",
        json_type="string",
        kind="name",
        names=("origin", "from_city", "start", "departure"),
        description="where it starts",
        phrases=("from {v}", "leaving {v}", "starting at {v}"),
    ),
    Concept(
        key="destination",
        json_type="string",
        kind="name",
        names=("destination", "to_city", "target", "arrival"),
        description="where it ends",
        phrases=("to {v}", "bound for {v}", "going to {v}"),
    ),
    Concept(
        key="person",
        json_type="string",
        kind="name",
        names=("name", "user", "customer", "client"),
        description="person",
        phrases=("for {v}", "under the name {v}", "on behalf of {v}"),
    ),
    Concept(
        key="maker",
        json_type="string",
        kind="name",
        names=("brand", "maker", "vendor", "company"),
        description="company",
        phrases=("by {v}", "made by {v}", "of the brand {v}"),
    ),
    Concept(
        key="title",
        json_type="string",
        kind="title",
        names=("title", "label", "heading", "subject"),
        description="title",
        phrases=("titled {v}", "called {v}", "with the title {v}"),
    ),
    Concept(
        key="code",
        json_type="string",
        kind="code",
        names=("code", "ref", "ticket_id", "key"),
        description="reference code",
        phrases=("with code {v}", "under reference {v}", "with the key {v}"),
    ),
    Concept(
        key="date",
        json_type="string",
        kind="date",
        names=("date", "day", "when", "due_date"),
        description="date",
        phrases=("on {v}", "dated {v}", "for the day {v}"),
    ),
    Concept(
        key="time",
        json_type="string",
        kind="time",
        names=("time", "hour", "at_time", "clock_time"),
        description="time of day",
        phrases=("at {v}", "at the time {v}", "by {v} sharp"),
    ),
    Concept(
        key="days",
        json_type="integer",
        kind="small",
        names=("days", "num_days", "duration", "length"),
        description="number of days",
        phrases=("for {v} days", "lasting {v} days", "over {v} days"),
        low=2,
        high=60,
    ),
    Concept(
        key="limit",
        json_type="integer",
        kind="small",
        names=("limit", "count", "max_results", "top"),
        description="number of results",
        phrases=("showing {v} results", "with at most {v} results", "limited to {v} results"),
        low=2,
        high=99,
    ),
    Concept(
        key="people",
        json_type="integer",
        kind="small",
        names=("people", "guests", "seats", "party_size"),
        description="number of people",
        phrases=("for {v} people", "with {v} seats", "for a group of {v}"),
        low=2,
        high=40,
    ),
    Concept(
        key="price",
        json_type="integer",
        kind="amount",
        names=("max_price", "budget", "price", "cost"),
        description="price in dollars",
        phrases=("under {v} dollars", "costing up to {v} dollars", "at a price of {v} dollars"),
        low=100,
        high=9999,
    ),
    Concept(
        key="rating",
        json_type="number",
        kind="decimal",
        names=("rating", "min_rating", "stars", "score"),
        description="lowest rating",
        phrases=("rated {v} or better", "with a rating of {v}", "with {v} stars"),
        low=11,
        high=99,
    ),
    Concept(
        key="distance",
        json_type="number",
        kind="decimal",
        names=("radius", "distance", "range", "max_km"),
        description="distance in km",
        phrases=("within {v} km", "no more than {v} km away", "at a distance of {v} km"),
        low=11,
        high=999,
    ),
    Concept(
        key="unit",
        json_type="string",
        kind="choice",
        names=("unit", "units", "system", "scale"),
        description="unit system",
        choices=(("in metric units", "metric"), ("in imperial units", "imperial")),
    ),
    Concept(
        key="size",
        json_type="string",
        kind="choice",
        names=("size", "fit", "dimension", "volume"),
        description="size",
        choices=(("in a small size", "small"), ("in a medium size", "medium"), ("in a large size", "large")),
    ),
    Concept(
        key="order",
        json_type="string",
        kind="choice",
        names=("order", "sort", "sort_by", "direction"),
        description="sort order",
        choices=(("in rising order", "asc"), ("in falling order", "desc")),
    ),
    Concept(
        key="urgent",
        json_type="boolean",
        kind="flag",
        names=("urgent", "express", "priority", "fast"),
        description="whether it is urgent",
        choices=(("as fast as possible", True), ("without any hurry", False)),
    ),
    Concept(
        key="notify",
        json_type="boolean",
        kind="flag",
        names=("notify", "alert", "reminder", "message"),
        description="whether to send a message",
        choices=(("with a message to me", True), ("without a message", False)),
    ),
    Concept(
        key="tags",
        json_type="array",
        kind="names",
        names=("tags", "labels", "keywords", "topics"),
        description="list of topics",
        phrases=("about {v}", "on the topics {v}", "tagged {v}"),
    ),
)

OPENERS: Final[tuple[str, ...]] = (
    "{do}.",
    "Please {do}.",
    "Can you {do}?",
    "I want to {do}.",
    "I would like to {do}, please.",
    "Help me to {do}.",
)
FRONTED: Final = "{where}, {do}."
"""One phrase moved to the front."""

JOINERS: Final[tuple[str, ...]] = (" Then {rest}", " Also, {rest}", " After that, {rest}")

ONSETS: Final[tuple[str, ...]] = (
    "b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr",
)  # fmt: skip
VOWELS: Final[tuple[str, ...]] = ("a", "e", "i", "o", "u")
CODAS: Final[tuple[str, ...]] = ("", "", "", "n", "r", "l", "s")

NO_FIT: Final = "None of the functions fits this request."
ASK_BACK: Final = "Please tell me the {name}."
