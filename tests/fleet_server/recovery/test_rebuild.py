"""Every projection can be made anew from facts, operations and movements."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.devices import store as devices
from fleet_server.ledger import depot
from fleet_server.ledger.audit import audit
from fleet_server.ledger.operations import book
from fleet_server.recovery.rebuild import Difference, rebuild
from protocol.messages import Count, LotPacks, Outcome, SlotClaim, StockLevel
from tests.fleet_server.fixtures import NOW, enter, operation, send, send_bytes
from tests.fleet_server.machine import Machine
from tests.fleet_server.recovery.databases import table
from tests.fleet_server.test_command_line import run

PROJECTIONS = {
    "balances": "SELECT account, product, lot, units FROM balances WHERE units <> 0 ORDER BY 1, 2, 3",
    "slot_books": "SELECT * FROM slot_books ORDER BY 1, 2",
    "door_sessions": "SELECT * FROM door_sessions ORDER BY 1, 2, 3",
    "streams": "SELECT * FROM streams ORDER BY 1, 2",
    "faults": "SELECT dispenser_id, slot, code FROM faults WHERE cleared_at IS NULL ORDER BY 1, 2, 3",
}


OPENED_BY_HAND = """
    INSERT INTO faults (dispenser_id, slot, code, source, detail, opened_at)
    VALUES ('HD-001', 7, 'BOOK_BELOW_ZERO', 'server', '', now())"""
OF_NO_FACT = """
    INSERT INTO movements SELECT place, 'fact:HD-001/1/999#0', source, target, product, lot, 3, reason, actor,
           'fact:HD-001/1/999', at, booked_at, slot, 1, 999, 0 FROM movements WHERE place = 'HD-001' AND slot = 1 LIMIT 1"""


def lived(database: Database, seed: int) -> None:
    """Two streams of one machine with a gap, another machine, visits of which some arrive late, counts, claims and vends."""
    throw = random.Random(seed)
    for number, machine in enumerate((Machine(), Machine(), Machine("HD-002"))):
        late = []
        for visit in range(4):
            code = f"{number}{visit:05d}"
            machine.door(code)
            entries = [
                operation("count", code, 0, counted=throw.randrange(9), dispenser_id=machine.dispenser_id),
                operation("refill", code, 1, lot=throw.choice(["L1", "L2"]), packs=throw.randrange(1, 9), dispenser_id=machine.dispenser_id),
                operation("remove", code, 2, lot="L1", packs=1, reason="damaged", dispenser_id=machine.dispenser_id),
            ]  # fmt: skip
            late += entries
            for _ in range(throw.randrange(2, 7)):
                machine.vend(
                    throw.choice([1, 2]), throw.choice([Outcome.DELIVERED, Outcome.IN_DOUBT, Outcome.JAM]), lot="L1"
                )
            claims = [SlotClaim(slot=slot, queue=[LotPacks(lot="L2", packs=3)]) for slot in (1, 2)]
            machine.tell(StockLevel(**machine.when(), slots=claims), Count(**machine.when(), slot=2, counted=5))
            machine.tell_line(b"unreadable")
        if number == 1:
            send_bytes(database, machine.dispenser_id, machine.batch(4, oldest=True))
        else:
            send(database, machine)
        throw.shuffle(late)
        enter(database, *late)


def made_anew(database: Database, *, correct: bool = False) -> list[Difference]:
    with database.begin() as connection:
        return rebuild(connection, NOW, correct=correct)


def projections(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    return {name: table(database, query) for name, query in PROJECTIONS.items()}


def spoil(database: Database, statement: str) -> None:
    """Change what nobody may change: as an owner could who switches the triggers off."""
    with database.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        assert connection.execute(text(statement)).rowcount > 0, statement


def is_clean(database: Database) -> bool:
    with database.begin() as connection:
        return audit(connection).differences == []


@pytest.fixture
def used(database: Database) -> Database:
    """A database with a history; what late entries left of faults is put right."""
    lived(database, seed=5)
    assert is_clean(database)
    assert {difference.table for difference in made_anew(database)} <= {"faults"}
    assert made_anew(database) == []
    return database


def test_each_projection_spoilt_by_hand_is_as_it_was(used: Database) -> None:
    before = projections(used)
    for name, statement in [
        ("balances", "UPDATE balances SET units = units + 1 WHERE account = 'slot/HD-001/1'"),
        ("balances", "DELETE FROM balances WHERE account LIKE 'van/%'"),
        ("balances", "INSERT INTO balances VALUES ('slot/HD-009/1', 'X', 'Y', 4)"),
        ("slot_books", "UPDATE slot_books SET book = jsonb_set(book, '{queue}', '[]') WHERE slot = 1"),
        ("slot_books", "UPDATE slot_books SET seq = seq + 1"),
        ("slot_books", "DELETE FROM slot_books WHERE slot = 2"),
        ("slot_books", "INSERT INTO slot_books SELECT dispenser_id, 9, book, 1, 1, 0 FROM slot_books WHERE slot = 1"),
        ("door_sessions", "UPDATE door_sessions SET closed_seq = NULL, closed_at = NULL"),
        ("door_sessions", "DELETE FROM door_sessions WHERE stream_no = 1"),
        ("streams", "UPDATE streams SET through_seq = through_seq - 2"),
        ("streams", r"UPDATE streams SET digest = '\x00', last_at = NULL, last_boot_id = NULL"),
        ("faults", "DELETE FROM faults WHERE code = 'STOCK_CLAIM_DIFFERS'"),
        ("faults", OPENED_BY_HAND),
    ]:  # fmt: skip
        spoil(used, statement)
        assert {(d.table, d.repaired) for d in made_anew(used)} == {(name, True)}, statement
        assert projections(used) == before, statement
    assert is_clean(used)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM movements WHERE id LIKE 'fact:HD-001/1/%' AND reason = 'vend_dispensed'",
        "UPDATE movements SET units = units + 1 WHERE reason = 'refill'",
        "DELETE FROM movements WHERE reason = 'receipt' AND lot = 'L1'",
        OF_NO_FACT,
        "UPDATE operations SET state = 'waiting', stream_no = NULL, seq = NULL WHERE kind = 'count'",
    ],
)
def test_movements_that_facts_and_operations_imply_are_posted_when_asked_for(used: Database, statement: str) -> None:
    """What is truth is not rewritten: a difference is posted beside it."""
    before = projections(used)
    spoil(used, statement)
    told = made_anew(used)
    assert {d.repaired for d in told if d.table in {"movements", "operations"}} == {False}
    assert not is_clean(used)
    rows = table(used, "SELECT id FROM movements")
    assert made_anew(used, correct=True)
    assert is_clean(used)
    assert projections(used)["slot_books"] == before["slot_books"]
    assert set(rows) <= set(table(used, "SELECT id FROM movements"))
    assert made_anew(used, correct=True) == []


def test_what_is_gone_for_good_is_told_and_left_alone(used: Database) -> None:
    spoil(used, "DELETE FROM facts WHERE dispenser_id = 'HD-002' AND seq = 3")
    spoil(used, "DELETE FROM streams WHERE dispenser_id = 'HD-001' AND stream_no = 2")
    left = {(d.table, d.place) for d in made_anew(used) if not d.repaired and d.table in {"facts", "streams"}}
    assert left == {("facts", "HD-002/1"), ("streams", "HD-001/2")}


def test_the_command_says_what_differed(used: Database, database_url: str) -> None:
    spoil(used, "UPDATE balances SET units = units + 1 WHERE account = 'slot/HD-001/1'")
    done = run("rebuild", url=database_url)
    assert done.returncode == 1, done
    assert "balances slot/HD-001/1" in done.stdout
    assert made_anew(used) == []


def test_a_report_that_wants_what_is_being_put_right_waits_and_is_not_lost(used: Database) -> None:
    """Ingest holds one machine while the other's packs are posted anew to an account that it wants, too."""
    spoil(used, "DELETE FROM movements WHERE place = 'HD-001' AND reason = 'refill'")
    wants = operation("refill", "200000", 9, lot="L1", packs=2, dispenser_id="HD-002")
    with ThreadPoolExecutor(1) as pool:
        with used.begin() as working:
            devices.lock(working, ["HD-002"])
            made = pool.submit(made_anew, used, correct=True)
            _await_waiting(used)
            assert [str(booking.verdict) for booking in book(working, [wants], NOW)] == ["booked"]
        assert made.result()
    assert is_clean(used)


def test_picks_wait_for_what_is_being_put_right_and_none_fails(used: Database) -> None:
    """The depot's balance is put right while pickers want the same row."""
    spoil(used, "DELETE FROM movements WHERE place = 'HUANGDAO' AND reason = 'receipt'")

    def picked(number: int) -> str:
        line = depot.StockLine("CONDOM-M", "L1", 1)
        with used.begin() as connection:
            return str(depot.pick(connection, f"pick-{number:05d}", "HUANGDAO", "van/T9", [line], "user:li", NOW))

    with ThreadPoolExecutor(3) as pool:
        picks = [pool.submit(picked, number) for number in range(120)]
        picks[10].result()
        assert made_anew(used, correct=True)
        assert {pick.result() for pick in picks} == {"booked"}
    assert is_clean(used)


def _await_waiting(database: Database) -> None:
    """Wait until somebody waits for a lock of this database."""
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    for _ in range(400):
        if table(database, query):
            return
        time.sleep(0.05)
    pytest.fail("nobody waits")
