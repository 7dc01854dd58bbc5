"""The book of a slot, through the real ingest and a real PostgreSQL."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fleet_server.database import Database
from fleet_server.faults.store import open_faults
from fleet_server.ledger.audit import Replay, audit
from fleet_server.ledger.audit_store import Cause, Event
from fleet_server.ledger.fold import UNKNOWN, Added, Anchor, Anchored, Counted, Removed, Run, SlotBook, Taken
from fleet_server.ledger.movements import Verdict
from fleet_server.ledger.reading import balances, door_state, slot_stock
from fleet_server.recovery.rebuild import rebuild
from protocol.messages import DoorOpened, Outcome
from tests.fleet_server.fixtures import NOW, enter, operation, send
from tests.fleet_server.machine import Machine


def queue_of(database: Database, slot: int = 1) -> list[tuple[str, int]]:
    with database.begin() as connection:
        stock = slot_stock(connection).get(("HD-001", slot))
    return [(run.lot, run.packs) for run in stock.queue] if stock else []


def balance_of(database: Database, account: str) -> int:
    with database.begin() as connection:
        return sum(row.units for row in balances(connection, account))


def differences(database: Database) -> list[str]:
    with database.begin() as connection:
        return [str(difference) for difference in audit(connection).differences]


def codes(database: Database) -> set[str]:
    with database.begin() as connection:
        return {fault.code for fault in open_faults(connection)}


def test_a_refill_of_a_door_session_stands_in_the_slot_and_left_the_van(database: Database) -> None:
    send(database, Machine().door("111111"))
    bookings = enter(database, operation("refill", "111111", 1, lot="L1", packs=5))
    assert [booking.verdict for booking in bookings] == [Verdict.BOOKED]
    assert queue_of(database) == [("L1", 5)]
    assert balance_of(database, "van/T1") == -5
    assert differences(database) == []


def test_a_door_that_was_open_when_its_card_went_keeps_no_visit_from_being_closed(database: Database) -> None:
    """Nobody tells any more that it was closed."""
    machine = Machine()
    send(database, machine.tell(DoorOpened(**machine.when(), session="111111", authorised=True)))
    with database.begin() as connection:
        assert door_state(connection, "HD-001").open
    send(database, Machine().vend())
    with database.begin() as connection:
        assert not door_state(connection, "HD-001").open


def test_a_late_refill_and_a_late_count_end_the_faults_that_they_explain_and_settle(database: Database) -> None:
    """A phone without signal tells of the visit when the machine has told of vends after it."""
    machine = Machine().door("111111").vend().vend(2).vend(2, Outcome.UNVERIFIED).door("222222").vend()
    send(database, machine)
    assert codes(database) >= {"BOOK_BELOW_ZERO", "DROP_NOT_SEEN"}
    refill, count = operation("refill", "111111", 0, lot="L1", packs=5), operation("count", "222222", 0, 2, counted=4)
    enter(database, refill, operation("refill", "111111", 1, 2, lot="L1", packs=5), count)
    assert not {"BOOK_BELOW_ZERO", "DROP_NOT_SEEN"} & codes(database)
    with database.begin() as connection:
        assert rebuild(connection, NOW) == []


def test_what_is_loaded_first_comes_out_first(database: Database) -> None:
    machine = Machine().door("111111")
    send(database, machine)
    enter(
        database,
        operation("refill", "111111", 1, lot="L1", packs=1),
        operation("refill", "111111", 2, lot="L2", packs=3),
    )
    send(database, machine.vend().vend(), first=3)
    assert queue_of(database) == [("L2", 2)]
    assert balance_of(database, "dispensed/HD-001") == 2


def test_a_refill_entered_before_its_door_session_has_arrived_waits_for_it(database: Database) -> None:
    bookings = enter(database, operation("refill", "111111", 1, lot="L1", packs=5))
    assert bookings[0].verdict is Verdict.WAITING
    assert queue_of(database) == []
    send(database, Machine().door("111111").vend())
    assert queue_of(database) == [("L1", 4)]
    assert differences(database) == []


def test_a_refill_that_arrives_after_later_vends_is_booked_where_it_belongs(database: Database) -> None:
    machine = Machine().door("111111").vend().vend()
    send(database, machine)
    with database.begin() as connection:
        assert slot_stock(connection)["HD-001", 1].units == -2
    assert "BOOK_BELOW_ZERO" in codes(database)
    enter(database, operation("refill", "111111", 1, lot="L2", packs=5))
    assert queue_of(database) == [("L2", 3)]
    with database.begin() as connection:
        rows = {(row.account, row.lot): row.units for row in balances(connection) if "HD-001" in row.account}
    assert rows == {("dispensed/HD-001", "L2"): 2, ("slot/HD-001/1", "L2"): 3}
    assert differences(database) == []


def test_a_late_refill_before_a_count_leaves_what_was_counted(database: Database) -> None:
    machine = Machine().door("111111").vend().door("222222")
    send(database, machine)
    enter(database, operation("count", "222222", 1, counted=7))
    enter(database, operation("refill", "111111", 1, lot="L1", packs=8))
    assert sum(packs for _, packs in queue_of(database)) == 7
    assert balance_of(database, "count_difference/HD-001") == 0
    assert differences(database) == []


def test_the_same_operation_again_is_repeated_and_with_other_content_conflicting(database: Database) -> None:
    send(database, Machine().door("111111"))
    first = operation("refill", "111111", 1, lot="L1", packs=5)
    other = operation("refill", "111111", 1, lot="L1", packs=6, operation_id=first.operation_id)
    verdicts = [enter(database, item)[0].verdict for item in (first, first, other)]
    assert verdicts == [Verdict.BOOKED, Verdict.REPEATED, Verdict.CONFLICTING]
    assert queue_of(database) == [("L1", 5)]


def test_an_in_doubt_pack_is_settled_by_the_next_count(database: Database) -> None:
    machine = Machine().door("111111").vend(outcome=Outcome.IN_DOUBT).door("222222")
    send(database, machine)
    enter(database, operation("refill", "111111", 1, lot="L1", packs=5))
    assert balance_of(database, "in_doubt/HD-001") == 1
    enter(database, operation("count", "222222", 1, counted=5))
    assert balance_of(database, "in_doubt/HD-001") == 0
    assert queue_of(database) == [("L1", 5)]
    assert balance_of(database, "count_difference/HD-001") == 0


def test_without_a_code_an_operation_binds_to_the_only_session_near_it(database: Database) -> None:
    send(database, Machine().door("111111"))
    near = operation("refill", None, 1, lot="L1", packs=5)
    assert enter(database, near)[0].verdict is Verdict.WAITING  # entered two days after the session


def test_a_lot_claimed_otherwise_than_the_book_opens_a_fault_and_moves_nothing(database: Database) -> None:
    machine = Machine().door("111111")
    send(database, machine)
    enter(database, operation("refill", "111111", 1, lot="L1", packs=5))
    send(database, machine.vend(lot="L2"), first=3)
    assert "LOT_CLAIM_DIFFERS" in codes(database)
    assert queue_of(database) == [("L1", 4)]


VISITS = [
    operation("refill", "111111", 0, lot="L1", packs=4),
    operation("count", "222222", 0, counted=3),
    operation("refill", "222222", 1, lot="L2", packs=6),
    operation("remove", "333333", 0, lot="L1", packs=1, reason="expired"),
    operation("count", "333333", 1, counted=5),
]


def history() -> Machine:
    return (
        Machine()
        .door("111111").vend().vend(outcome=Outcome.UNVERIFIED)
        .door("222222").vend().vend(outcome=Outcome.JAM).vend()
        .door("333333").vend()
    )  # fmt: skip


@pytest.mark.parametrize("order", [list(range(5)), [4, 3, 2, 1, 0], [1, 4, 0, 2, 3], [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("cut", [0, 3, 7])
def test_operations_of_three_visits_give_the_same_balances_in_any_order(
    database: Database, order: list[int], cut: int
) -> None:
    machine = history()
    if cut:
        send(database, machine, last=cut)
    for number in order[:3]:
        enter(database, VISITS[number])
    send(database, machine, first=cut + 1)
    for number in order[3:]:
        enter(database, VISITS[number])
    with database.begin() as connection:
        rows = {(row.account, row.lot): row.units for row in balances(connection, "slot/")}
        queue = slot_stock(connection)["HD-001", 1].queue
    assert [(run.lot, run.packs) for run in queue] == [("L2", 4)]
    assert rows == {("slot/HD-001/1", "L2"): 4}
    assert differences(database) == []


entries = st.one_of(
    st.builds(Taken, st.sampled_from(["dispensed", "test", "unverified", "in_doubt"])),
    st.builds(Added, st.just("P"), st.sampled_from(["A", "B", "C"]), st.integers(1, 9), st.just("van/T")),
    st.builds(
        Removed,
        st.just("P"),
        st.sampled_from(["A", "B", "C"]),
        st.integers(1, 9),
        st.just("quarantine/T"),
        st.just("x"),
    ),
    st.builds(Counted, st.integers(0, 20)),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries, max_size=40))
def test_what_is_posted_on_a_slots_account_is_what_its_queue_holds(history: list[object]) -> None:
    book = SlotBook("HD-001", 1)
    account: dict[str, int] = {}
    for number, entry in enumerate(history):
        anchored = Anchored(Anchor(1, number, 0), "x", entry, "a", None)  # type: ignore[arg-type]
        for posting in book.apply(anchored.entry):
            assert posting.units > 0
            account[posting.lot] = account.get(posting.lot, 0) + posting.units * (
                (posting.target == book.own) - (posting.source == book.own)
            )
        expected: dict[str, int] = {}
        for sign, runs in ((1, book.queue), (-1, book.owed)):
            for run in runs:
                assert run.packs > 0
                expected[run.lot] = expected.get(run.lot, 0) + sign * run.packs
        assert {k: v for k, v in account.items() if v} == {k: v for k, v in expected.items() if v}
        if isinstance(entry, Counted):
            assert book.units == entry.counted
            assert book.owed == []
        assert SlotBook.from_json("HD-001", 1, book.to_json()).to_json() == book.to_json()
    assert all(a.lot or b.lot for a, b in itertools.pairwise(book.queue))


def told(entry: object) -> bytes | dict[str, Any]:
    """An entry as a fact, or an operation, that the audit reads."""
    match entry:
        case Taken(into=into):
            outcome = "delivered" if into in {"dispensed", "test"} else into
            test, product = into == "test", entry.product
            vend = {"kind": "vend", "slot": 1, "outcome": outcome, "test": test, "product": product}
            return json.dumps(vend).encode()
        case Added():
            moved = {"product": entry.product, "lot": entry.lot, "packs": entry.packs}
            return {"kind": "refill", "slot": 1, "van": entry.source, **moved}
        case Removed():
            moved = {"product": entry.product, "lot": entry.lot, "packs": entry.packs}
            return {"kind": "remove", "slot": 1, "van": "van/T", "reason": entry.reason, **moved}
        case Counted():
            return {"kind": "count", "slot": 1, "counted": entry.counted}
    raise AssertionError(entry)


DOUBTS = [step for lot in "ABA" for step in (Added("P", lot, 1, "van/T"), Taken("unverified"))]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries, max_size=40))
@example([*DOUBTS, Counted(2)])
def test_the_book_goes_by_runs_and_the_audit_pack_by_pack_to_the_same_accounts_and_queue(history: list[object]) -> None:
    book, replay, accounts = SlotBook("HD-001", 1), Replay(), Counter[tuple[str, str, str]]()
    for entry in history:
        for source, target, product, lot, units, _ in book.apply(entry):  # type: ignore[arg-type]
            accounts[source, product, lot] -= units
            accounts[target, product, lot] += units
    replay.place("HD-001", [Event(told(entry), Cause("x", None, NOW, "a")) for entry in history])
    assert replay.unreadable == []
    coil = [(run.product, run.lot) for run in book.queue for _ in range(run.packs)]
    assert coil == replay.coils["HD-001", 1].packs
    assert +accounts == +replay.accounts
    assert -accounts == -replay.accounts


def test_a_slot_whose_drop_sensor_is_broken_keeps_a_short_book_for_a_year_without_a_count() -> None:
    book = SlotBook("HD-001", 1)
    for week in range(52):
        book.apply(Added("P", f"L{week // 13}", 20, "van/T"))
        for vend in range(20):
            book.apply(Taken("in_doubt" if vend % 5 == 4 else "unverified"))
    assert book.doubtful == [
        (name, Run("P", f"L{lot}", packs))
        for lot in range(4)
        for name, packs in (("unverified", 208), ("in_doubt", 52))
    ]
    postings = book.apply(Counted(60))
    assert book.queue == [Run("P", "L1", 8), Run("P", "L0", 52)]
    assert {(p.source, p.target, p.lot): p.units for p in postings} == {
        ("in_doubt/HD-001", book.own, "L0"): 52,
        ("in_doubt/HD-001", book.own, "L1"): 8,
        ("in_doubt/HD-001", "dispensed/HD-001", "L1"): 44,
        ("in_doubt/HD-001", "dispensed/HD-001", "L2"): 52,
        ("in_doubt/HD-001", "dispensed/HD-001", "L3"): 52,
    }


def test_a_slot_that_gives_what_nobody_knows_of_keeps_a_short_book() -> None:
    book = SlotBook("HD-001", 1)
    for _ in range(1_000):
        book.apply(Taken("dispensed", "CONDOM-M", None))
    assert book.owed == [Run("CONDOM-M", UNKNOWN, 1_000)]
    postings = book.apply(Counted(2))
    assert (book.units, sum(posting.units for posting in postings)) == (2, 1_002)
