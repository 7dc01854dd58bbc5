"""The checker itself: it is content with what is right, and names each promise that is broken on purpose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.database import Database
from protocol.codec import encode
from protocol.topics import Channel
from tests.device_agent.machines import Bench
from tests.fleet_server.fixtures import send_bytes
from tests.reliability.invariants import Witness, check, ledger_of


@pytest.fixture
def witness(database: Database, tmp_path: Path) -> Witness:
    """One machine whose facts are all with the server, and acknowledged."""
    bench = Bench(tmp_path / "outbox.sqlite")
    bench.loaded(("GOOD", 9))
    for _ in range(3):
        bench.vend()
    effects = bench.tell(ev.LinkUp())
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, ef.Publish) and effect.channel is Channel.FACTS:
            for reply in send_bytes(database, "HD-001", effect.payload):
                effects += bench.tell(ev.MessageArrived(Channel.ACK, encode(reply.message)))
    assert bench.outbox.pending == 0
    with database.begin() as connection:
        coils = ledger_of(connection, "HD-001")
    return Witness("HD-001", tmp_path / "outbox.sqlite", lambda: coils, lambda: 0)


def test_what_is_right_passes(witness: Witness, database_url: str) -> None:
    check(database_url, [witness], "seed 1")


def one_pack_more(witness: Witness, _: Database) -> Witness:
    assert witness.coils
    coils = {slot: [*coil, "L1"] for slot, coil in witness.coils().items()}
    return replace(witness, coils=lambda: coils)


def a_lost_fact(witness: Witness, database: Database) -> Witness:
    with database.begin() as connection:
        connection.execute(text("UPDATE streams SET through_seq = through_seq + 1 WHERE dispenser_id = 'HD-001'"))
    return witness


def a_lie_about_an_ack(witness: Witness, database: Database) -> Witness:
    with database.begin() as connection:
        connection.execute(text("UPDATE streams SET through_seq = through_seq - 1 WHERE dispenser_id = 'HD-001'"))
    return witness


def a_balance_that_nothing_moved(witness: Witness, database: Database) -> Witness:
    with database.begin() as connection:
        connection.execute(text("UPDATE balances SET units = units + 1 WHERE account = 'dispensed/HD-001'"))
    return witness


def a_lock_that_opened_unasked(witness: Witness, _: Database) -> Witness:
    return replace(witness, unlocked=lambda: 1)


@pytest.mark.parametrize(
    ("promise", "plant"),
    [
        ("I1b", one_pack_more),
        ("I3", a_lost_fact),
        ("I4", a_lie_about_an_ack),
        ("I1a, I2", a_balance_that_nothing_moved),
        ("I5", a_lock_that_opened_unasked),
    ],
)
def test_a_planted_breach_is_found_by_its_name(
    witness: Witness, database: Database, database_url: str, promise: str, plant: Callable[[Witness, Database], Witness]
) -> None:
    spoilt = plant(witness, database)
    with pytest.raises(AssertionError, match=promise):
        check(database_url, [spoilt], "seed 1")
