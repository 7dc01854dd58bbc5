"""What phones and desks kept comes back to a restored server: booked once, whatever is still known of its visit."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fleet_server.database import Database
from fleet_server.ledger.audit import audit
from simulator.phone import Phone
from simulator.server_api import HttpTransport, ServerApi
from tests.fleet_server.fixtures import NOW, send
from tests.fleet_server.machine import BASE_MS, Machine
from tests.fleet_server.recovery.databases import backed_up, put_back, table
from tests.fleet_server.web.orders import released_order
from tests.fleet_server.web.site import PASSWORD, Site, serving

PATH = "/api/v1/recovery/operations"
AT = {"entered_at": NOW.isoformat()}
LINE = {"product": "CONDOM-M", "lot": "L1", "packs": 6}
NEW = {"product": "CONDOM-M", "lot": "NEW-7", "packs": 40, "expires_on": "2030-06-30"}


def an_id() -> str:
    return uuid.uuid4().hex


def entry(kind: str, index: int, **more: Any) -> dict[str, Any]:
    return {"operation_id": an_id(), "index": index, "session": "424242", "kind": kind, "slot": 1, **AT, **more}


class Day:
    """A receipt, a tour with one visit, and the return, as phones and desks keep them."""

    def __init__(self) -> None:
        self.receipt = {"operation_id": an_id(), "lines": [NEW]}
        self.pick: dict[str, Any] = {"operation_id": an_id(), "lines": [{"dispenser_id": "HD-001", "slot": 1, **LINE}]}
        self.entries = [entry("count", 0, counted=0), entry("refill", 1, lot="L1", packs=5)]
        self.back = {"operation_id": an_id(), "lines": [LINE | {"packs": 1}]}

    def done(self, site: Site, order: str) -> None:
        restocker = site.api("restocker")
        answers = [
            site.api("dispatcher").post("/api/v1/depot/receipts", json=self.receipt),
            restocker.post(f"/api/v1/work-orders/{order}/pick", json=self.pick),
            restocker.post(f"/api/v1/visits/{order}-01/arrive"),
            restocker.post(f"/api/v1/visits/{order}-01/operations", json={"operations": self.entries}),
            restocker.post(f"/api/v1/visits/{order}-01/close"),
            restocker.post(f"/api/v1/work-orders/{order}/return", json=self.back),
        ]
        assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]

    def kept(self, order: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the desk keeps, and what the phone does."""
        visit = {
            "visit_id": f"{order}-01",
            "work_order_id": order,
            "dispenser_id": "HD-001",
            "operations": self.entries,
        }
        moves = [
            {"kind": kind, "work_order_id": order, **AT, **body}
            for kind, body in (("return", self.back), ("pick", self.pick))
        ]
        return {"depot": [{"kind": "receipt", **AT, **self.receipt}]}, {"depot": moves, "visits": [visit]}  # fmt: skip


def books(database: Database) -> list[Any]:
    queries = (
        "SELECT account, product, lot, units FROM balances WHERE units <> 0 ORDER BY 1, 2, 3",
        "SELECT dispenser_id, slot, book::text FROM slot_books ORDER BY 1, 2",
        "SELECT product, lot, expires_on FROM lots ORDER BY 1, 2",
        "SELECT operation_id, payload::text, state FROM operations ORDER BY 1",
    )
    return [table(database, query) for query in queries]


def verdicts(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["verdict"] for result in answer.json()["results"]]


@pytest.fixture
def served(database: Database, database_url: str) -> Iterator[Callable[[], Site]]:
    """A server that is started anew with each call; what ran before has ended."""
    del database
    running: list[Any] = []

    def start() -> Site:
        stop()
        running.append(serving(database_url, ("restocker", "dispatcher")))
        site: Site = running[-1].__enter__()
        return site

    def stop() -> None:
        while running:
            running.pop().__exit__(None, None, None)

    start.stop = stop  # type: ignore[attr-defined]
    yield start
    stop()


def restored(served: Any, database: Database, path: Path) -> Site:
    served.stop()
    put_back(database, path)
    site: Site = served()
    return site


@pytest.mark.parametrize("order_is_known", [True, False])
def test_a_lost_day_comes_back_as_it_was(database: Database, served: Any, tmp_path: Path, order_is_known: bool) -> None:
    """The phone's return, pick and visit arrive before the desk's receipt and before the machine's facts: order does not matter."""
    machine = Machine().vend().door("424242").vend()
    before = backed_up(database, tmp_path / "before")
    site = served()
    order = released_order(site)
    path = backed_up(database, tmp_path / "released") if order_is_known else before
    send(database, machine)
    day = Day()
    day.done(site, order)
    undisturbed = books(database)

    site = restored(served, database, path)
    desk, phone = day.kept(order)
    assert verdicts(site.api("restocker").post(PATH, json=phone)) == ["booked", "booked", "waiting", "waiting"]
    assert verdicts(site.api("dispatcher").post(PATH, json=desk)) == ["booked"]
    send(database, machine)
    assert books(database) == undisturbed
    assert verdicts(site.api("restocker").post(PATH, json=phone)) == ["repeated"] * 4
    with database.begin() as connection:
        assert audit(connection).differences == []
    if order_is_known:
        assert table(database, "SELECT state FROM work_orders UNION ALL SELECT state FROM stops") == [("closed",)] * 2
        assert table(database, "SELECT picked FROM picks") == [(6,)]


