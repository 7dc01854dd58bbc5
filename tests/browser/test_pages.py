"""What people see and do in a real browser."""

import re
from datetime import timedelta

import pytest
from playwright.sync_api import expect

from fleet_server.clock import system_now
from fleet_server.ledger import depot, lots
from fleet_server.ledger.audit import audit
from protocol.messages import DoorClosed, DoorOpened
from tests.browser.conftest import Opener, fits, follow
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.machine import Machine
from tests.fleet_server.web.orders import released_order
from tests.fleet_server.web.site import Site
from tests.fleet_server.web.troubled import trouble_of_every_kind

pytestmark = pytest.mark.browser


def test_a_viewer_reads_the_fleet_in_chinese_and_in_english(site: Site, sign_in: Opener) -> None:
    send(site.database, Machine().door("111111").vend())
    page = sign_in("viewer")
    expect(page.locator("h1")).to_have_text(re.compile("[\u4e00-\u9fff]"))
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    expect(page.locator("a.machine")).to_have_count(2)
    follow(page, "a[lang=en]")
    expect(page.locator("h1")).to_have_text("Fleet")
    assert not re.search("[\u4e00-\u9fff]", page.locator("main").inner_text())
    page.click("text=needs attention")
    expect(page.locator("a.machine")).to_have_count(2)


def test_one_dispenser_shows_slots_lots_and_its_timeline(site: Site, sign_in: Opener) -> None:
    send(site.database, Machine().door("111111").vend())
    enter(
        site.database,
        operation("refill", "111111", 0, lot="L1", packs=5),
        operation("refill", "111111", 1, lot="L2", packs=3),
    )
    page = sign_in("supervisor")
    page.goto(f"{site.url}/dispensers/HD-001")
    text = page.locator("main").inner_text()
    assert "L1" in text
    assert "L2" in text
    assert "2029-01-01" in text
    page.set_viewport_size({"width": 360, "height": 740})
    assert fits(page)


def test_a_dispatcher_plans_reads_the_reasons_and_releases(site: Site, sign_in: Opener) -> None:
    send(site.database, Machine().door("111111").vend())
    page = sign_in("dispatcher")
    page.goto(f"{site.url}/plan")
    follow(page, "main button.secondary")
    expect(page.locator("ol.stops > li")).to_have_count(2)
    expect(page.locator("ol.stops > li").first.locator("ul li").first).not_to_be_empty()
    page.click(".actions form:first-child button")
    page.wait_for_url("**/work-orders")
    expect(page.locator("main a[href^='/work-orders/']")).to_have_count(1)


def test_a_restocker_carries_out_a_work_order_on_a_phone(site: Site, sign_in: Opener) -> None:
    """Pick, arrive, unlock, count blind, refill, close with the door shut, return; every page fits 360 px."""
    released_order(site)
    page = sign_in("restocker", phone=True)
    follow(page, "main a[href^='/work-orders/']")
    assert fits(page)
    assert page.locator("input[name^=pick-]").input_value() == "6"
    follow(page, "main form button")
    follow(page, "a.machine")
    follow(page, "form[action$=arrive] button")
    assert fits(page)
    follow(page, "form[action$=unlock] button")
    # The page enters with the wall clock, and the door's session is of the same time.
    now = system_now()
    moment = {"at_ms": int(now.timestamp() * 1000)}
    machine = Machine().tell(DoorOpened(**Machine().when() | moment, session="424242", authorised=True))
    send(site.database, machine, now=now)
    expect(page.locator("#door .dot.warn")).to_be_visible(timeout=8000)  # the door's state is live
    assert "500" not in page.locator("main").inner_text()  # blind: no book before the count
    page.fill("input[name=session]", "424242")
    page.fill("input[name=count-1]", "0")
    page.fill("input[name=count-2]", "0")
    follow(page, "form[action$=count] button")
    expect(page.locator("table")).to_be_visible()
    page.fill("input[name^=refill-1]", "5")
    assert fits(page)
    follow(page, "form[action$=refill] button")
    follow(page, "form[action$=close] button")
    expect(page.locator("#closing")).to_contain_text("请关好门")
    assert fits(page)
    machine.tell(DoorClosed(**machine.when() | moment, session="424242", open_ms=60_000))
    send(site.database, machine, now=now)
    page.wait_for_url("**/work-orders/WO-1")  # the page has gone on by itself
    assert page.locator("input[name^=return-]").input_value() == "1"
    follow(page, "form[action$=return] button")
    expect(page.locator("input[name^=return-]")).to_have_count(0)
    with site.database.begin() as connection:
        report = audit(connection)
    assert report.differences == []
    stock = site.api("dispatcher").get("/api/v1/stock", params={"account": "slot/HD-001"}).json()["items"]
    assert [(item["account"], item["lot"], item["units"]) for item in stock] == [("slot/HD-001/1", "L1", 5)]


def test_a_restocker_takes_out_what_soon_expires(site: Site, sign_in: Opener) -> None:
    released_order(site)
    now = system_now()
    with site.database.begin() as connection:
        lots.record_lot(connection, "CONDOM-M", "L9", now.date() + timedelta(days=20), now)
        depot.receive(connection, "receipt-L9", "HUANGDAO", [depot.StockLine("CONDOM-M", "L9", 5)], "test", now)
    machine = Machine()
    opened = DoorOpened(**machine.when() | {"at_ms": int(now.timestamp() * 1000)}, session="424242", authorised=True)
    send(site.database, machine.tell(opened), now=now)
    enter(site.database, operation("refill", "424242", 0, lot="L9", packs=5, entered_at=now))
    page = sign_in("restocker", phone=True)
    page.goto(f"{site.url}/visits/WO-1-01")
    follow(page, "form[action$=arrive] button")
    page.fill("input[name=session]", "424242")
    page.fill("input[name=count-1]", "5")
    page.fill("input[name=count-2]", "0")
    follow(page, "form[action$=count] button")
    assert "取出近效期" in page.locator("main").inner_text()
    assert page.locator("input[name=near_expiry-1-L9]").input_value() == "5"
    page.fill("input[name^=refill-1]", "0")
    follow(page, "form[action$=refill] button")
    stock = site.api("dispatcher").get("/api/v1/stock", params={"account": "quarantine"}).json()["items"]
    assert [(item["lot"], item["units"]) for item in stock] == [("L9", 5)]


def test_every_page_of_every_role_opens_without_an_error(site: Site, sign_in: Opener) -> None:
    send(site.database, Machine().door("111111").vend())
    released_order(site)
    for role in ("dispatcher", "restocker"):
        page = sign_in(role, phone=True)
        for path in (
            "/",
            "/dispensers/HD-001",
            "/plan",
            "/work-orders",
            "/work-orders/WO-1",
            "/visits/WO-1-01",
            "/depot",
        ):
            if role == "restocker" and path == "/plan":
                continue
            answer = page.goto(f"{site.url}{path}")
            assert answer is not None
            assert answer.status == 200, path
            assert fits(page), f"{role} {path}"


def test_a_supervisor_sees_what_is_wrong_on_desk_and_phone(site: Site, sign_in: Opener) -> None:
    trouble_of_every_kind(site.database)
    for phone in (False, True):
        page = sign_in("supervisor", phone=phone)
        follow(page, "nav a[href='/health']")
        expect(page.locator("article.trouble")).to_have_count(7)
        assert fits(page)
