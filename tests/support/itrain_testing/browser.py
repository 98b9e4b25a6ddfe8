"""Headless Chromium for pages: the one that is installed, or Debian's, installed where apt and root allow it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itrain_testing.apt import install_programs
from itrain_testing.gotools import ToolMissingError

ENV_CHROMIUM = "ITRAIN_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> Path:
    """The browser's program. Raises ToolMissingError that says why there is none."""
    found = _installed()
    if found is not None:
        return found
    try:
        install_programs(chromium="chromium")
    except ToolMissingError as error:
        raise ToolMissingError(f"no Chromium in {ENV_CHROMIUM}: {error}") from None
    return Path(str(shutil.which("chromium")))


def _installed() -> Path | None:
    named = os.environ.get(ENV_CHROMIUM)
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    return Path(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A page in the browser, and what it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return found


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(chromium()), args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


def open_page(started: Any, file: Path, *, width: int, scheme: str = "light", scripts: bool = True) -> Opened:
    """`file` in a window of this width, everything it prints and asks for recorded."""
    context = started.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
    )
    opened = Opened(page=context.new_page())
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(file.as_uri())
    return opened
