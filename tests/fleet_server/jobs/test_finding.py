"""Faults that only the server can find: each begins where its sign is, does not where it is not, and ends."""

from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from sqlalchemy import event, text

from fleet_server.database import Database
from fleet_server.faults.store import FaultChange, open_faults, record
from fleet_server.jobs import finding, work
from fleet_server.ledger.audit import audit
from fleet_server.ledger.reading import slot_stock
from fleet_server.recovery.rebuild import rebuild
from fleet_server.workorders import service as workorders
from protocol.messages import FaultRaised, Outcome, Started, Vend
from tests.fleet_server.fixtures import NOW, enter, operation, send
from tests.fleet_server.machine import BASE_MS, Machine

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def codes(database: Database, dispenser_id: str = "HD-001") -> set[str]:
    with database.begin() as connection:
        return {fault.code for fault in open_faults(connection, [dispenser_id])}


def do(database: Database, job: Any, *more: Any) -> None:
    with database.begin() as connection:
        job(connection, *more)


def at_visit(database: Database, action: Any, visit_id: str, *more: Any) -> None:
    with database.begin() as connection:
        action(connection, workorders.visit(connection, visit_id), *more)


def tell(database: Database, *changes: tuple[str, bool, datetime]) -> None:
    with database.begin() as connection:
        record(connection, [FaultChange("HD-001", code, opened, at) for code, opened, at in changes])


def report(database: Database, hours: list[datetime]) -> None:
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO vitals_history (dispenser_id, hour, reading) VALUES ('HD-001', :hour, '{}')"),
            [{"hour": hour.replace(minute=0, second=0, microsecond=0)} for hour in hours],
        )


def began(database: Database, at: datetime) -> None:
    send(database, Machine().vend())
    with database.begin() as connection:
        connection.execute(text("UPDATE streams SET began_at = :at"), {"at": at})


# ---------------------------------------------------------------- reports


@pytest.mark.parametrize(("missing", "expected"), [(0.15, set()), (0.25, {"COMM_RELIABILITY_LOW"})])
def test_a_machine_that_reports_in_less_than_four_of_five_hours_is_unreliable(
    database: Database, missing: float, expected: set[str]
) -> None:
    began(database, NOW - 40 * DAY)
    hours = [NOW - n * HOUR for n in range(1, 720)]
    report(database, hours[int(missing * 720) :])
    do(database, finding.watch_reports, NOW)
    assert codes(database) & {"COMM_RELIABILITY_LOW"} == expected
    report(database, hours[: int(missing * 720)])
    do(database, finding.watch_reports, NOW)
    assert "COMM_RELIABILITY_LOW" not in codes(database)


def test_a_new_machine_is_not_judged_by_its_first_days(database: Database) -> None:
    began(database, NOW - 6 * DAY)
    do(database, finding.watch_reports, NOW)
    assert "COMM_RELIABILITY_LOW" not in codes(database)


# ---------------------------------------------------------------- stock


def test_a_slot_is_empty_from_its_last_pack_until_it_is_refilled(database: Database) -> None:
    machine = Machine().door("111111").vend().vend()
    send(database, machine, 1, 2)
    enter(database, operation("refill", "111111", 0, lot="L1", packs=2))
    assert "SLOT_EMPTY" not in codes(database)
    send(database, machine, 3, 3)
    assert "SLOT_EMPTY" not in codes(database)
    send(database, machine, 4, 4)
    assert "SLOT_EMPTY" in codes(database)
    send(database, machine.door("222222"), 5, 6)
    enter(database, operation("refill", "222222", 0, lot="L1", packs=5))
    assert "SLOT_EMPTY" not in codes(database)


def test_a_machine_below_its_minimum_is_told_with_the_days_plan_until_it_is_refilled(database: Database) -> None:
    machine = Machine().door("111111")
    send(database, machine)
    enter(database, operation("refill", "111111", 0, lot="L1", packs=2))
    do(database, work.plan, NOW)
    assert "LOW_STOCK" in codes(database)
    assert "LOW_STOCK" not in codes(database, "HD-002"), "which was never loaded"
    send(database, machine.door("222222"), 3, 4)
    enter(database, *(operation("refill", "222222", step, slot=step + 1, lot="L1", packs=18) for step in (0, 1)))
    do(database, work.plan, NOW + DAY)
    assert "LOW_STOCK" not in codes(database)


