"""The REST API: what it answers, and what it says of input that cannot be."""

import uuid
from typing import Any

import pytest
from sqlalchemy import text

from fleet_server.clock import FixedClock
from fleet_server.ingest.worker import Message, Worker
from fleet_server.ledger.audit import audit
from protocol.codec import encode
from protocol.messages import DoorClosed, DoorOpened, FaultCleared, FaultRaised, Status
from tests.fleet_server.fixtures import NOW, send
from tests.fleet_server.machine import BASE_MS, Machine
from tests.fleet_server.web.orders import released_order
from tests.fleet_server.web.site import Site, serving


def an_id() -> str:
    return uuid.uuid4().hex


def test_the_overview_tells_what_a_machine_has_and_how_old_the_data_is(site: Site) -> None:
    send(site.database, Machine().vend())
    items = {item["id"]: item for item in site.api("viewer").get("/api/v1/dispensers").json()["items"]}
    assert (items["HD-001"]["stock"], items["HD-001"]["capacity"]) == (-1, 40)
    assert items["HD-001"]["age_s"] >= 0
    assert items["HD-002"]["last_fact_at"] is None
    assert items["HD-002"]["online"] is None


def test_slots_of_all_machines_are_paged_by_dispenser(site: Site) -> None:
    client = site.api("supervisor")
    every = client.get("/api/v1/slots").json()["items"]
    first = client.get("/api/v1/slots", params={"limit": 1}).json()["items"]
    rest = client.get("/api/v1/slots", params={"after": first[0]["id"]}).json()["items"]
    assert first + rest == every
    assert client.get("/api/v1/slots", params={"after": every[-1]["id"]}).json()["items"] == []
    assert [item["id"] for item in every] == sorted(
        item["id"] for item in client.get("/api/v1/dispensers").json()["items"]
    )
    alone = client.get("/api/v1/dispensers/HD-001").json()["slots"]
    assert alone == next(item["slots"] for item in every if item["id"] == "HD-001")
    assert alone


def test_facts_are_paged_newest_first(site: Site) -> None:
    machine = Machine()
    for _ in range(7):
        machine.vend()
    send(site.database, machine)
    client = site.api("supervisor")
    first = client.get("/api/v1/dispensers/HD-001/facts", params={"limit": 4}).json()["items"]
    last = first[-1]
    rest = client.get(
        "/api/v1/dispensers/HD-001/facts",
        params={"limit": 4, "before_stream": last["stream_no"], "before_seq": last["seq"]},
    ).json()["items"]
    assert [fact["seq"] for fact in first + rest] == [7, 6, 5, 4, 3, 2, 1]


def test_goods_received_stand_in_the_depot_with_their_lot(site: Site) -> None:
    client = site.api("dispatcher")
    line = {"product": "CONDOM-M", "lot": "NEW-7", "expires_on": "2030-06-30", "packs": 40}
    body = {"operation_id": an_id(), "lines": [line]}
    assert client.post("/api/v1/depot/receipts", json=body).json()["verdict"] == "booked"
    assert client.post("/api/v1/depot/receipts", json=body).json()["verdict"] == "repeated"
    stock = {item["lot"]: item["units"] for item in client.get("/api/v1/depot").json()["stock"]}
    assert stock == {"L1": 500, "L2": 500, "NEW-7": 40}
    conflicting = client.post("/api/v1/depot/receipts", json=body | {"lines": [line | {"packs": 41}]})
    assert (conflicting.status_code, conflicting.json()["field"]) == (409, "operation_id")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"packs": -1}, "packs"),
        ({"packs": 1.5}, "packs"),
        ({"expires_on": None}, "expires_on"),
        ({"expires_on": "next year"}, "expires_on"),
        ({"lot": "with space"}, "lot"),
        ({"lot": "X" * 21}, "lot"),
        ({"product": "condom"}, "product"),
    ],
)
def test_a_receipt_that_cannot_be_is_a_problem_document_and_books_nothing(
    site: Site, change: dict[str, Any], field: str
) -> None:
    line = {"product": "CONDOM-M", "lot": "NEW-7", "expires_on": "2030-06-30", "packs": 40} | change
    client = site.api("dispatcher")
    answer = client.post("/api/v1/depot/receipts", json={"operation_id": an_id(), "lines": [line]})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"].endswith(field)
    assert repr(change[field]) in answer.json()["detail"]
    assert {item["lot"] for item in client.get("/api/v1/depot").json()["stock"]} == {"L1", "L2"}


