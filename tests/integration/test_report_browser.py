"""The report in a real browser: trees are seen on a desk and a telephone, and what a model says stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from itrain_pipeline.evals.report import build_report
from itrain_testing.browser import open_page
from itrain_testing.reports import report_data
from itrain_testing.searchedtrees import HOSTILE, hostile_tree, searched, shown_trees

WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trees = shown_trees()
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(build_report(report_data(trees=trees, searched=searched(trees))), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trees = (hostile_tree(),)
    file = tmp_path_factory.mktemp("hostile") / "report.html"
    file.write_text(build_report(report_data(trees=trees, searched=searched(trees))), encoding="utf-8")
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_loads_quietly_and_fits_its_window(started: Any, report: Path, width: int, scheme: str) -> None:
    opened = open_page(started, report, width=width, scheme=scheme)
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    assert opened.overflow() <= 0


@pytest.mark.parametrize("width", WIDTHS)
def test_the_last_iterations_trees_are_seen_with_every_figure_and_without_scripts(
    started: Any, report: Path, width: int
) -> None:
    page = open_page(started, report, width=width, scripts=False).page
    shown = page.locator("article.tree:visible")
    assert shown.count() == 3
    first = shown.first
    assert first.locator("h4").inner_text() == "The widest gap between chosen and rejected"
    assert first.locator(".tag.chosen:visible").count() == 2
    assert first.locator(".tag.rejected:visible").count() == 2
    chosen = first.locator(".step.chosen").first
    assert "[get_forecast(" in chosen.inner_text()
    assert [chosen.locator(f".figures dt:text-is('{name}')").count() for name in ("Q", "visits", "prior")] == [1, 1, 1]
    assert "+0.55" in chosen.inner_text()


def test_an_earlier_iteration_is_folded_and_opens_without_scripts(started: Any, report: Path) -> None:
    page = open_page(started, report, width=400, scripts=False).page
    folded = page.locator("details.iteration").first
    assert folded.locator("article.tree").first.is_visible() is False
    folded.locator("summary").first.click()
    assert folded.locator("article.tree").first.is_visible() is True


@pytest.mark.parametrize("width", WIDTHS)
def test_a_prompt_of_two_thousand_tokens_is_folded_and_fits_when_opened(started: Any, report: Path, width: int) -> None:
    opened = open_page(started, report, width=width)
    prompt = opened.page.locator("article.tree:visible details.prompt").first
    before = opened.page.evaluate("document.documentElement.scrollHeight")
    assert prompt.locator("pre").first.is_visible() is False
    prompt.locator("summary").first.click()
    assert prompt.locator("pre").first.is_visible() is True
    assert prompt.locator("pre:visible").count() == 2, "the tools stay folded"
    prompt.locator("details summary").first.click()
    assert "get_forecast" in prompt.locator("details pre").first.inner_text()
    assert opened.overflow() <= 0
    assert opened.page.evaluate("document.documentElement.scrollHeight") - before < 2_500


@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_output_stays_text(started: Any, hostile: Path, width: int) -> None:
    opened = open_page(started, hostile, width=width)
    page = opened.page
    assert opened.complaints == []
    assert opened.requests == [hostile.as_uri()]
    assert opened.overflow() <= 0
    assert "owned" not in page.title()
    assert page.locator("script, img, article h1").count() == 0
    steps = page.locator(".steps .text").all_inner_texts()
    assert steps[0] == HOSTILE[0]
    assert steps[1] == HOSTILE[1]
    assert "{{ 7 * 7 }}" in steps[3]
    assert "&lt;b&gt;" in steps[3]
    assert steps[5].startswith("W" * 600)
    assert "(9,400 more characters)" in steps[5]
    page.locator("details.prompt > summary").click()
    for summary in page.locator("details.prompt details > summary").all():
        summary.click()
    assert opened.overflow() <= 0


def test_a_direction_mark_is_written_out_and_turns_nothing(started: Any, hostile: Path) -> None:
    page = open_page(started, hostile, width=1280).page
    text = page.locator(".steps .text").all_inner_texts()[2]
    assert text == "⟨U+202E⟩evil reversed⟨U+202C⟩ ⟨U+2067⟩ and more"
    body = page.content()
    assert not {"\u202e", "\u202c", "\u2067", "\x1b", "\a"} & set(body)
