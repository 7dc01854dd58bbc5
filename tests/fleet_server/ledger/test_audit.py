"""The audit finds whatever was done to the stored facts behind the server's back."""

import psycopg
import pytest

from fleet_server.database import Database
from fleet_server.ledger.audit import Difference, audit
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.machine import Machine


@pytest.fixture
def used(database: Database) -> Database:
    """HD-001 with a visit and vends (facts 1 to 6), HD-002 with a vend, both with books that agree."""
    send(database, Machine().door("111111").vend().vend().vend(slot=2).vend())
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
    assert {(d.check, d.account, d.expected, d.found) for d in found(used)} == differences
