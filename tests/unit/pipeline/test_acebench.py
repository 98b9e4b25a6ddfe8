"""ACEBench's single-answer part: its public shape, and its rules on rows made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from itrain_pipeline.data.sources import read_rows
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.evals.acebench import CATEGORIES, SPECIAL, AceBench, accepts, read_item
from itrain_pipeline.evals.benchmark import Answer, Judgement, Opening, open_benchmark
from itrain_pipeline.evals.errors import ErrorClass
from itrain_pipeline.evals.metrics import Rate
from itrain_pipeline.ports import Store
from itrain_pipeline.toolcalls.parse import parse

TOOLS = [
    {
        "name": "plan_trip",
        "description": "Plans a trip.",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string"}, "days": {"type": "integer"}, "stops": {"type": "array"}},
            "required": ["to", "days"],
        },
    },
    {
        "name": "set_alarm",
        "description": "Sets an alarm.",
        "arguments": {"type": "object", "properties": {"on": {"type": "boolean"}, "at": {"type": "object"}}},
        "results": {"type": "object"},
        "tags": ["x"],
    },
]
TRIP = {"plan_trip": {"to": "North Cape", "days": 3, "stops": ["Alta"]}}


def row(at: int = 0, **changes: Any) -> dict[str, Any]:
    return {"id": f"row_{at}", "question": "user: A trip!\n", "function": TOOLS, "time": "Today is Sunday.", **changes}


def judged(truth: Any, text: str, category: str = CATEGORIES[0]) -> Judgement:
    item = read_item(category, row(), {"ground_truth": truth}, "here")
    return AceBench(questions=[], sha256="").judge(item, Answer(text=text, parsed=parse(text, "pythonic")))


def verdict(truth: Any, text: str, category: str = CATEGORIES[0]) -> tuple[bool, ErrorClass | None]:
    found = judged(truth, text, category)
    return found.correct, found.error_class


def write_set(folder: Path, rows: int = 2) -> Path:
    (folder / "possible_answer").mkdir()
    for category in CATEGORIES:
        truth: Any = {"special_error_param": {"days": ["-1"]}, "special_irrelevant": "Cannot."}.get(category, TRIP)
        if category == "special_incomplete":
            truth = {"plan_trip": ["days"]}
        questions = [row(at) for at in range(rows)]
        answers = [{"id": f"row_{at}", "ground_truth": truth} for at in range(rows)]
        for name, lines in ((f"data_{category}.json", questions), (f"possible_answer/data_{category}.json", answers)):
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def opening(folder: Path, *categories: str, limit: int = 0) -> Opening:
    def rows(uri: str) -> list[object]:
        return list(read_rows(uri, "messages", store=cast("Store", None), scratch=Path()))

    return Opening(uri=str(folder), categories=categories, limit=limit, read=rows)


def test_a_folder_in_its_public_shape_is_read_whole_or_by_category(tmp_path: Path) -> None:
    write_set(tmp_path)
    every = open_benchmark("acebench", opening(tmp_path))
    assert [item.category for item in every.items()] == [name for name in CATEGORIES for _ in range(2)]
    some = open_benchmark("acebench", opening(tmp_path, "special_irrelevant", CATEGORIES[0], limit=1))
    assert [item.category for item in some.items()] == [CATEGORIES[0], "special_irrelevant"]
    assert some.info() != every.info()


def test_a_question_is_shown_with_its_tools_and_the_date_or_profile() -> None:
    plain = read_item(CATEGORIES[0], row(), {"ground_truth": TRIP}, "here")
    assert [(m.role, m.content) for m in plain.messages] == [("system", "Today is Sunday."), ("user", "user: A trip!")]
    assert [sorted(tool) for tool in plain.tools] == [["description", "name", "parameters"]] * 2
    assert plain.tools[1]["parameters"]["properties"].keys() == {"on", "at"}
    liked = read_item("normal_preference", row(time="", profile="Likes trains."), {"ground_truth": TRIP}, "here")
    assert liked.messages[0].content == "Likes trains."
    special = read_item("special_irrelevant", row(), {"ground_truth": "No."}, "here")
    assert "the limitations of the function" in special.messages[0].content


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[plan_trip(to='north cape', days=3, stops=['alta'])]", None),
        ("[plan_trip(days=3, to='the North Cape', stops=['Alta'])]", None),
        ("[plan_trip(to='North Cape', days=3)]", None),
        ("[plan_trip(to='North', days=3, stops=['Alta'])]", ErrorClass.PARAMETER_VALUE),
        ("[plan_trip(to='North Cape', days=4, stops=['Alta'])]", ErrorClass.PARAMETER_VALUE),
        ("[plan_trip(to='North Cape', days='3', stops=['Alta'])]", ErrorClass.PARAMETER_TYPE),
        ("[plan_trip(to='North Cape', days=3, stops=['Alta', 'Bodø'])]", ErrorClass.PARAMETER_VALUE),
        ("[plan_trip(to='North Cape', stops=['Alta'])]", ErrorClass.MISSING_PARAMETER),
        ("[plan_trip(where='North Cape', days=3)]", ErrorClass.PARAMETER_NAME),
        ("[plan_trip(to='North Cape', days=3, guide=True)]", ErrorClass.EXTRA_PARAMETER),
        ("[set_alarm(to='North Cape', days=3)]", ErrorClass.TOOL_NAME),
        ("[plan_trip(to='North Cape', days=3), set_alarm(on=True)]", ErrorClass.CALL_COUNT),
        ("Where to?", ErrorClass.MISSED_CALL),
        ("[plan_trip(to='North", ErrorClass.FORMAT),
    ],
)
def test_calls_are_judged_by_its_rules(text: str, error: ErrorClass | None) -> None:
    assert verdict(TRIP, text) == (error is None, error)


def test_a_tool_called_twice_is_numbered_in_the_gold() -> None:
    twice = {"set_alarm_1": {"on": True}, "set_alarm_2": {"on": False}}
    assert verdict(twice, "[set_alarm(on=False), set_alarm(on='true')]") == (True, None)
    assert verdict(twice, "[set_alarm(on=False), set_alarm(on=False)]") == (False, ErrorClass.PARAMETER_VALUE)


def test_any_alternative_is_right() -> None:
    either = [{"set_alarm": {"on": True}}, {"set_alarm": {"at": {"hour": 7, "place": "Bed Room"}}}]
    assert verdict(either, "[set_alarm(at={'place': 'the bed-room', 'hour': 7})]") == (True, None)
    assert verdict(either, "[set_alarm(at={'place': 'bedroom'})]") == (False, ErrorClass.PARAMETER_VALUE)


@pytest.mark.parametrize(
    ("category", "truth", "text", "error"),
    [
        ("special_irrelevant", "x", '["Due to the limitations of the function, I cannot solve this problem."]', None),
        ("special_irrelevant", "x", "I cannot help.", ErrorClass.FORMAT),
        ("special_irrelevant", "x", "[set_alarm(on=True)]", ErrorClass.HALLUCINATED_CALL),
        ("special_incomplete", {"f": ["a", "b"]}, '["Missing necessary parameters (a, b) for the api (f)"]', None),
        (
            "special_incomplete",
            {"zap": ["a"]},
            "Missing necessary parameters (a) for the api (f)",
            ErrorClass.TOOL_NAME,
        ),
        ("special_incomplete", {"f": ["z"]}, "Missing necessary parameters (a): f", ErrorClass.MISSING_PARAMETER),
        ("special_error_param", {"d": ["1-2"]}, '["There is incorrect value (1-2) for the parameters (d)"]', None),
        ("special_error_param", {"d": ["12"]}, "There is incorrect value (1)", ErrorClass.PARAMETER_VALUE),
    ],
)
def test_what_is_wrong_with_a_request_has_to_be_said_in_its_words(
    category: str, truth: Any, text: str, error: ErrorClass | None
) -> None:
    assert verdict(truth, text, category) == (error is None, error)


def test_groups_are_means_over_categories_and_missing_ones_are_missing() -> None:
    ace = AceBench(questions=[], sha256="")
    rates = {name: Rate(correct=at, n=4) for at, name in enumerate(SPECIAL)}
    found = ace.groups(rates)
    assert found["normal/accuracy"] is None
    special = found["special/accuracy"]
    assert special is not None
    assert (special.value, special.n) == (0.25, 12)


def test_values_are_accepted_as_it_accepts_them() -> None:
    assert accepts("In Oslo, Norway", "oslo norway")
    assert not accepts("Oslo", "Oslo, Norway")
    assert accepts(["A-b"], ["ab"])
    assert not accepts(["x ab"], ["ab"])
    assert not accepts({"a": 1, "b": 2}, {"a": 1})
    assert not accepts(True, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"function": None}, "not ACEBench's shape"),
        ({"question": 7}, "not ACEBench's shape"),
        ({"function": [{"name": "other", "description": "", "parameters": {}}]}, "'plan_trip', which is none of its"),
    ],
)
def test_a_row_of_another_shape_is_refused_by_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"file row 7: .*{reason}"):
        read_item(CATEGORIES[0], row(**change), {"ground_truth": TRIP}, "file row 7")


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    with pytest.raises(ConfigError, match="acebench has no category 'normal'; allowed are normal_single_turn_single"):
        open_benchmark("acebench", opening(tmp_path, "normal"))
    answers = tmp_path / "possible_answer" / "data_special_irrelevant.json"
    answers.write_text("".join(reversed(answers.read_text().splitlines(keepends=True))))
    with pytest.raises(DataError, match="questions and possible_answer have other ids or another order"):
        open_benchmark("acebench", opening(tmp_path))
    answers.unlink()
    with pytest.raises(DataError, match=r"possible_answer/data_special_irrelevant\.json: there is no such file"):
        open_benchmark("acebench", opening(tmp_path))