def test_what_was_not_lost_is_repeated_and_other_content_is_conflicting(
    database: Database, served: Any, tmp_path: Path
) -> None:
    site = served()
    order = released_order(site)
    send(database, Machine().door("424242"))
    day = Day()
    day.done(site, order)
    _, phone = day.kept(order)
    # A server that forgot nothing has no such door.
    answer = site.api("restocker").post(PATH, json=phone)
    assert (answer.status_code, answer.json()["field"]) == (409, "epoch")
    site = restored(served, database, backed_up(database, tmp_path))
    assert verdicts(site.api("restocker").post(PATH, json=phone)) == ["repeated"] * 4
    day.entries[0]["counted"] = 3
    day.pick = day.pick | {"lines": [{"dispenser_id": "HD-001", "slot": 1, **LINE, "packs": 2}]}
    _, phone = day.kept(order)
    assert verdicts(site.api("restocker").post(PATH, json=phone)) == ["conflicting", "repeated"] * 2


def test_what_cannot_be_taken_is_refused_by_itself_and_the_rest_is_booked(
    database: Database, served: Any, tmp_path: Path
) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE dispensers SET depot_id = 'ELSEWHERE' WHERE id = 'HD-002'")
    site = restored(served, database, backed_up(database, tmp_path))
    visit = {"visit_id": "V-9", "work_order_id": "W-9", "dispenser_id": "HD-001"}
    of_a_lost_lot = entry("refill", 0, lot="NEW-7", packs=3)
    good = entry("count", 1, counted=3)
    receipt = {"kind": "receipt", "operation_id": an_id(), "lines": [NEW], **AT}
    strange, of_another_depot = entry("count", 0, counted=1), entry("count", 0, counted=1)
    body = {
        "depot": [receipt],
        "visits": [
            {**visit, "operations": [of_a_lost_lot, good]},
            {**visit, "dispenser_id": "HD-999", "operations": [strange]},
            {**visit, "dispenser_id": "HD-002", "operations": [of_another_depot]},
        ],
    }
    answer = site.api("restocker").post(PATH, json=body)
    assert dict(zip([r["operation_id"] for r in answer.json()["results"]], verdicts(answer), strict=True)) == {
        receipt["operation_id"]: "refused",  # goods are received by a dispatcher
        of_a_lost_lot["operation_id"]: "refused",
        good["operation_id"]: "waiting",
        strange["operation_id"]: "refused",
        of_another_depot["operation_id"]: "refused",
    }
    assert verdicts(site.api("dispatcher").post(PATH, json={"depot": [receipt]})) == ["booked"]
    assert verdicts(site.api("restocker").post(PATH, json={"visits": body["visits"][:1]})) == ["waiting", "repeated"]
    assert verdicts(site.api("dispatcher").post(PATH, json={"visits": body["visits"][2:]})) == ["waiting"]


def test_a_phone_learns_by_signing_in_and_offers_what_it_kept(database: Database, served: Any, tmp_path: Path) -> None:
    path = backed_up(database, tmp_path)
    site = served()
    order = released_order(site)
    send(database, Machine().vend().door("424242"))
    api = ServerApi(HttpTransport(site.url), "restocker", PASSWORD)
    api.sign_in()
    phone = Phone(api, lambda: BASE_MS, tmp_path / "phone.json")
    assert phone.offer_again() == []
    day = Day()
    phone.pick(order, day.pick)
    visit = {"visit_id": f"{order}-01", "work_order_id": order, "dispenser_id": "HD-001"}
    assert phone.enter(visit, day.entries) == []

    site = restored(served, database, path)
    api = ServerApi(HttpTransport(site.url), "restocker", PASSWORD)
    api.sign_in()
    phone = Phone(api, lambda: BASE_MS + 7_200_000, tmp_path / "phone.json")
    assert phone.offer_again() == []
    # What is entered later on in a tour that the server knows no more goes the same way.
    phone.give_back(order, day.back)
    assert phone.enter(visit, [entry("count", 2, counted=5)]) == []
    assert [kind for (kind,) in table(database, "SELECT kind FROM operations WHERE dispenser_id <> 'HUANGDAO'")] == [
        "count",
        "refill",
        "count",
    ]
    kinds = "SELECT kind FROM operations WHERE dispenser_id = 'HUANGDAO' AND kind <> 'receipt' ORDER BY 1"
    assert table(database, kinds) == [("pick",), ("return",)]
