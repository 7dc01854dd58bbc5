"""A crash of the agent at every durable step of a vend, of a visit, of an order and of an acknowledgement, found by counting them.

The database connection counts: before each statement and after it the machine may die. Nothing else is durable, so what
happens between two statements (the motor turns, the lock opens, a message arrives) has its place between two counts.
"""

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.outbox import Outbox
from protocol.codec import encode
from protocol.messages import Ack, DoorClosed, DoorOpened, LotPacks, OrderResult, Outcome, Refill, Unlock, Vend
from protocol.messages import Count as Counted
from protocol.topics import Channel
from simulator.boards.physical_board import PhysicalBoard
from tests.device_agent.machines import Bench

ORDER_ID = "5" * 32


class Died(BaseException):
    """The power was cut."""


class CountingConnection:
    """SQLite's connection, that dies at the n-th step."""

    def __init__(self, db: Any, dies_at: int) -> None:
        self._db, self._dies_at, self.steps = db, dies_at, 0

    def _step(self) -> None:
        self.steps += 1
        if self.steps >= self._dies_at:
            raise Died

    def execute(self, *arguments: Any) -> Any:
        return self._do(self._db.execute, arguments)

    def executemany(self, *arguments: Any) -> Any:
        return self._do(self._db.executemany, arguments)

    def _do(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if arguments[0].startswith("SELECT"):
            return call(*arguments)
        self._step()
        done = call(*arguments)
        self._step()
        return done

    def close(self) -> None:
        self._db.close()


class Place:
    """A machine where things happen: its board outlives every death of the agent."""

    def __init__(self, directory: Path, dies_at: int) -> None:
        self._directories = (directory / f"life-{n}" for n in itertools.count(1))
        self.board = PhysicalBoard(random.Random(1))
        self.door_open = False
        self.pulses = 0
        self.deaths = 0
        here = next(self._directories)
        here.mkdir(parents=True)
        self.bench = Bench(here / "outbox.sqlite")
        self.bench.loaded(("GOOD", 3), ("LATER", 2))
        self.board.load(1, "GOOD", 3)
        self.board.load(1, "LATER", 2)
        self.bench.outbox._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.count(dies_at)

    def count(self, dies_at: int) -> None:
        self.connection = CountingConnection(self.bench.outbox._db, dies_at)
        self.bench.outbox._db = self.connection  # type: ignore[assignment]

    def lives_through(self, happens: Callable[[], None]) -> bool:
        """Let something happen; where the agent dies of it, it starts again from what its card holds. Returns whether it lived."""
        try:
            happens()
        except Died:
            self.deaths += 1
            self._start_again()
            return False
        return True

    def _start_again(self) -> None:
        here = next(self._directories)
        here.mkdir()
        for file in self.bench.path.parent.iterdir():
            if not file.name.endswith("-shm"):
                shutil.copy(file, here / file.name)
        self.connection.close()
        self.bench.path = here / "outbox.sqlite"
        self.bench._boot()
        self.bench.asked.clear()
        board = self.board
        self.does(
            self.bench.start(
                life_count=board.life_count, last_board_sequence=board.last_sequence, door_open=self.door_open
            )
        )

    def does(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            match effect:
                case ef.RunMotor(slot, sequence):
                    turn = self.board.turn(slot, sequence)
                    self.does(self.bench.tell(ev.VendEnded(sequence, turn.result, 1500, self.board.life_count)))
                case ef.AskBoard(sequence):
                    answer = ev.BoardAnswered(sequence, self.board.stored(sequence), self.board.life_count)
                    self.does(self.bench.tell(answer))
                case ef.PulseLock():
                    self.pulses += 1

    def tell(self, *events: ev.Event) -> None:
        for event in events:
            self.does(self.bench.passes(1).tell(event))

    def facts(self, *kinds: type) -> list[Any]:
        return [fact for fact in self.bench.facts() if isinstance(fact, kinds)]


def ask(place: Place) -> None:
    place.tell(ev.SlotChosen(1))


def visit(place: Place) -> None:
    """Opens, puts packs in, enters them, counts, closes. What the machine does not show as entered is entered again."""
    place.door_open = True
    place.lives_through(lambda: place.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True)))
    place.board.load(1, "LATER", 4)
    refill = ev.LocalRefill(1, "CONDOM-M", added=(LotPacks(lot="LATER", packs=4),))
    count = ev.LocalCount(1, len(place.board.coils[1]))
    for entry, kind in ((refill, Refill), (count, Counted)):
        if not place.lives_through(lambda entry=entry: place.tell(entry)) and not place.facts(kind):  # type: ignore[misc]
            place.tell(entry)
    place.door_open = False
    place.tell(ev.DoorChanged(open=False), ev.ServiceKeyTurned(on=False))