def test_a_lot_without_an_expiry_is_refused(site: Site) -> None:
    answer = site.api("dispatcher").post("/api/v1/lots", json={"product": "CONDOM-M", "lot": "NEW-7"})
    assert (answer.status_code, answer.json()["field"]) == (422, "expires_on")


def test_a_lot_keeps_the_expiry_it_was_registered_with(site: Site) -> None:
    answer = site.api("dispatcher").post(
        "/api/v1/lots", json={"product": "CONDOM-M", "lot": "L1", "expires_on": "2031-01-01"}
    )
    assert (answer.status_code, answer.json()["field"]) == (409, "expires_on")


def test_a_recalled_lot_is_blocked_with_its_reason_told_to_machines_and_freed_again(site: Site) -> None:
    client = site.api("supervisor")
    lot = {"product": "CONDOM-M", "lot": "L1"}

    def told() -> list[bool]:
        with site.database.begin() as connection:
            query = text(
                "SELECT payload FROM outgoing WHERE dispenser_id = 'HD-001' AND channel = 'desired' ORDER BY key::int"
            )
            payloads = connection.execute(query).scalars().all()
        return [next(lot["blocked"] for lot in payload["lots"] if lot["lot"] == "L1") for payload in payloads]

    assert client.post("/api/v1/lots/block", json=lot | {"reason": "recalled by the maker"}).status_code == 200
    listed = {item["lot"]: item["blocked"] for item in client.get("/api/v1/lots").json()["items"]}
    assert listed == {"L1": "recalled by the maker", "L2": None}
    assert told()[-1] is True
    assert client.post("/api/v1/lots/block", json=lot | {"reason": None}).status_code == 200
    assert told()[-1] is False
    unknown = client.post("/api/v1/lots/block", json={"product": "CONDOM-M", "lot": "L9", "reason": "recall"})
    assert (unknown.status_code, unknown.json()["field"]) == (404, "lot")
    nothing = client.post("/api/v1/lots/block", json=lot | {"reason": ""})
    assert (nothing.status_code, nothing.json()["field"]) == (422, "reason")


def test_faults_are_paged_with_those_that_have_ended(site: Site) -> None:
    machine = Machine()
    for slot in (1, 2):
        machine.tell(FaultRaised(**machine.when(), code="SLOT_JAM", slot=slot))
    machine.tell(FaultCleared(**machine.when(), code="SLOT_JAM", slot=1))
    machine.tell(FaultRaised(**machine.when(), code="VMC_OFFLINE"))
    send(site.database, machine)
    client = site.api("supervisor")
    first = client.get("/api/v1/faults", params={"limit": 2}).json()["items"]
    rest = client.get("/api/v1/faults", params={"limit": 2, "before": first[-1]["id"]}).json()["items"]
    told = [(fault["code"], fault["slot"], fault["cleared_at"] is not None) for fault in first + rest]
    assert told == [("VMC_OFFLINE", None, False), ("SLOT_JAM", 2, False), ("SLOT_JAM", 1, True)]
    of_code = client.get("/api/v1/faults", params={"code": "SLOT_JAM", "dispenser_id": "HD-001"}).json()["items"]
    assert [fault["slot"] for fault in of_code] == [2, 1]


