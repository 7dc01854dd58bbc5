"""A random walk of one machine, its cards, the messages, the phones and a server that is restored, and what must hold at its end.

The agent and its outbox, ingest, the ledger, backup and restore are the real ones. Everything follows the seed.
"""

import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.ingest.worker import Message, Outbound, Worker
from fleet_server.ledger.operations import SlotOperation, book, book_lost_doors
from fleet_server.ledger.reading import slot_stock
from fleet_server.ledger.telling import tell_desired
from fleet_server.recovery.rebuild import rebuild
from protocol.topics import parse, topic
from simulator.boards.physical_board import PhysicalBoard
from simulator.boards.virtual_board import Fault
from tests.device_agent.machines import Bench
from tests.fleet_server.fixtures import operation, plant
from tests.fleet_server.recovery.databases import backed_up, put_back
from tests.reliability.invariants import Witness, check

DISPENSER: Final = "HD-001"
SLOTS: Final = (1, 2)
BEGINS_AT: Final = datetime(2025, 9, 22, 4, tzinfo=UTC)
"""Noon at the machine, in the past: an epoch is a second of the clock, and a server waits until it is over."""
DAY_S: Final = 86_400
STEPS_MIN, STEPS_MAX = 30, 90
ROUNDS_MAX: Final = 400
"""So often, half a minute apart, messages travel whole before what is not there by then counts as stuck."""
Card = Path


