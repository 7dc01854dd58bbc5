"""Who may do what: every route for every role, over HTTP; what the table does not list nobody may."""

import re
from typing import Final

import httpx2
import pytest
from fastapi.routing import APIRoute

from fleet_server.app import create_app
from fleet_server.auth.service import Role
from fleet_server.settings import Settings
from fleet_server.web.access import ACCESS, PUBLIC
from tests.fleet_server.web.site import PASSWORD, ROLES, Site

PAGE: Final = {"accept": "text/html"}


def routes(database_url: str) -> set[tuple[str, str]]:
    app = create_app(Settings(database_url=database_url, roles=("web",)))
    found = {(method, path) for path, methods in app.openapi()["paths"].items() for method in methods}
    for included in app.routes:
        # The pages are in no OpenAPI document.
        for route in getattr(getattr(included, "original_router", None), "routes", []):
            if isinstance(route, APIRoute):
                found |= {(method, route.path) for method in route.methods or ()}
    return {(method.upper(), path) for method, path in found}


def test_the_table_lists_every_route_and_nothing_else(database_url: str) -> None:
    there = routes(database_url)
    assert there | {("GET", "/openapi.json")} == set(ACCESS)


def test_every_route_answers_every_role_as_the_table_says(site: Site) -> None:
    clients = {role: site.api(role) for role in ROLES}
    stranger = site.api(None)
    wrong = []
    for (method, path), allowed in ACCESS.items():
        if path.endswith("/sign-out") or allowed == PUBLIC:
            continue
        url = re.sub(r"\{\w+\}", "nothing", path)
        if stranger.request(method, url, json={}).status_code != 401:
            wrong.append(f"{method} {path}: a stranger is not refused")
        for role, client in clients.items():
            refused = client.request(method, url, json={}).status_code == 403
            if refused == (Role(role) in allowed):
                wrong.append(f"{method} {path}: {role} is {'refused' if refused else 'let in'}")
    assert wrong == []


@pytest.mark.parametrize(
    ("role", "method", "path"),
    [
        ("restocker", "POST", "/api/v1/depot/receipts"),
        ("restocker", "POST", "/api/v1/plans"),
        ("restocker", "GET", "/api/v1/ledger/movements"),
        ("supervisor", "POST", "/api/v1/clock/advance"),
        ("dispatcher", "POST", "/api/v1/clock/advance"),
        ("viewer", "GET", "/api/v1/dispensers/HD-001"),
        ("viewer", "GET", "/api/v1/stock"),
        ("viewer", "GET", "/api/v1/work-orders"),
        ("supervisor", "POST", "/api/v1/visits/x/unlock"),
    ],
)
def test_what_the_roles_of_the_service_rule_out(site: Site, role: str, method: str, path: str) -> None:
    """Written by hand from the roles, so that a careless change of the table is noticed."""
    answer = site.api(role).request(method, path, json={})
    assert answer.status_code == 403
    assert answer.json()["field"] == "role"


def test_a_restocker_does_not_see_another_depots_work(site: Site) -> None:
    from tests.fleet_server.web.orders import released_order

    order = released_order(site, depot="ELSEWHERE")
    restocker = site.api("restocker")
    assert restocker.get("/api/v1/work-orders").json()["items"] == []
    for path in (f"/api/v1/work-orders/{order}", f"/work-orders/{order}", f"/visits/{order}-01"):
        assert restocker.get(path).status_code == 403
    assert restocker.post(f"/api/v1/visits/{order}-01/arrive").status_code == 403
    assert site.api("dispatcher").get(f"/api/v1/work-orders/{order}").status_code == 200


# ---------------------------------------------------------------- sessions


def test_a_browser_form_without_the_pages_token_is_refused(site: Site) -> None:
    browser = site.browser("dispatcher")
    for form in ({}, {"csrf": "guessed"}):
        answer = browser.post("/plan", data=form)
        assert answer.status_code == 403
        assert "csrf" in answer.text
    token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/plan").text)
    assert token
    assert browser.post("/plan", data={"csrf": token[1]}).status_code == 303


def test_signing_out_ends_the_session_itself(site: Site) -> None:
    client = site.api("viewer")
    assert client.get("/api/v1/dispensers").status_code == 200
    assert client.post("/api/v1/sign-out").status_code == 200
    assert client.get("/api/v1/dispensers").status_code == 401


def test_somebody_who_is_not_signed_in_is_shown_the_way(site: Site) -> None:
    stranger = site.api(None)
    answer = stranger.get("/plan", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(site: Site) -> None:
    answer = site.api(None).post("/sign-in", data={"user": "viewer", "password": PASSWORD})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie


def attempt(client: httpx2.Client, user: str, password: str) -> int:
    return client.post("/api/v1/sign-in", json={"user": user, "password": password}).status_code


def test_after_eight_wrong_passwords_even_the_right_one_waits(site: Site) -> None:
    stranger = site.api(None)
    assert [attempt(stranger, "viewer", "wrong-wrong-wrong") for _ in range(8)] == [401] * 8
    assert attempt(stranger, "viewer", PASSWORD) == 429


def test_a_wrong_password_and_a_wrong_name_look_the_same(site: Site) -> None:
    stranger = site.api(None)
    answers = [
        stranger.post("/api/v1/sign-in", json={"user": user, "password": "wrong-wrong-wrong"}).json()
        for user in ("viewer", "nobody")
    ]
    said = [answer | {"detail": answer["detail"].replace("nobody", "viewer")} for answer in answers]
    assert said[0] == said[1]
    assert "wrong-wrong" not in str(said)


def test_no_password_and_no_token_is_stored_or_logged(site: Site, owner_url: str) -> None:
    import psycopg

    client = site.api("administrator")
    token = client.headers["authorization"].split()[1]
    with psycopg.connect(owner_url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in names:
            for (row,) in connection.execute(f"SELECT t::text FROM {name} t".encode()):
                assert token not in row
                assert PASSWORD not in row