@pytest.mark.parametrize(
    "path",
    ["/api/v1/dispensers/HD-404", "/api/v1/plans/none", "/api/v1/work-orders/none", "/api/v1/nonsense"],
)
def test_what_does_not_exist_is_said_not_to(site: Site, path: str) -> None:
    answer = site.api("administrator").get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("GET", "/api/v1/slots?after=%00", None, "after"),
        ("GET", "/api/v1/dispensers/HD%00", None, "dispenser_id"),
        ("POST", "/api/v1/lots/block", {"product": "CONDOM-M", "lot": "L1", "reason": "a\0b"}, "reason"),
        ("POST", "/api/v1/depot/receipts", {"operation_id": "x", "lines": [{"product": "A\0"}]}, "lines.0.product"),
    ],
)
def test_text_that_no_database_keeps_is_refused_by_its_field(
    site: Site, method: str, path: str, body: dict[str, object] | None, named: str
) -> None:
    answer = site.api("administrator").request(method, path, json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, named)
    assert "without a NUL character" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/api/v1/dispensers/HD-001/facts?before_stream=2147483648&before_seq=0", "before_stream"),
        ("/api/v1/dispensers/HD-001/facts?before_stream=1&before_seq=9223372036854775808", "before_seq"),
        ("/api/v1/faults?before=9223372036854775808", "before"),
    ],
)
def test_a_number_that_no_column_holds_is_refused_by_its_field(site: Site, path: str, named: str) -> None:
    answer = site.api("administrator").get(path)
    assert (answer.status_code, answer.json()["field"]) == (422, named)


def test_a_password_with_a_character_that_cannot_be_kept_is_refused_and_not_shown(site: Site) -> None:
    answer = site.api(None).post("/api/v1/sign-in", json={"user": "viewer", "password": "secret\0word"})
    assert (answer.status_code, answer.json()["field"]) == (422, "password")
    assert "secret" not in answer.text


def test_a_body_that_is_no_json_or_too_large_is_refused(site: Site) -> None:
    client = site.api("dispatcher")
    headers = {"content-type": "application/json"}
    assert client.post("/api/v1/lots", content=b"{", headers=headers).status_code == 422
    assert client.post("/api/v1/lots", content=b"x" * 300_000, headers=headers).status_code == 413


# ---------------------------------------------------------------- a day's work


def open_door(site: Site, code: str = "424242") -> Machine:
    machine = Machine().tell(DoorOpened(**Machine().when(), session=code, authorised=True))
    send(site.database, machine)
    return machine


def picked(site: Site) -> str:
    order = released_order(site)
    line = {"dispenser_id": "HD-001", "slot": 1, "product": "CONDOM-M", "lot": "L1", "packs": 6}
    answer = site.api("restocker").post(
        f"/api/v1/work-orders/{order}/pick", json={"operation_id": an_id(), "lines": [line]}
    )
    assert answer.json()["verdict"] == "booked", answer.text
    return order


def entry(kind: str, index: int, **more: Any) -> dict[str, Any]:
    common = {"operation_id": an_id(), "index": index, "session": "424242", "entered_at": NOW.isoformat()}
    return common | {"kind": kind, "slot": 1} | more


def test_a_visit_from_pick_to_return_moves_every_pack_from_account_to_account(site: Site) -> None:
    order = picked(site)
    restocker = site.api("restocker")
    visit = f"/api/v1/visits/{order}-01"
    assert restocker.post(f"{visit}/arrive").json()["state"] == "arrived"
    assert len(restocker.post(f"{visit}/unlock").json()["order_id"]) == 32
    machine = open_door(site)
    entries = [entry("count", 0, counted=0), entry("refill", 1, product="CONDOM-M", lot="L1", packs=5)]
    results = restocker.post(f"{visit}/operations", json={"operations": entries}).json()["results"]
    assert [result["verdict"] for result in results] == ["booked", "booked"]
    refused = restocker.post(f"{visit}/close")
    assert (refused.status_code, refused.json()["field"]) == (409, "door")
    machine.tell(DoorClosed(**machine.when(), session="424242", open_ms=1000))
    send(site.database, machine)
    assert restocker.post(f"{visit}/close").json()["state"] == "closed"
    back = {"operation_id": an_id(), "lines": [{"product": "CONDOM-M", "lot": "L1", "packs": 1}]}
    assert restocker.post(f"/api/v1/work-orders/{order}/return", json=back).json()["verdict"] == "booked"
    units = {
        (item["account"], item["lot"]): item["units"]
        for item in site.api("dispatcher").get("/api/v1/stock").json()["items"]
    }
    assert units["slot/HD-001/1", "L1"] == 5
    assert units["depot/HUANGDAO", "L1"] == 495
    assert not any(account.startswith("van/") for account, _ in units)
    with site.database.begin() as connection:
        assert audit(connection).differences == []