class MachineOfManyCards:
    """A machine on its bench whose board remembers, whatever card it is started from."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory, self._cards = directory, 0
        self.board = PhysicalBoard(random.Random(seed))
        self.bench = Bench(self._new_card() / "outbox.sqlite", seed=seed, stream_ids=random.Random(seed))
        self.bench.now_ms = int(BEGINS_AT.timestamp()) * 1000
        self._starts()

    @property
    def witness(self) -> Witness:
        return Witness(DISPENSER, self.bench.path)

    @property
    def packs(self) -> dict[int, int]:
        """What is in each coil."""
        return {slot: len(self.board.coils.get(slot, [])) for slot in SLOTS}

    @property
    def believes(self) -> dict[int, int]:
        """What its own book has in each slot."""
        return {slot: sum(packs for _, packs in self.bench.outbox.slots[slot].queue) for slot in SLOTS}

    @property
    def has_told_everything(self) -> bool:
        return self.bench.outbox.pending == 0 and not self.bench.agent.sender.forked

    def copy_of_card(self) -> Card:
        """Its card as it is now; the machine is off meanwhile."""
        self.bench.outbox.close()
        copy = self._new_card()
        for file in self.bench.path.parent.glob("outbox.sqlite*"):
            shutil.copy(file, copy)
        self.restarts()
        return copy

    def restarts_from(self, copied: Card | None) -> None:
        """Start from a card with what was copied, or with nothing."""
        card = self._new_card()
        for file in copied.iterdir() if copied else ():
            shutil.copy(file, card)
        self.bench.outbox.close()
        self.bench.path = card / "outbox.sqlite"
        self.restarts()

    def restarts(self) -> None:
        self.bench.power_cut()
        self._starts()

    def is_asked(self, slot: int) -> None:
        """A visitor chooses a slot."""
        for effect in self.bench.tell(ev.SlotChosen(slot)):
            if isinstance(effect, ef.RunMotor):
                turn = self.board.turn(effect.slot, effect.board_sequence)
                self.bench.tell(
                    ev.VendEnded(effect.board_sequence, turn.result, turn.duration_ms, self.board.life_count)
                )

    def opens(self) -> str:
        """Somebody with the key opens; returns the code on the screen."""
        self.bench.tell(ev.DoorChanged(open=True))
        return self.bench.agent.display().session or ""

    def closes(self) -> None:
        self.board.jammed.clear()
        self.bench.tell(ev.DoorChanged(open=False))

    def _new_card(self) -> Card:
        self._cards += 1
        card = self._directory / f"card{self._cards}"
        card.mkdir()
        return card

    def _starts(self) -> None:
        self.bench.start(life_count=self.board.life_count, last_board_sequence=self.board.last_sequence)


class Walk:
    """One walk; `steps` tells what has happened so far. The database is empty of machines, and its user owns it."""

    def __init__(self, url: str, directory: Path, seed: int) -> None:
        self.seed, self.throw = seed, random.Random(seed)
        self.url, self.database, self._directory = url, Database(url), directory
        self.clock = FixedClock(BEGINS_AT)
        plant(self.database)
        with self.database.begin() as connection:
            tell_desired(connection, None, self.clock.now())
        self.workers = [Worker(self.database, self.clock) for _ in range(2)]
        self.machine = MachineOfManyCards(directory, seed)
        self.is_linked = False
        self.to_server: list[Message] = []
        self.to_machine: list[Outbound] = []
        self.on_phones: list[SlotOperation] = []
        self.sent_by_phones: list[SlotOperation] = []
        self.copies: list[Card] = []
        self.backups: list[Path] = []
        self.visits = self.restores = 0
        self.steps: list[str] = []

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: replay with RELIABILITY_SEED={self.seed} make test PYTEST_ARGS='-k walk_of_cards'; "
            f"{len(self.steps)} steps: {', '.join(self.steps)}"
        )

    def goes(self) -> None:
        """Take some dozens of steps."""
        weights, steps = zip(*STEPS, strict=True)
        for _ in range(self.throw.randrange(STEPS_MIN, STEPS_MAX)):
            [step] = self.throw.choices(steps, weights)
            self.steps.append(step.__name__)
            self._passes(self.throw.randrange(40, 4000))
            step(self)

    def ends(self) -> None:
        """Everything arrives, and must agree; then somebody counts, and all books must be what is in the coils.

        Pack by pack, not lot by lot: which lots were sold went with the cards.
        """
        self._everything_arrives()
        assert self.machine.has_told_everything, f"{self.machine.bench.outbox.pending} facts are stuck"
        check(self.url, [self.machine.witness])
        with self.database.begin() as connection:
            for table in ("dead_letters", "stream_gaps"):
                rows = connection.execute(text(f"SELECT * FROM {table}")).all()
                assert not rows, f"{table}: {rows[:3]}"
            differences = rebuild(connection, self.clock.now())
        assert not differences, f"a rebuild changes {differences[:3]}"
        self.somebody_restocks()
        self._everything_arrives()
        check(self.url, [self.machine.witness])
        there, booked, believed = self.machine.packs, self._booked(), self.machine.believes
        assert booked == believed == there, f"packs booked {booked}, believed by the machine {believed}, there {there}"

    def close(self) -> None:
        self.machine.bench.outbox.close()
        self.database.close()

    # ---------------------------------------------------------------- steps

    def visitors_come(self) -> None:
        """One turn in ten jams."""
        for _ in range(self.throw.randrange(1, 6)):
            slot = self.throw.choice(SLOTS)
            if self.throw.random() < 0.1:
                self.machine.board.plant(slot, Fault.JAM)
            self.machine.is_asked(slot)
            self._passes(60)

    def somebody_restocks(self) -> None:
        """Count and refill both slots, on a phone that sends it some time."""
        self.visits += 1
        code = self.machine.opens()
        self._passes(60)
        for number, slot in enumerate(SLOTS):
            self._enter("count", code, 2 * number, slot, counted=self.machine.packs[slot])
            lot, packs = self.throw.choice(["L1", "L2"]), self.throw.randrange(1, 5)
            self.machine.board.load(slot, lot, packs)
            self._enter("refill", code, 2 * number + 1, slot, lot=lot, packs=packs)
        self._passes(60)
        self.machine.closes()

    def link_comes(self) -> None:
        if not self.is_linked:
            self.is_linked = True
            self.machine.bench.agent.will(self.machine.bench.at())
            self._told(ev.LinkUp())

    def link_goes(self) -> None:
        """What is on its way to the machine may go with it."""
        if self.is_linked:
            self._told(ev.LinkDown())
            self.is_linked = False
            if self.throw.random() < 0.5:
                self.to_machine.clear()

    def messages_travel(self) -> None:
        """Some arrive, in another order, twice or not at all."""
        self._carry(self.throw.randrange(1, 6), is_lossy=True)

    def phones_send(self) -> None:
        while self.on_phones and self.throw.random() < 0.6:
            self._phone_sends()

    def card_is_copied(self) -> None:
        self.link_goes()
        self.copies.append(self.machine.copy_of_card())

    def old_card_is_put_back(self) -> None:
        if self.copies:
            self.link_goes()
            self.machine.restarts_from(self.throw.choice(self.copies))

    def new_card_is_put_in(self) -> None:
        self.link_goes()
        self.machine.restarts_from(None)

    def machine_restarts(self) -> None:
        self.link_goes()
        self.machine.restarts()

    def backup_is_written(self) -> None:
        directory = self._directory / f"backup{len(self.backups)}"
        directory.mkdir()
        self.backups.append(backed_up(self.database, directory, self.clock.now()))

    def backup_is_restored(self) -> None:
        """The server comes back as it was in any of its backups; phones offer everything again."""
        if self.backups:
            self.restores += 1
            self.link_goes()
            put_back(self.database, self.throw.choice(self.backups), self.clock.now())
            self.on_phones += self.sent_by_phones
            self.sent_by_phones.clear()

    def night_passes(self) -> None:
        """The nightly job books visits whose doors went with a card."""
        self._passes(DAY_S)
        with self.database.begin() as connection:
            book_lost_doors(connection, self.clock.now() - timedelta(hours=1), self.clock.now())

    # ---------------------------------------------------------------- parts of steps

    def _passes(self, seconds: float) -> None:
        bench = self.machine.bench.passes(seconds)
        self.clock.set(datetime.fromtimestamp(bench.now_ms / 1000, UTC))
        bench.tick()
        self._collect()

    def _told(self, *events: ev.Event) -> None:
        self.machine.bench.tell(*events)
        self._collect()

    def _collect(self) -> None:
        """Take what the machine wants sent; without a link that is nothing, as it knows."""
        bench = self.machine.bench
        asked, bench.asked = bench.asked, []
        for effect in asked if self.is_linked else ():
            if isinstance(effect, ef.Publish):
                self.to_server.append(Message(topic(DISPENSER, effect.channel), effect.payload))
            elif isinstance(effect, ef.Reconnect) and self.is_linked:
                self.link_goes()
                self.link_comes()

    def _enter(self, kind: str, code: str, step: int, slot: int, **more: Any) -> None:
        """On a phone; it has not been sent."""
        named = {"operation_id": UUID(int=self.throw.getrandbits(128)).hex, "visit_id": f"V{self.visits}"}
        more = named | {"entered_at": self.clock.now()} | more
        self.on_phones.append(operation(kind, code, step, slot, **more))

    def _phone_sends(self) -> None:
        entry = self.on_phones.pop(self.throw.randrange(len(self.on_phones)))
        self._passes(1)
        with self.database.begin() as connection:
            book(connection, [entry], self.clock.now())
        self.sent_by_phones.append(entry)

    def _carry(self, rounds: int, *, is_lossy: bool) -> None:
        for _ in range(rounds):
            if arrived := list(self._arriving(is_lossy=is_lossy)):
                self.to_machine += self.throw.choice(self.workers).commit(arrived).answers
            self.to_machine += self.throw.choice(self.workers).outbound(again=self.throw.random() < 0.1)
            while self.to_machine and not (is_lossy and self.throw.random() < 0.2):
                message = self.to_machine.pop(0)
                if self.is_linked and not (is_lossy and self.throw.random() < 0.1):
                    self._told(ev.MessageArrived(parse(message.topic).channel, message.payload))

    def _arriving(self, *, is_lossy: bool) -> Iterator[Message]:
        """What reaches the server next, as one batch."""
        if not self.to_server:
            return
        place, stays, is_lost = 0, False, False
        if is_lossy:
            place = self.throw.randrange(len(self.to_server)) if self.throw.random() < 0.3 else 0
            stays, is_lost = self.throw.random() < 0.2, self.throw.random() < 0.15
        first = self.to_server[place] if stays else self.to_server.pop(place)
        if is_lost:
            return
        yield first
        while self.to_server and self.throw.random() < 0.5:
            yield self.to_server.pop(0)

    def _everything_arrives(self) -> None:
        """A link that loses nothing any more; what the broker held may be gone."""
        self.link_goes()
        self.to_machine.clear()
        if self.throw.random() < 0.5:
            self.to_server.clear()
        for _ in range(ROUNDS_MAX):
            self._exchange()
            if not self.to_server and not self.to_machine and self.machine.has_told_everything:
                break
        while self.on_phones:
            self._phone_sends()
        for _ in range(4):
            self._exchange()

    def _exchange(self) -> None:
        self.link_comes()
        self._passes(30)
        self._carry(5, is_lossy=False)

    def _booked(self) -> dict[int, int]:
        with self.database.begin() as connection:
            stock = slot_stock(connection, [DISPENSER])
        return {slot: stock[DISPENSER, slot].units for slot in SLOTS}


STEPS: Final = (
    (12.0, Walk.visitors_come),
    (4.0, Walk.somebody_restocks),
    (5.0, Walk.link_comes),
    (3.0, Walk.link_goes),
    (14.0, Walk.messages_travel),
    (5.0, Walk.phones_send),
    (3.0, Walk.card_is_copied),
    (2.5, Walk.old_card_is_put_back),
    (1.0, Walk.new_card_is_put_in),
    (1.0, Walk.machine_restarts),
    (2.0, Walk.backup_is_written),
    (2.0, Walk.backup_is_restored),
    (1.0, Walk.night_passes),
)
"""What may happen next, and how likely that is beside the others."""
