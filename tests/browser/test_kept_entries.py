"""A phone keeps what was entered on it, and offers it to a server that was restored from an older backup."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.ledger.audit import audit
from protocol.messages import DoorOpened
from tests.browser.conftest import PHONE, follow
from tests.fleet_server.fixtures import send
from tests.fleet_server.machine import Machine
from tests.fleet_server.recovery.databases import backed_up, put_back, table
from tests.fleet_server.web.orders import released_order
from tests.fleet_server.web.site import PASSWORD, Site, serving

pytestmark = pytest.mark.browser


@pytest.fixture
def database_url(owner_url: str) -> str:
    """Restoring makes the tables anew, which is their owner's work."""
    return owner_url


@pytest.fixture
def phone(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport=PHONE, locale="zh-CN")  # type: ignore[arg-type]
    yield context.new_page()
    context.close()


def signs_in(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/work-orders")
    page.fill("input[name=user]", "restocker")
    page.fill("input[name=password]", PASSWORD)
    follow(page, "main button")


def works(page: Page) -> None:
    """Pick, count and fill slot 1; three entries, and a pick."""
    follow(page, "main a[href^='/work-orders/']")
    follow(page, "main form button")
    follow(page, "a.machine")
    follow(page, "form[action$=arrive] button")
    page.fill("input[name=session]", "424242")
    page.fill("input[name=count-1]", "0")
    page.fill("input[name=count-2]", "0")
    follow(page, "form[action$=count] button")
    page.fill("input[name^=refill-1]", "5")
    follow(page, "form[action$=refill] button")


def books(database: Database) -> list[Any]:
    queries = (
        "SELECT account, product, lot, units FROM balances WHERE units <> 0 ORDER BY 1, 2, 3",
        "SELECT dispenser_id, slot, book::text FROM slot_books ORDER BY 1, 2",
        "SELECT operation_id, payload::text, state FROM operations ORDER BY 1",
    )
    return [table(database, query) for query in queries]


@pytest.mark.parametrize("order_is_known", [True, False])
def test_what_a_phone_entered_since_the_backup_comes_back_from_the_phone_by_itself(
    database: Database, database_url: str, phone: Page, tmp_path: Path, order_is_known: bool
) -> None:
    now = system_now()
    moment = {"at_ms": int(now.timestamp() * 1000)}
    machine = Machine().tell(DoorOpened(**Machine().when() | moment, session="424242", authorised=True))
    with ExitStack() as running:
        site = running.enter_context(serving(database_url, ["restocker"]))
        before = backed_up(database, tmp_path / "before")
        released_order(site)
        path = backed_up(database, tmp_path / "released") if order_is_known else before
        send(database, machine, now=now)
        signs_in(phone, site)
        works(phone)
        undisturbed = books(database)
        expect(phone.locator("#offered")).to_be_hidden()
        port = urlsplit(site.url).port or 0
    put_back(database, path)

    with serving(database_url, [], port) as site:
        signs_in(phone, site)
        expect(phone.locator("#offered")).to_contain_text("已补录 4 条")
        send(database, machine, now=now)
        assert books(database) == undisturbed
        with database.begin() as connection:
            assert audit(connection).differences == []
        phone.reload()
        expect(phone.locator("#offered")).to_be_hidden()


def test_a_phone_that_cannot_offer_says_so_and_the_next_page_tries_again(
    database: Database, database_url: str, phone: Page, tmp_path: Path
) -> None:
    with ExitStack() as running:
        site = running.enter_context(serving(database_url, ["restocker"]))
        released_order(site)
        path = backed_up(database, tmp_path)
        signs_in(phone, site)
        works(phone)
        port = urlsplit(site.url).port or 0
    put_back(database, path)

    with serving(database_url, [], port) as site:
        phone.route("**/api/v1/recovery/operations", lambda route: route.abort())
        signs_in(phone, site)
        expect(phone.locator("#offered")).to_contain_text("暂时无法上报")
        assert table(database, "SELECT kind FROM operations WHERE visit_id IS NOT NULL") == []
        phone.unroute("**/api/v1/recovery/operations")
        phone.reload()
        expect(phone.locator("#offered")).to_contain_text("已补录 4 条")
