"""An entry without the code of its door session: one session near it is meant, of several nobody can tell."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet_server.database import Database
from fleet_server.ledger.audit import audit
from fleet_server.ledger.movements import Verdict
from fleet_server.ledger.reading import entries_of_visit, slot_stock
from fleet_server.recovery.rebuild import rebuild
from tests.fleet_server.fixtures import NOW, enter, operation, send
from tests.fleet_server.machine import BASE_MS, Machine

AT = datetime.fromtimestamp(BASE_MS / 1000, UTC) + timedelta(minutes=1)
"""When the machine's door opens."""


def states(database: Database) -> list[str]:
    with database.begin() as connection:
        assert audit(connection).differences == []
    with database.begin() as connection:
        assert rebuild(connection, NOW) == []
        return [entry.state for entry in entries_of_visit(connection, "V1")]


def test_it_is_booked_whichever_comes_first_the_entry_or_the_machines_word(database: Database) -> None:
    load: dict[str, Any] = {"entered_at": AT, "lot": "L1", "packs": 5}
    (early,) = enter(database, operation("refill", None, 0, **load))
    assert early.verdict is Verdict.WAITING
    send(database, Machine().vend().door("111111"))
    (late,) = enter(database, operation("refill", None, 1, **load))
    assert late.verdict is Verdict.BOOKED
    assert states(database) == ["booked", "booked"]
    with database.begin() as connection:
        assert slot_stock(connection)["HD-001", 1].units == 9


@pytest.mark.parametrize("cut", [[(1, 4)], [(1, 2), (3, 4)], [(1, 1), (2, 4)]])
def test_it_is_booked_at_the_first_door_that_arrives_however_that_is_cut(
    database: Database, cut: list[tuple[int, int]]
) -> None:
    enter(database, operation("refill", None, 0, lot="L1", packs=5, entered_at=AT))
    machine = Machine().door("111111").door("222222")
    for first, last in cut:
        send(database, machine, first, last)
    assert states(database) == ["booked"]
    with database.begin() as connection:
        found = connection.exec_driver_sql("SELECT seq FROM operations WHERE state = 'booked' AND slot = 1").scalars()
        assert list(found) == [1]


def test_of_two_doors_that_are_known_none_is_meant_nor_of_a_third(database: Database) -> None:
    machine = Machine().door("111111").door("222222")
    send(database, machine)
    enter(database, operation("refill", None, 0, lot="L1", packs=5, entered_at=AT))
    send(database, machine.door("333333"), 5)
    assert states(database) == ["waiting"]


def test_a_code_of_another_time_names_no_session_to_a_rebuild_either(database: Database) -> None:
    enter(database, operation("refill", "111111", 0, lot="L1", packs=5, entered_at=AT - timedelta(days=40)))
    send(database, Machine().vend().door("111111"))
    assert states(database) == ["waiting"]
