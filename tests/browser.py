"""A headless Chromium for the tests of pages, and a record of what a page does.

Needs the Python package playwright and a Chromium of the system (Debian: ``apt-get install
chromium``). Without them tests skip, unless the environment has ``REQUIRE_CHROMIUM=1``.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
]


@contextmanager
def chromium() -> Iterator:
    """Run a browser with a fresh profile; skip, or fail where it is required, without one."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if program is None or sync_playwright is None:
        missing = "Debian's package chromium" if program is None else "pip install playwright"
        reason = f"tests of pages need a browser: {missing} is missing"
        if os.environ.get("REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that is open, with everything that it asked for and complained of.

    Parameters
    ----------
    browser : of `chromium`.
    path : HTML file.
    options : of a browser context, such as ``viewport`` and ``color_scheme``.
    """

    def __init__(self, browser, path: Path, **options) -> None:
        self.folder = path.parent
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.goto(path.as_uri(), wait_until="load")

    def _failed(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the player stops reading what it has enough of
            self.complaints.append(f"{request.url}: {request.failure}")

    def check(self) -> None:
        """Fail if the page complained, or asked for anything outside its folder."""
        assert self.complaints == []
        assert self.requests, "the record works"
        own = (self.folder.as_uri() + "/", "data:", "blob:")
        assert [url for url in self.requests if not url.startswith(own)] == []

    def close(self) -> None:
        """Close the page and forget its profile."""
        self.context.close()
