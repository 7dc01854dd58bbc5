"""A machine that starts with less than the newest desired state is told it again: what a broker retains may be gone."""

from typing import Any

from fleet_server.database import Database
from fleet_server.devices import outgoing
from fleet_server.ledger.telling import tell_desired
from protocol.messages import Board, ConfigApplied, Started
from protocol.topics import Channel
from tests.fleet_server.fixtures import NOW, send
from tests.fleet_server.machine import Machine

BOARD = Board(model="BENCH", runs_sequence_once=True, counts_life=True)


def started(machine: Machine, version: int | None) -> Machine:
    reason: dict[str, Any] = {"reason": "start" if machine.lines else "new_stream"}
    fact = Started(**machine.when(), **reason, agent_version="1", board=BOARD, desired_version=version)
    return machine.tell(fact)


def applied(machine: Machine, version: int) -> Machine:
    return machine.tell(ConfigApplied(**machine.when(), what="desired", version=version, applied=True))


def waiting(database: Database) -> list[str]:
    """The versions of the desired state that wait for HD-001."""
    with database.begin() as connection:
        return [row.key for row in outgoing.pending(connection, "HD-001") if row.channel is Channel.DESIRED]


def test_a_new_card_is_told_the_desired_state_that_the_old_one_had_answered(database: Database) -> None:
    with database.begin() as connection:
        tell_desired(connection, ["HD-001"], NOW)
    (version,) = map(int, waiting(database))
    send(database, applied(started(Machine(), None), version))
    assert waiting(database) == []
    renewed = started(Machine(), None)
    send(database, renewed)
    assert waiting(database) == [str(version)]
    send(database, applied(renewed, version), 2)
    assert waiting(database) == []


def test_a_start_that_knows_the_newest_version_or_learns_it_in_the_same_batch_is_told_nothing(
    database: Database,
) -> None:
    with database.begin() as connection:
        tell_desired(connection, ["HD-001"], NOW)
    (version,) = map(int, waiting(database))
    machine = applied(started(Machine(), None), version)
    send(database, machine)
    send(database, started(machine, version), 3)
    assert waiting(database) == []
