"""The audit finds whatever was done to the stored facts behind the server's back."""

import psycopg
import pytest

from fleet_server.database import Database
from fleet_server.ledger.audit import Difference, audit
from protocol.messages import Outcome
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.machine import Machine


@pytest.fixture
def used(database: Database) -> Database:
    """HD-001 with a visit, vends (facts 1 to 6) and a fork, HD-002 with a vend, both with books that agree."""
    machine = Machine().door("111111").vend().vend(outcome=Outcome.UNVERIFIED).vend(slot=2).vend()
    send(database, machine)
    send(database, Machine(stream_id=machine.stream_id).vend())
    send(database, Machine("HD-002").vend())
    enter(database, operation("count", "111111", 0, counted=0), operation("refill", "111111", 1, lot="L1", packs=9))
    return database


def found(database: Database) -> list[Difference]:
    with database.begin() as connection:
        return audit(connection).differences


def tamper(owner_url: str, statement: str) -> None:
    """As somebody with all rights over the database."""
    with psycopg.connect(owner_url) as connection:
        connection.execute("SET session_replication_role = replica")
        assert connection.execute(statement.encode()).rowcount > 0


def test_untouched_books_are_clean(used: Database) -> None:
    assert found(used) == []


@pytest.mark.parametrize(
    ("statement", "differences"),
    [
        # A byte of a fact that moves no stock: no balance shows it, the chain does.
        (
            (
                "UPDATE facts SET line = convert_to(replace(convert_from(line, 'UTF8'), 'true', 'True'), 'UTF8')"
                " WHERE kind = 'door_opened'"
            ),
            {("facts that the chain vouches for", "stream HD-001/1", 6, 0)},
        ),
        (
            "UPDATE streams SET digest = sha256('x') WHERE dispenser_id = 'HD-001'",
            {("facts that the chain vouches for", "stream HD-001/1", 6, 0)},
        ),
        (
            "DELETE FROM facts WHERE dispenser_id = 'HD-001' AND kind = 'door_closed'",
            {("seq contiguous", "stream HD-001/1", 6, 1)},
        ),
        (
            "UPDATE streams SET through_seq = 9 WHERE dispenser_id = 'HD-001'",
            {("seq contiguous", "stream HD-001/1", 9, 6)},
        ),
        (
            "UPDATE facts SET stream_no = 7, seq = 1, kind = NULL WHERE dispenser_id = 'HD-002'",
            {
                ("seq contiguous", "stream HD-002/1", 1, 0),
                ("facts of a stream that is known", "facts", 7, 6),
                ("movements against facts and operations", "dispensed/HD-002", 0, 1),
                ("movements against facts and operations", "slot/HD-002/1", 0, -1),
            },
        ),
        (
            "DELETE FROM streams WHERE dispenser_id = 'HD-002'",
            {("facts of a stream that is known", "facts", 7, 6)},
        ),
    ],
)
def test_what_was_done_to_facts_is_found(
    used: Database, owner_url: str, statement: str, differences: set[tuple[str, str, int, int]]
) -> None:
    tamper(owner_url, statement)
    assert {(d.check, d.account, d.expected, d.found) for d in found(used)} >= differences


VEND = "WHERE id = 'fact:HD-001/1/6#0' AND place = 'HD-001'"
BOOK = "WHERE dispenser_id = 'HD-001' AND slot"
LOAD = "WHERE kind = 'refill'"
MOVED = "what each fact and operation moved"
COLUMNS = "source, target, product, lot, units, reason, actor, cause, at, booked_at, slot, stream_no, seq, step"


