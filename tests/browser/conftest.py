"""Pages are looked at in the distribution's Chromium."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from fleet_server.database import Database
from tests.fleet_server.fixtures import database
from tests.fleet_server.web.site import PASSWORD, Site, serving

__all__ = ["database"]

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 800}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(database: Database, database_url: str) -> Iterator[Site]:
    with serving(database_url) as running:
        yield running


def is_error(message: ConsoleMessage) -> bool:
    """Whether the console shows an error; a refusal that a test provokes (409) is shown there too, and is none."""
    return message.type == "error" and "409 (Conflict)" not in message.text


Opener = Callable[..., Page]


@pytest.fixture
def sign_in(chromium: Browser, site: Site) -> Iterator[Opener]:
    """Open a page as somebody; a script error, or a page wider than its screen, fails the test."""
    opened: list[tuple[Page, list[str]]] = []

    def open_page(role: str, *, phone: bool = False) -> Page:
        page = chromium.new_context(viewport=PHONE if phone else DESK, locale="zh-CN").new_page()  # type: ignore[arg-type]
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
        opened.append((page, errors))
        page.goto(f"{site.url}/sign-in")
        page.fill("input[name=user]", role)
        page.fill("input[name=password]", PASSWORD)
        page.click("main button")
        page.wait_for_url(lambda url: "sign-in" not in url)
        return page

    yield open_page
    for page, errors in opened:
        assert errors == []
        page.context.close()


def follow(page: Page, selector: str) -> None:
    """Click what leads to another page, or sends a form, and wait until that page is there."""
    with page.expect_navigation():
        page.click(selector)


def fits(page: Page) -> bool:
    """Whether nothing reaches beyond the screen's width."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))