def test_low_stock_is_told_from_what_the_plan_knew_without_reading_a_plan_back(database: Database) -> None:
    send(database, Machine().door("111111").vend())
    enter(database, operation("refill", "111111", 0, lot="L1", packs=2))
    said: list[str] = []
    with database.begin() as connection:
        event.listen(connection, "before_cursor_execute", lambda *given: said.append(given[2]))
        work.plan(connection, NOW)
    assert "LOW_STOCK" in codes(database)
    assert any(statement.startswith("INSERT INTO plans") for statement in said)
    assert [statement for statement in said if "plans.inputs" in statement] == []


def test_a_vend_that_nobody_saw_fall_is_open_until_the_slot_is_counted(database: Database) -> None:
    machine = Machine().door("111111").vend().vend(outcome=Outcome.UNVERIFIED)
    send(database, machine, 1, 3)
    assert "DROP_NOT_SEEN" not in codes(database)
    send(database, machine, 4, 4)
    assert "DROP_NOT_SEEN" in codes(database)
    send(database, machine.door("222222"), 5, 6)
    enter(database, operation("count", "222222", 0, counted=0))
    assert "DROP_NOT_SEEN" not in codes(database)


# ---------------------------------------------------------------- theft, visits


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ([("VANDALISM", 0), ("POWER_LOSS", 0.1), ("NET_LOSS", 0.7)], True),
        ([("VANDALISM", 0), ("NET_LOSS", 0.7)], False),
        ([("POWER_LOSS", 0), ("NET_LOSS", 0.7)], False),
        ([("VANDALISM", -200), ("POWER_LOSS", 0.1), ("NET_LOSS", 0.7)], False),
    ],
)
def test_a_shock_then_neither_mains_nor_network_is_a_theft(
    database: Database, signs: list[tuple[str, float]], expected: bool
) -> None:
    tell(database, *((code, True, NOW + hours * HOUR) for code, hours in signs))
    do(database, finding.watch_theft, NOW + HOUR)
    assert ("THEFT" in codes(database)) is expected


def a_visit(database: Database, order_id: str = "W1") -> str:
    with database.begin() as connection:
        stop = workorders.PlannedStop("HD-001", [{"code": "low"}], [])
        workorders.create(connection, order_id, "P1", "HUANGDAO", NOW.date(), [stop], NOW)
        return str(workorders.get(connection, order_id)["stops"][0]["visit_id"])


@pytest.mark.parametrize(("cause", "code"), [("blocked", "ACCESS_BLOCKED"), ("missing", "THEFT")])
def test_what_kept_somebody_from_a_machine_is_open_until_somebody_stands_before_it(
    database: Database, cause: Any, code: str
) -> None:
    at_visit(database, workorders.skip, a_visit(database), "gate locked", NOW, cause)
    assert codes(database) == {code}
    at_visit(database, workorders.arrive, a_visit(database, "W2"), NOW + DAY)
    assert codes(database) == set()


def test_a_visit_left_out_for_another_reason_is_no_fault(database: Database) -> None:
    at_visit(database, workorders.skip, a_visit(database), "no time", NOW)
    assert codes(database) == set()


@pytest.mark.parametrize(("online", "expected"), [(True, {"DOOR_SWITCH_FAULT"}), (False, set())])
def test_a_door_that_no_visit_moves_has_a_switch_that_is_stuck(
    database: Database, online: bool, expected: set[str]
) -> None:
    door_at = datetime.fromtimestamp(BASE_MS / 1000, NOW.tzinfo)
    visited_at = door_at - 6 * HOUR
    visit_id = a_visit(database)
    at_visit(database, workorders.arrive, visit_id, visited_at)
    at_visit(database, workorders.close, visit_id, visited_at)
    if online:
        report(database, [visited_at + n * HOUR for n in (-1, 0, 1)])
    do(database, finding.watch_doors, door_at - HOUR)
    assert codes(database) & {"DOOR_SWITCH_FAULT"} == expected
    send(database, Machine().door("111111"))
    do(database, finding.watch_doors, door_at + HOUR)
    assert "DOOR_SWITCH_FAULT" not in codes(database)


# ---------------------------------------------------------------- a machine and its cards