HIDDEN = [
    (f"UPDATE movements SET at = at - interval '40 days' {VEND}", MOVED),
    (f"UPDATE movements SET actor = 'user:wang' {VEND}", MOVED),
    (f"UPDATE movements SET slot = 9 {VEND}", MOVED),
    (f"UPDATE movements SET seq = 9 {VEND}", MOVED),
    (f"UPDATE movements SET place = 'HD-002' {VEND}", MOVED),
    (f"UPDATE movements SET cause = 'operation:other' {VEND}", MOVED),
    (f"UPDATE movements SET reason = 'vend_test' {VEND}", "movement and its reason"),
    # Sums stay the same: a vend is taken back, and stands there once more in another month.
    (
        f"""INSERT INTO movements (place, id, {COLUMNS})
            SELECT place, cause || '#8', target, source, product, lot, units, 'rebooked', actor, cause, at, booked_at, slot,
                   stream_no, seq, step FROM movements {VEND}
            UNION ALL SELECT place, cause || '#9', source, target, product, lot, units, reason, actor, cause,
                   at - interval '40 days', booked_at, slot, stream_no, seq, step FROM movements {VEND}""",
        MOVED,
    ),
    (f"DELETE FROM slot_books {BOOK} = 1", "book of the slot"),
    (f"UPDATE slot_books SET book = jsonb_set(book, '{{owed}}', '[]') {BOOK} = 2", "packs owed"),
    (
        f"UPDATE slot_books SET book = jsonb_set(book, '{{doubtful}}', '[]') {BOOK} = 1",
        "vends that a count may settle",
    ),
    (
        f"UPDATE slot_books SET book = jsonb_set(book, '{{last}}', '[\"CONDOM-M\", \"L2\"]') {BOOK} = 2",
        "last lot of an empty coil",
    ),
    (f"UPDATE slot_books SET seq = 1 {BOOK} = 1", "last entry of the book"),
    ("UPDATE facts SET kind = 'started' WHERE kind = 'door_opened'", "kind of a fact"),
    ("UPDATE facts SET kind = NULL WHERE kind = 'door_opened'", "fact without kind or reason"),
    (
        """INSERT INTO facts SELECT dispenser_id, stream_no, 1000, line, kind, at, corrected_at, received_at FROM facts
           WHERE kind = 'door_opened'""",
        "facts and holes beyond the cursor",
    ),
    (
        "INSERT INTO stream_gaps VALUES ('HD-001', 1, 100, 200, sha256('x'), now())",
        "facts and holes beyond the cursor",
    ),
    ("UPDATE facts SET line = 'x' WHERE kind = 'vend'", "fact or operation that can be read"),
    (f"UPDATE operations SET payload = payload - 'packs' {LOAD}", "fact or operation that can be read"),
    ("UPDATE forked_facts SET line = 'x'", "forked fact and its digest"),
    (f"UPDATE operations SET actor = 'user:wang' {LOAD}", "operation and its payload"),
    (f"UPDATE operations SET slot = 2 {LOAD}", "operation and its payload"),
    (f"UPDATE operations SET payload = jsonb_set(payload, '{{van}}', '\"van/T9\"') {LOAD}", MOVED),
    (f"UPDATE operations SET entered_at = entered_at - interval '9 days' {LOAD}", MOVED),
    ("UPDATE operations SET dispenser_id = 'OTHER' WHERE kind = 'receipt'", MOVED),
    ("DELETE FROM door_sessions", "door sessions that facts tell of"),
    ("UPDATE door_sessions SET session = '999999'", "door sessions that facts tell of"),
    ("UPDATE door_sessions SET closed_seq = NULL", "door sessions that facts tell of"),
]
"""What was done to rows of which no sum tells, and the check that finds it."""
TABLES = (
    "movements", "slot_books", "facts", "stream_gaps", "forked_facts", "operations", "door_sessions",
)  # fmt: skip


def test_what_was_done_to_a_row_that_no_sum_shows_is_found(used: Database, owner_url: str) -> None:
    with psycopg.connect(owner_url) as connection:
        for table in TABLES:
            connection.execute(f"CREATE TABLE kept_{table} AS TABLE {table}".encode())
    overlooked = []
    for statement, check in HIDDEN:
        tamper(owner_url, statement)
        if check not in {difference.check for difference in found(used)}:
            overlooked.append(statement)
        for table in TABLES:
            with psycopg.connect(owner_url) as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute(f"DELETE FROM {table}".encode())
                connection.execute(f"INSERT INTO {table} TABLE kept_{table}".encode())
    assert overlooked == []
    assert found(used) == []