def connect(place: Place) -> None:
    """A session: the server acknowledges, and orders the lock to open, twice."""
    place.tell(ev.LinkUp())
    outbox = place.bench.outbox
    ack = Ack(
        server_epoch=1, stream_id=outbox.stream_id, through_seq=outbox.last_seq, digest=outbox.last_digest.hex(),
        server_at_ms=place.bench.now_ms,
    )  # fmt: skip
    place.tell(ev.MessageArrived(Channel.ACK, encode(ack)))
    session = int(outbox.meta["session"])
    order = Unlock(order_id=ORDER_ID, stream_id=outbox.stream_id, session=session, expires_after_ms=60_000)
    arrived = ev.MessageArrived(Channel.ORDERS, encode(order))
    place.tell(arrived, arrived)


STORY: list[Callable[[Place], None]] = [ask, visit, ask, connect, ask]


def tell_the_story(directory: Path, dies_at: int) -> Place:
    place = Place(directory, dies_at)
    for chapter in STORY:
        lived = place.lives_through(lambda chapter=chapter: chapter(place))  # type: ignore[misc]
        if not lived and place.door_open:
            place.door_open = False
            place.tell(ev.DoorChanged(open=False), ev.ServiceKeyTurned(on=False))
        if not lived and chapter is connect:
            connect(place)
    return place


def check(place: Place, note: str) -> None:
    vends = place.facts(Vend)
    by_sequence = Counter(vend.board_sequence for vend in vends if vend.board_sequence is not None)
    assert max(by_sequence.values()) == 1, f"{note}: a vend was told twice: {by_sequence}"
    delivered = [vend for vend in vends if vend.outcome is Outcome.DELIVERED]
    assert len(delivered) == place.board.turns, f"{note}: {place.board.turns} turns, {len(delivered)} told"
    assert not [vend for vend in vends if vend.outcome is Outcome.IN_DOUBT], f"{note}: the board knew"
    book = [lot for lot, packs in place.bench.outbox.slots[1].queue for _ in range(packs)]
    assert book == place.board.coils[1], f"{note}: the book says {book}, the coil holds {place.board.coils[1]}"
    assert (len(place.facts(Refill)), len(place.facts(Counted))) == (1, 1), note
    opened, closed = place.facts(DoorOpened), place.facts(DoorClosed)
    assert [door.session for door in opened] == [door.session for door in closed], note
    results = place.facts(OrderResult)
    assert len(results) <= 1, f"{note}: answered twice"
    assert place.pulses <= sum(result.outcome == "done" for result in results), f"{note}: opened without a word"
    place.bench.outbox.close()
    Outbox(place.bench.path, "HD-001").close()  # the chain, the seal and the mark agree


def die_at_each_step(directory: Path) -> int:
    """Tell the story once for each step of it, and let the agent die there; returns how many there are."""
    for dies_at in itertools.count(1):
        here = directory / str(dies_at)
        place = tell_the_story(here, dies_at)
        check(place, f"died at step {dies_at}")
        shutil.rmtree(here)
        if place.deaths == 0:
            return dies_at - 1
    raise AssertionError


@pytest.mark.slow
def test_p2_the_agent_dies_at_every_durable_step_and_each_vend_refill_and_order_is_kept_once(fast_disk: Path) -> None:
    assert die_at_each_step(fast_disk) > 150


def test_p2_a_fact_that_is_committed_apart_from_its_stock_is_caught(
    fast_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect: two commits in place of one, and a death between them."""
    record = Outbox.record

    def in_two_commits(outbox: Outbox, *facts: Any, **changes: Any) -> None:
        record(outbox, *facts)
        record(outbox, **changes)

    monkeypatch.setattr(Outbox, "record", in_two_commits)
    with pytest.raises(AssertionError, match="told twice"):
        die_at_each_step(fast_disk)