def test_a_new_card_ends_what_the_old_one_had_told_and_tells_what_still_holds(database: Database) -> None:
    old = Machine()
    old.tell(FaultRaised(**old.when(), code="SLOT_JAM", slot=1), FaultRaised(**old.when(), code="NET_WEAK"))
    send(database, old)
    tell(database, ("NET_LOSS", True, NOW))
    new = Machine()
    started = {
        "reason": "new_stream",
        "agent_version": "1",
        "board": {"model": "X", "runs_sequence_once": True, "counts_life": True},
    }
    new.tell(Started.model_validate(new.when() | started), FaultRaised(**new.when(), code="NET_WEAK"))
    send(database, new)
    assert codes(database) >= {"NET_WEAK", "NET_LOSS", "STREAM_REPLACED"}
    assert "SLOT_JAM" not in codes(database)


# ---------------------------------------------------------------- doors that nobody will hear of


def at_noon_of(day: int, number: int = 0) -> datetime:
    return datetime.fromtimestamp(BASE_MS / 1000, NOW.tzinfo) + day * DAY + number * HOUR


def told_on(machine: Machine, day: int) -> Machine:
    at_ms = int(at_noon_of(day).timestamp() * 1000)
    return machine.tell(FaultRaised(**machine.when() | {"at_ms": at_ms}, code="NET_WEAK"))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_visits_whose_doors_a_lost_card_took_with_it_are_booked_in_the_order_of_their_entries(
    database: Database, order: tuple[int, ...]
) -> None:
    """18 packs, one vend told; then a visit found 15, another loaded 3, another found 17: of their doors only the card knew."""
    old = told_on(Machine(), 0).door("111111")
    send(database, old)
    enter(database, operation("refill", "111111", 0, lot="L1", packs=18, entered_at=at_noon_of(0)))
    send(database, old.vend(), first=4)
    visits = [
        operation("count", "222222", 0, counted=15, visit_id="V2", entered_at=at_noon_of(1)),
        operation("refill", "333333", 0, lot="L2", packs=3, visit_id="V3", entered_at=at_noon_of(1, 1)),
        operation("count", "444444", 0, counted=17, visit_id="V4", entered_at=at_noon_of(1, 2)),
    ]
    for place in order:
        (booking,) = enter(database, visits[place])
        assert booking.verdict == "waiting"
    do(database, work.book_lost_doors, NOW)
    assert queue_of(database) == [("L1", 17)], "the card may still be there"
    send(database, told_on(Machine(), 2), now=NOW + HOUR)
    do(database, work.book_lost_doors, NOW + HOUR)
    assert queue_of(database) == [("L1", 17)], "what it had sent may still be on its way"
    do(database, work.book_lost_doors, NOW + 3 * HOUR)
    assert queue_of(database) == [("L1", 14), ("L2", 3)]
    with database.begin() as connection:
        assert audit(connection).differences == []
    with database.begin() as connection:
        assert rebuild(connection, NOW) == []


def test_a_copy_that_went_on_in_the_place_of_a_lost_card_keeps_its_later_vends_behind_the_visit(
    database: Database,
) -> None:
    """The visit found 5; its door went with the card, whose copy told of two vends later that day, and then of no more."""
    card = told_on(Machine(), 0).door("111111")
    send(database, card)
    enter(database, operation("refill", "111111", 0, lot="L1", packs=9, entered_at=at_noon_of(0)))
    enter(database, operation("count", "222222", 0, counted=5, entered_at=at_noon_of(1)))
    evening = {"at_ms": int(at_noon_of(1, 6).timestamp() * 1000)}
    for _ in range(2):
        fact = Vend(**card.when() | evening, slot=1, product="CONDOM-M", outcome=Outcome.DELIVERED, lot="L1")
        send(database, card.tell(fact), first=len(card.lines))
    send(database, told_on(Machine(), 2))
    do(database, work.book_lost_doors, NOW + 3 * HOUR)
    assert queue_of(database) == [("L1", 3)]


def test_an_entry_after_the_new_card_began_waits_for_its_door(database: Database) -> None:
    send(database, told_on(Machine(), 0))
    new = told_on(Machine(), 1)
    send(database, new)
    enter(database, operation("refill", "222222", 0, lot="L1", packs=5, entered_at=at_noon_of(1, 3)))
    do(database, work.book_lost_doors, NOW + 9 * DAY)
    assert queue_of(database) == []
    send(database, new.door("222222"), first=2)
    assert queue_of(database) == [("L1", 5)]


def queue_of(database: Database) -> list[tuple[str, int]]:
    with database.begin() as connection:
        stock = slot_stock(connection).get(("HD-001", 1))
    return [(run.lot, run.packs) for run in stock.queue] if stock else []