def test_a_machine_that_lost_its_link_at_the_open_door_keeps_no_visit_open(site: Site) -> None:
    visit = f"/api/v1/visits/{picked(site)}-01"
    restocker = site.api("restocker")
    assert restocker.post(f"{visit}/arrive").json()["state"] == "arrived"
    machine = open_door(site)
    worker = Worker(site.database, FixedClock(NOW))
    for is_online, status in ((True, 409), (False, 200)):
        said = Status(stream_id=machine.stream_id, session=1, online=is_online, at_ms=BASE_MS)
        worker.commit([Message("fleet/v1/HD-001/status", encode(said))])
        assert restocker.post(f"{visit}/close").status_code == status


def test_the_same_phone_operations_again_are_repeated_and_never_booked_twice(site: Site) -> None:
    order = picked(site)
    restocker = site.api("restocker")
    restocker.post(f"/api/v1/visits/{order}-01/arrive")
    open_door(site)
    body = {"operations": [entry("refill", 0, product="CONDOM-M", lot="L1", packs=5)]}
    path = f"/api/v1/visits/{order}-01/operations"
    verdicts = [restocker.post(path, json=body).json()["results"][0]["verdict"] for _ in range(3)]
    assert verdicts == ["booked", "repeated", "repeated"]
    body["operations"][0]["packs"] = 6
    assert restocker.post(path, json=body).json()["results"][0]["verdict"] == "conflicting"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "count", "counted": -3}, "counted = -3: expected 0 to 1000"),
        ({"kind": "count", "counted": None}, "counted = None"),
        ({"kind": "count", "counted": 4, "slot": 77}, "slot = 77: expected a slot of HD-001: 1, 2"),
        ({"kind": "refill", "lot": "NEVER-SEEN", "packs": 3}, "expected a registered lot with its expiry date"),
        ({"kind": "refill", "lot": "L1", "packs": 0}, "packs = 0"),
        ({"kind": "remove", "lot": "L1", "packs": 1, "reason": "whim"}, "reason = 'whim'"),
    ],
)
def test_one_wrong_entry_is_refused_by_name_and_the_others_are_booked(
    site: Site, wrong: dict[str, Any], words: str
) -> None:
    order = picked(site)
    open_door(site)
    entries = [entry("refill", 0, product="CONDOM-M", lot="L1", packs=2), entry(index=1, **{"slot": 1} | wrong)]
    answer = site.api("restocker").post(f"/api/v1/visits/{order}-01/operations", json={"operations": entries})
    first, second = answer.json()["results"]
    assert first["verdict"] == "booked"
    assert second["verdict"] == "refused"
    assert words in second["detail"]


def test_an_entry_of_a_time_outside_of_the_calendar_is_refused(site: Site) -> None:
    order, restocker = picked(site), site.api("restocker")
    for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-09-22T10:00:00"):
        wrong = entry("count", 0, counted=3) | {"entered_at": at}
        answer = restocker.post(f"/api/v1/visits/{order}-01/operations", json={"operations": [wrong]})
        assert (answer.status_code, answer.json()["field"]) == (422, "entered_at")


def test_what_a_phone_asks_again_because_the_answer_was_lost_is_answered_again(site: Site) -> None:
    restocker = site.api("restocker")
    for number, asked in enumerate((["arrive", "close"], ["skip"])):
        order = released_order(site, order_id=f"WO-{number}")
        for what in asked:
            body = {"reason": "no time"} if what == "skip" else None
            first, again = (restocker.post(f"/api/v1/visits/{order}-01/{what}", json=body) for _ in range(2))
            assert (first.status_code, first.json()) == (again.status_code, again.json()) == (200, first.json())


