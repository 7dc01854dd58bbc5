"""The pages as their server answers them: nobody waits for another's transaction, and errors are said in the reader's words."""

import inspect
import re
import threading
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from fleet_server.devices import outgoing
from fleet_server.faults.store import FaultChange, record
from fleet_server.web import api, pages, recovery_api, shell, visit_pages
from fleet_server.web.access import ACCESS
from fleet_server.web.words import FAULTS, TODO
from tests.fleet_server.fixtures import NOW
from tests.fleet_server.web.orders import released_order
from tests.fleet_server.web.site import Site


def test_a_form_that_waits_for_a_lock_keeps_nobody_else_waiting(site: Site) -> None:
    visit = f"/visits/{released_order(site)}-01"
    browser, another = site.browser("restocker"), site.browser("restocker")
    token = re.search(r'name="csrf" value="([^"]+)"', browser.get(visit).text)
    assert token
    answers: list[Any] = []
    with site.database.begin() as holder:
        holder.execute(text("SELECT 1 FROM stops FOR UPDATE"))
        form = threading.Thread(target=lambda: answers.append(browser.post(f"{visit}/arrive", data={"csrf": token[1]})))
        form.start()
        with site.database.begin() as looking:
            query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            while not looking.execute(query).scalar_one():
                pass
        assert another.get("/healthz").status_code == 200
        assert another.get(visit).status_code == 200
        assert another.get(f"{visit}/door").status_code == 200
    form.join(30)
    assert [answer.status_code for answer in answers] == [303]


def test_a_restocker_tells_the_machine_which_slot_is_free_again(site: Site) -> None:
    visit = f"/visits/{released_order(site)}-01"
    browser = site.browser("restocker")
    with site.database.begin() as connection:
        record(connection, [FaultChange("HD-001", "SLOT_JAM", opened=True, at=NOW, slot=2)])
    token = re.search(r'name="csrf" value="([^"]+)"', browser.get(visit).text)
    assert token
    form = {"csrf": token[1]}
    assert browser.post(f"{visit}/repaired", data=form | {"slot": "2"}).status_code == 409  # nobody is there yet
    assert browser.post(f"{visit}/arrive", data=form).status_code == 303
    assert 'name="slot" value="2"' in browser.get(visit).text
    assert browser.post(f"{visit}/repaired", data=form | {"slot": "9"}).status_code == 422
    assert browser.post(f"{visit}/repaired", data=form | {"slot": "2"}).status_code == 303
    with site.database.begin() as connection:
        (order,) = outgoing.pending(connection, "HD-001")
    assert (order.payload["kind"], order.payload["slot"]) == ("clear_jam", 2)


def test_no_route_works_in_the_event_loop() -> None:
    routers = (api.router, pages.router, recovery_api.router, shell.health, visit_pages.router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert {(method, route.path) for route in routes for method in route.methods or ()} == set(ACCESS) - {
        ("GET", "/openapi.json")
    }
    assert [route.path for route in routes if inspect.iscoroutinefunction(route.endpoint)] == []


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/plan", 403, "您的角色无权"),
        ("/visits/none", 404, "没有内容"),
    ],
)
def test_an_error_is_said_in_the_readers_words_and_leaves_the_way_on(
    site: Site, path: str, status: int, said: str
) -> None:
    answer = site.browser("restocker").get(path)
    assert answer.status_code == status
    assert said in answer.text
    assert 'href="/work-orders"' in answer.text


def test_every_fault_has_a_name_and_a_next_step() -> None:
    assert set(FAULTS) == set(TODO)


def test_open_faults_are_listed_by_what_they_ask_of_people(site: Site) -> None:
    with site.database.begin() as connection:
        for code, slot in (("SLOT_EMPTY", 1), ("SLOT_JAM", 2), ("THEFT", 0)):
            record(connection, [FaultChange("HD-001", code, opened=True, at=NOW, slot=slot)])
    page = site.browser("supervisor").get("/faults").text
    places = [page.index(word) for word in ("被盗", "请当天派人查看", "卡货", "请在现场修复", "售空")]
    assert places == sorted(places)
