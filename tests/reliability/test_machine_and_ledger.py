"""V2, S5, T1: what goes wrong at a machine, its card and its clock, as the ledger books it."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.database import Database
from fleet_server.devices import fleet
from fleet_server.faults.store import open_faults
from fleet_server.ingest.apply import STREAM_FORKED
from fleet_server.ingest.worker import Message
from fleet_server.ingest.writing import STREAM_REPLACED
from fleet_server.ledger.booking import COUNT_DUE
from fleet_server.ledger.reading import balances
from protocol.messages import Started
from protocol.topics import topic
from simulator.boards.virtual_board import Fault
from tests.device_agent.machines import Bench
from tests.fleet_server.fixtures import NOW, enter, operation
from tests.reliability.invariants import check
from tests.reliability.links import Stocked, Wire
from tests.reliability.test_machine_alone import JUMPS

ACCOUNTS = ("dispensed", "unverified", "in_doubt", "count_difference", "slot")


@pytest.fixture
def machine(fast_disk: Path) -> Stocked:
    return Stocked(fast_disk / "outbox.sqlite", seed=5)


@pytest.fixture
def wire(machine: Stocked, database: Database) -> Wire:
    """Ten packs of L1 are in the coil and in the books."""
    wire = Wire(machine.bench, database)
    wire.connect()
    machine.opens()
    machine.refill_here("L1", 10)
    machine.closes()
    wire.carry()
    return wire


def booked(database: Database) -> dict[str, int]:
    with database.begin() as connection:
        rows = [(row.account, row.units) for row in balances(connection)]
    sums = {name: sum(units for account, units in rows if account.startswith(f"{name}/HD-001")) for name in ACCOUNTS}
    return {name: units for name, units in sums.items() if units}


def codes(database: Database) -> set[str]:
    with database.begin() as connection:
        return {fault.code for fault in open_faults(connection)}


@pytest.mark.parametrize(
    ("fault", "books", "unobserved"),
    [
        (None, {"dispensed": 1, "slot": 9}, 0),
        (Fault.JAM, {"slot": 10}, 0),
        (Fault.ABSENT, {"slot": 10}, 0),
        (Fault.FELL_UNSEEN, {"unverified": 1, "slot": 9}, 0),
        (Fault.DID_NOT_FALL, {"unverified": 1, "slot": 9}, 1),
        (Fault.DOUBLE_DROP, {"dispensed": 1, "slot": 9}, -1),
    ],
)
def test_v2_each_way_in_which_a_vend_goes_wrong_has_a_booking_of_its_own(
    machine: Stocked, wire: Wire, database_url: str, fault: Fault | None, books: dict[str, int], unobserved: int
) -> None:
    if fault is not None:
        machine.board.plant(1, fault)
    machine.ask()
    wire.carry()
    assert booked(wire.database) == books
    assert len(machine.board.coils[1]) - books["slot"] == unobserved, "what no machine can observe, and nothing else"
    assert bool({"SLOT_JAM", "SLOT_HELIX"} & codes(wire.database)) == (fault is Fault.JAM)
    machine.opens()
    machine.count_here()
    machine.closes()
    wire.carry()
    check(database_url, [machine.witness], f"{fault}: after an accurate count nothing is left over")


def test_v2_a_refill_while_offline_is_booked_where_it_belongs_whoever_tells_of_it_first(
    machine: Stocked, wire: Wire, database_url: str
) -> None:
    wire.disconnect()
    machine.ask()
    code = machine.opens()
    machine.board.load(1, "L2", 4)
    machine.closes()
    for _ in range(11):  # the machine knows of ten; what was put in since is tried, and the drop sensor decides
        machine.ask()
    refill = operation("refill", code, 1, lot="L2", packs=4)
    assert [booking.verdict for booking in enter(wire.database, refill)] == ["waiting"]
    wire.connect()
    assert len(machine.board.coils[1]) == 2
    assert booked(wire.database) == {"dispensed": 12, "slot": 2}
    check(database_url, [machine.witness], "a refill told by the phone before the machine told of the door")


# ---------------------------------------------------------------- S5


def copied_card(machine: Stocked) -> Path:
    """Copy the card, and start the machine again on its own."""
    card = machine.bench.path.parent / "image"
    card.mkdir()
    machine.bench.outbox.close()
    for file in machine.bench.path.parent.glob("outbox.*"):
        shutil.copy(file, card)
    starts(machine)
    return card


def put_back(machine: Stocked, card: Path) -> None:
    machine.bench.outbox.close()
    machine.bench.path = card / "outbox.sqlite"
    starts(machine)


def starts(machine: Stocked) -> None:
    machine.bench._boot()
    machine.bench.start(life_count=machine.board.life_count, last_board_sequence=machine.board.last_sequence)


def test_s5_an_old_card_forks_both_histories_are_kept_and_a_new_stream_begins(machine: Stocked, wire: Wire) -> None:
    database = wire.database
    machine.ask()
    wire.carry()
    old_stream = machine.bench.outbox.stream_id
    card = copied_card(machine)
    wire.connect()
    for _ in range(3):
        machine.ask()
    wire.carry()
    before = booked(database)
    with database.begin() as connection:
        stored = connection.execute(text("SELECT seq, line FROM facts ORDER BY seq")).all()

    # The old image is put back, and a vend happens before the server is heard of.
    put_back(machine, card)
    turns = machine.board.turns
    machine.ask()
    assert machine.board.turns == turns + 1, "the board does not take the vend for one that it has run"
    wire.connect()
    wire.carry()
    assert machine.bench.outbox.stream_id != old_stream
    assert isinstance(machine.bench.facts()[0], Started)
    assert codes(database) >= {STREAM_FORKED, STREAM_REPLACED, COUNT_DUE}
    with database.begin() as connection:
        query = text("SELECT seq, line FROM facts WHERE stream_no = 1 ORDER BY seq")
        assert connection.execute(query).all() == stored, "the first history stands as it was"
        forked = [
            bytes(line) for line in connection.execute(text("SELECT line FROM forked_facts ORDER BY seq")).scalars()
        ]
    assert any(b'"started"' in line for line in forked)
    assert any(b'"vend"' in line for line in forked), "and the second one is kept beside it"
    kept = machine.bench.outbox._db.execute("SELECT count(*) FROM former_facts").fetchone()[0]
    assert kept >= len(forked)
    assert booked(database) == before, "the forked vend is no booking: the count that is due finds it"
    machine.opens()
    machine.count_here()
    machine.closes()
    wire.carry()
    with database.begin() as connection:
        assert sum(row.units for row in balances(connection, "slot/HD-001")) == len(machine.board.coils[1])


def test_s5_an_ack_on_its_way_while_an_old_card_is_put_back_acknowledges_nothing_of_it(
    machine: Stocked, wire: Wire
) -> None:
    card = copied_card(machine)
    wire.connect()
    machine.ask()
    said = [effect for effect in machine.bench.asked if isinstance(effect, ef.Publish) and effect.qos]
    late = wire.worker.commit([Message(topic("HD-001", effect.channel), effect.payload) for effect in said]).answers
    machine.bench.asked.clear()

    put_back(machine, card)
    copied_through = machine.bench.outbox.acked_through
    for _ in range(3):
        machine.ask()
    machine.bench.tell(ev.LinkUp())
    wire.hear(late)
    assert machine.bench.outbox.acked_through == copied_through, "these numbers are another card's facts"
    old_stream = machine.bench.outbox.stream_id
    own = [*machine.bench.outbox.lines_after(copied_through)]
    wire.disconnect()  # and what it sent itself is lost
    wire.connect()
    assert machine.bench.outbox.stream_id != old_stream
    with wire.database.begin() as connection:
        forked = connection.execute(text("SELECT line FROM forked_facts ORDER BY seq")).scalars()
        assert [bytes(line) for line in forked] == own, "each fact of the old card is kept beside the others"


# ---------------------------------------------------------------- T1


@pytest.mark.parametrize("jump", JUMPS)
def test_t1_times_of_a_clock_that_jumped_are_bounded_and_no_fact_falls_out(
    machine: Stocked, wire: Wire, jump: str
) -> None:
    bench: Bench = machine.bench
    bench.now_ms = int(NOW.timestamp() * 1000) - 3_600_000
    bench.power_cut().start()
    wire.connect()
    machine.ask()
    wire.carry()
    bench.now_ms += JUMPS[jump]
    for _ in range(3):
        machine.ask()
    bench.power_cut().start()
    machine.ask()
    bench.now_ms -= JUMPS[jump]
    machine.ask()
    wire.connect()
    with wire.database.begin() as connection:
        facts = fleet.facts_page(connection, "HD-001", limit=200)
    assert len(facts) == bench.outbox.last_seq
    in_order = sorted(facts, key=lambda fact: fact.seq)
    latest = in_order[0].corrected_at
    for fact in in_order:
        assert latest - timedelta(days=1) <= fact.corrected_at <= NOW + timedelta(days=1), f"{jump}: {fact}"
        latest = max(latest, fact.corrected_at)
    assert booked(wire.database)["dispensed"] == 10 - len(machine.board.coils[1])
    bench.tell(ev.LinkDown())