def test_a_pick_of_more_than_the_depot_has_books_nothing(site: Site) -> None:
    order = released_order(site)
    line = {"dispenser_id": "HD-001", "slot": 1, "product": "CONDOM-M", "lot": "L1", "packs": 501}
    client = site.api("restocker")
    answer = client.post(f"/api/v1/work-orders/{order}/pick", json={"operation_id": an_id(), "lines": [line]})
    assert answer.status_code == 422
    assert "at most the 500" in answer.json()["detail"]
    assert client.get(f"/api/v1/work-orders/{order}").json()["state"] == "released"
    with site.database.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM movements WHERE target LIKE 'van/%'")).scalar() == 0


def test_twenty_pickers_at_once_never_take_more_than_the_depot_has(site: Site) -> None:
    from concurrent.futures import ThreadPoolExecutor

    orders = [released_order(site, order_id=f"WO-{number}") for number in range(20)]
    client = site.api("restocker")
    line = {"dispenser_id": "HD-001", "slot": 1, "product": "CONDOM-M", "lot": "L1", "packs": 60}

    def pick(order: str) -> int:
        body = {"operation_id": an_id(), "lines": [line]}
        return client.post(f"/api/v1/work-orders/{order}/pick", json=body).status_code

    with ThreadPoolExecutor(20) as pool:
        codes = sorted(pool.map(pick, orders))
    assert codes == [200] * 8 + [422] * 12  # 8 x 60 of 500


def test_an_old_visit_opens_no_door(site: Site) -> None:
    order = picked(site)
    restocker = site.api("restocker")
    restocker.post(f"/api/v1/visits/{order}-01/arrive")
    restocker.post(f"/api/v1/work-orders/{order}/return", json={"operation_id": an_id(), "lines": []})
    answer = restocker.post(f"/api/v1/visits/{order}-01/unlock")
    assert (answer.status_code, answer.json()["field"]) == (409, "work_order")


def test_a_plan_says_why_and_is_released_once(site: Site) -> None:
    send(site.database, Machine().door("111111").vend())
    dispatcher = site.api("dispatcher")
    plan = dispatcher.post("/api/v1/plans").json()
    stops = [stop for tour in plan["result"]["tours"] for stop in tour["stops"]]
    assert {stop["dispenser_id"] for stop in stops} == {"HD-001", "HD-002"}
    assert all(stop["reasons"] for stop in stops)
    released = dispatcher.post(f"/api/v1/plans/{plan['id']}/release").json()["work_order_ids"]
    assert released
    again = dispatcher.post(f"/api/v1/plans/{plan['id']}/release")
    assert again.status_code == 409 or again.json()["work_order_ids"] == released


# ---------------------------------------------------------------- health and the clock


def test_health_readiness_and_metrics_are_open(site: Site) -> None:
    stranger = site.api(None)
    assert stranger.get("/healthz").text == "ok\n"
    assert stranger.get("/readyz").json() == {"database": True, "broker": True}
    assert "fleet_ingest_facts_total" in stranger.get("/metrics").text


def test_every_answer_carries_its_security_headers(site: Site) -> None:
    answer = site.browser("viewer").get("/")
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


def test_production_refuses_to_move_the_clock(database_url: str) -> None:
    with serving(database_url, production=True) as site:
        for path, body in (("advance", {"to": "2026-11-01T00:00:00Z"}), ("live", {"speed": 2.0})):
            answer = site.api("administrator").post(f"/api/v1/clock/{path}", json=body)
            assert answer.status_code == 403
            assert "production" in answer.json()["detail"]


def test_over_https_the_cookie_is_bound_to_its_host(database_url: str) -> None:
    with serving(database_url, cookie_secure=True) as site:
        from tests.fleet_server.web.site import PASSWORD

        answer = site.api(None).post("/sign-in", data={"user": "viewer", "password": PASSWORD})
        assert answer.headers["set-cookie"].startswith("__Host-session=")
        assert "Secure" in answer.headers["set-cookie"]
        assert "strict-transport-security" in answer.headers
