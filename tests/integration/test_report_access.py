"""Report and comparison in a real browser for everybody: both themes, small windows, no mouse, no sight, on paper."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from itrain_pipeline.evals.comparison import build_comparison
from itrain_pipeline.evals.report import build_report
from itrain_testing.browser import open_page
from itrain_testing.comparedruns import three_runs
from itrain_testing.pagechecks import faint_texts, heading_levels, tabbed, table_faults
from itrain_testing.reports import report_data
from itrain_testing.searchedtrees import searched, shown_trees

PAGES = ("report", "comparison")
SECTIONS = {
    "report": ["curve", "categories", "errors", "losses", "perplexity", "search", "trees", "costs", "facts"],
    "comparison": ["differs", "curve", "paired", "categories", "errors", "costs"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    trees = shown_trees()
    texts = {
        "report": build_report(report_data(trees=trees, searched=searched(trees))),
        "comparison": build_comparison(three_runs()),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("width", [1280, 768, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_quietly_fits_its_window_and_has_its_sections(
    started: Any, files: dict[str, Path], name: str, width: int
) -> None:
    opened = open_page(started, files[name], width=width, scheme="dark")
    assert opened.complaints == []
    assert opened.requests == [files[name].as_uri()]
    assert opened.overflow() <= 0
    shown = [heading.get_attribute("id") for heading in opened.page.locator("h2:visible").all()]
    assert shown == SECTIONS[name]
    links = [link.get_attribute("href") for link in opened.page.locator("nav a").all()]
    assert links == [f"#{section}" for section in SECTIONS[name]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_stands_out_from_its_ground(started: Any, files: dict[str, Path], name: str, scheme: str) -> None:
    page = open_page(started, files[name], width=1280, scheme=scheme).page
    assert faint_texts(page) == []


def test_the_check_of_contrast_finds_a_faint_text(started: Any, tmp_path: Path) -> None:
    file = tmp_path / "faint.html"
    file.write_text("<p style='color:#999'>faint</p><p style='color:#333'>plain</p><h1 style='color:#888'>large</h1>")
    assert [text for text, _, _ in faint_texts(open_page(started, file, width=400).page)] == ["faint"]


@pytest.mark.parametrize("name", PAGES)
def test_headings_leave_out_no_level(started: Any, files: dict[str, Path], name: str) -> None:
    levels = heading_levels(open_page(started, files[name], width=1280).page)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels)), levels


@pytest.mark.parametrize("name", PAGES)
def test_tables_and_charts_are_told_to_those_who_do_not_see_them(
    started: Any, files: dict[str, Path], name: str
) -> None:
    page = open_page(started, files[name], width=1280).page
    assert table_faults(page) == []
    charts = page.locator("svg.chart").all()
    assert charts
    for chart in charts:
        assert chart.get_attribute("role") == "img"
        assert len(chart.get_attribute("aria-label") or "") > 20


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(started: Any, files: dict[str, Path], name: str) -> None:
    page = open_page(started, files[name], width=400, scripts=True).page
    focused = tabbed(page, 120)
    assert len(focused) < 120, "the way through the page ends"
    assert [one for one in focused if not (one["outlined"] and one["visible"] and one["name"])] == []
    names = [one["name"] for one in focused]
    regions = page.locator("[role=region]:visible").count()
    assert sum(one["tag"] in ("div", "pre") for one in focused) == regions
    if name == "report":
        assert "Iteration 2" in names
        assert sum(text.startswith("The whole prompt") for text in names) == 3


def test_the_keyboard_opens_a_tree_its_prompt_and_scrolls_a_table(started: Any, files: dict[str, Path]) -> None:
    page = open_page(started, files["report"], width=400).page
    folded = page.locator("details.iteration").first
    folded.locator("> summary").focus()
    page.keyboard.press("Enter")
    assert folded.locator("article.tree").first.is_visible()
    prompt = folded.locator("details.prompt").first
    prompt.locator("> summary").focus()
    page.keyboard.press("Space")
    assert prompt.locator("pre").first.is_visible()
    table = page.locator("#categories ~ .scroll").first
    table.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_a_reader_hears_how_deep_a_step_lies(started: Any, files: dict[str, Path]) -> None:
    page = open_page(started, files["report"], width=1280).page
    steps = page.locator("article.tree:visible").first.get_by_role("list", name="steps of the tree")
    told = [item.inner_text() for item in steps.get_by_role("listitem").all()]
    assert told[0].startswith("The answer begins")
    assert told[1].startswith("Depth 1:")
    exported = page.get_by_role("columnheader", name="Iteration 2 (exported)")
    assert exported.count() >= 1


@pytest.mark.parametrize("name", PAGES)
def test_figures_of_a_table_are_seen_beside_their_names_on_a_telephone(
    started: Any, files: dict[str, Path], name: str
) -> None:
    """The first column stays while the others scroll: it must leave them room."""
    page = open_page(started, files[name], width=400).page
    for table in page.locator(".scroll").all():
        first = table.locator("tbody tr:not(.group) th").first.bounding_box()
        assert first["width"] < 0.62 * table.bounding_box()["width"], table.get_attribute("aria-label")


@pytest.mark.parametrize("name", PAGES)
def test_paper_is_light_and_cuts_nothing_off(started: Any, files: dict[str, Path], name: str) -> None:
    page = open_page(started, files[name], width=700, scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(35, 38, 43)"
    hidden = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => getComputedStyle(e).overflowX !== 'visible').length"
    )
    assert hidden == 0
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert faint_texts(page) == []
