"""Every fault, done to a simulated machine in virtual time and found by its agent: raised when it is there, cleared when it is over."""

from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import decode_batch, decode_fact, encode, first_digest, next_digest
from protocol.messages import (
    Ack,
    Books,
    Desired,
    FaultCleared,
    FaultRaised,
    Gap,
    LotInfo,
    LotPacks,
    SlotClaim,
    SlotPlan,
    Unlock,
)
from protocol.topics import Channel
from simulator.by_hand import Hands
from simulator.faults import FORMS, Injection, InjectionError, Kind
from simulator.machine import SimulatedMachine
from simulator.world import HOUR_MS, World, day_start_ms, sites

START = day_start_ms(date(2026, 4, 14))
MINUTE = 60_000
QUIET: dict[str, Any] = {
    **{
        f"faults.{name}.rate": 0
        for name in ("NET_LOSS", "POWER_LOSS", "VMC_OFFLINE", "READER_FAULT", "DROP_SENSOR_BLOCKED")
    },
    **{
        f"faults.{name}.rate": 0
        for name in ("VANDALISM", "DOOR_OPEN_UNAUTH", "LOCK_FAULT", "TEMP_SENSOR_FAULT", "SLOT_JAM")
    },
    "faults.DROP_NOT_SEEN.rate": 0,
    "faults.rare_per_machine_month": 0,
    "theft.packs_per_machine_month": 0,
    "site_closed.per_machine_month": 0,
    "vends.double_drop_per_1000": 0,
    "power.without_battery_share": 0,
    "network.signal_dbm.site_sd": 0,
}
SLOTS = (1, 2)


class Played:
    """One machine of a quiet world, and a server that acknowledges everything at once."""

    def __init__(self, directory: Path, **parameters: Any) -> None:
        site = next(site for site in sites() if site.kind == "dormitory")
        self._streams: dict[str, tuple[int, bytes]] = {}
        self._said: list[bytes] = []
        self.machine = SimulatedMachine(site, World(3, QUIET | parameters), directory, START, self._sent)
        self.until(0.05)
        desired = Desired(
            version=1,
            planogram=[SlotPlan(slot=slot, product="CONDOM-M", capacity=400) for slot in SLOTS],
            lots=[LotInfo(lot="GOOD", product="CONDOM-M", expires_on=date(2030, 1, 1))],
        )
        self._says(Channel.DESIRED, encode(desired))
        self.tell_books()
        for slot in SLOTS:
            self.machine.board.load(slot, "GOOD", 400)

    def tell_books(self) -> None:
        outbox = self.machine._outbox
        claims = [SlotClaim(slot=slot, queue=[LotPacks(lot="GOOD", packs=400)]) for slot in SLOTS]
        version = int(outbox.meta.get("books_version") or 0) + 1
        books = Books(version=version, stream_id=outbox.stream_id, as_of_seq=outbox.last_seq, slots=claims)
        self._says(Channel.BOOKS, encode(books))

    def _says(self, channel: Channel, payload: bytes) -> None:
        self.machine.message(channel, payload)
        self.machine.deliver()

    def _sent(self, _id: str, channel: Channel, payload: bytes, _qos: int, _retain: bool) -> None:
        if channel is Channel.FACTS:
            self._said.append(self._answer(payload))

    def _answer(self, payload: bytes) -> bytes:
        batch = decode_batch(payload)
        stream, first = batch.header.stream_id, batch.header.first_seq
        seq, digest = self._streams.setdefault(stream, (0, first_digest(batch.header.dispenser_id, stream)))
        if first <= seq + 1:
            for line in batch.lines[seq + 1 - first :]:
                seq, digest = seq + 1, next_digest(digest, line)
            self._streams[stream] = seq, digest
        kind = Ack if first <= seq + 1 else Gap
        return encode(
            kind(
                server_epoch=1,
                stream_id=stream,
                through_seq=seq,
                digest=digest.hex(),
                server_at_ms=self.machine.now_ms,
                sent_at_ms=batch.header.sent_at_ms,
            )
        )

    def _settled(self) -> None:
        while self._said:
            self.machine.message(Channel.ACK, self._said.pop(0))

    def until(self, hours: float) -> "Played":
        """Play to so many hours after the start."""
        ends_ms = START + int(hours * HOUR_MS)
        while not self.machine.run_until(ends_ms):
            self._settled()
        return self

    def inject(self, kind: Kind, at_h: float, until_h: float | None = None, **more: Any) -> "Played":
        until_ms = None if until_h is None else START + int(until_h * HOUR_MS)
        injection = Injection(START + int(at_h * HOUR_MS), kind, until_ms, **more)
        self.machine.plan(injection.at_ms, lambda: self.machine.inject(injection))
        return self

    def visit(self, at_h: float, *, by_order: bool = False, minutes: int = 8) -> "Played":
        """Let a restocker open the door, with the key or by an order, and close it again."""
        machine, at_ms = self.machine, START + int(at_h * HOUR_MS)
        if by_order:
            machine.plan(at_ms, self._unlock)
        opens_ms = at_ms + (3 if machine.lock_is_stuck or by_order else 0) * MINUTE
        machine.plan(opens_ms, self._opened)
        machine.plan(opens_ms + minutes * MINUTE, machine.close_door)
        return self

    def _opened(self) -> None:
        self.machine.open_door(by_key=not self.machine.unlocked)

    def _unlock(self) -> None:
        outbox = self.machine._outbox
        order = Unlock(
            order_id="a" * 32,
            stream_id=outbox.stream_id,
            session=int(outbox.meta["session"]),
            expires_after_ms=10**9,
        )
        self._says(Channel.ORDERS, encode(order))

    def told(self) -> list[str]:
        words = []
        for line in self.machine._outbox.lines_after(0):
            fact = decode_fact(line)
            if isinstance(fact, FaultRaised | FaultCleared):
                words.append(("+" if isinstance(fact, FaultRaised) else "-") + fact.code)
        return words

    def doors(self) -> list[str]:
        kinds = [decode_fact(line).kind for line in self.machine._outbox.lines_after(0)]
        return [kind for kind in kinds if kind.startswith("door")]

    def ask(self, at_h: float, times: int = 1, slot: int = 1) -> "Played":
        """Visitors, five minutes apart."""
        for number in range(times):
            self.inject(Kind.VISITOR_COMES, at_h + number / 12, slot=slot)
        return self


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    made = Played(tmp_path, **{"type_base_boxes_per_day.dormitory": 0})
    yield made
    made.machine.close()


def test_a_quiet_world_has_no_faults(played: Played) -> None:
    assert played.until(30 * 24).told() == []


# kind: (injected from .. until (hours), its value), what else happens, hours played, what the agent tells in the end
COURSES: dict[Kind, tuple[tuple[float, float | None, float | None], str, float, list[str]]] = {
    Kind.MAINS_FAILS: ((5, 6, None), "", 12, ["+POWER_LOSS", "-POWER_LOSS"]),
    Kind.BATTERY_DRAINED: ((5, 6, 10_500), "", 12, ["+BATTERY_LOW", "-BATTERY_LOW"]),
    Kind.SIGNAL_WEAK: ((5, 9, None), "", 12, ["+NET_WEAK", "-NET_WEAK"]),
    Kind.SIM_DENIED: ((5, 9, None), "", 12, ["+SIM_FAULT", "-SIM_FAULT"]),
    Kind.MOTOR_JAMS: ((5, None, None), "ask at 6, visit at 8, ask at 9", 12, ["+SLOT_JAM", "-SLOT_JAM"]),
    Kind.MOTOR_MISSING: (
        (5, None, None),
        "ask at 6, visit at 8, ask at 9",
        12,
        ["+SLOT_MOTOR_ABSENT", "-SLOT_MOTOR_ABSENT"],
    ),
    Kind.HELIX_UNSEATED: (
        (5, None, None),
        "visit at 6, ask at 7, visit at 8, ask at 9",
        12,
        ["+SLOT_HELIX", "-SLOT_HELIX"],
    ),
    Kind.DROP_SENSOR_BLOCKED: ((5, 7, None), "ask at 6", 12, ["+DROP_SENSOR_BLOCKED", "-DROP_SENSOR_BLOCKED"]),
    Kind.CONTROLLER_SILENT: ((5, 7, None), "ask at 6", 12, ["+VMC_OFFLINE", "-VMC_OFFLINE"]),
    Kind.DOOR_LEFT_OPEN: ((5, 8, None), "visit at 6", 12, ["+DOOR_LEFT_OPEN", "-DOOR_LEFT_OPEN"]),
    Kind.DOOR_FORCED: ((5, 6, None), "visit at 8", 12, ["+DOOR_OPEN_UNAUTH", "-DOOR_OPEN_UNAUTH"]),
    Kind.LOCK_STUCK: ((5, None, None), "unlock at 6, visit at 8", 12, ["+LOCK_FAULT", "-LOCK_FAULT"]),
    Kind.READER_FAILS: ((5, 7, None), "", 12, ["+READER_FAULT", "-READER_FAULT"]),
    Kind.TEMPERATURE_SENSOR_FAILS: ((5, 7, None), "", 12, ["+TEMP_SENSOR_FAULT", "-TEMP_SENSOR_FAULT"]),
    Kind.HEAT: (
        (5, 60, 42),
        "",
        120,
        ["+OVER_TEMP_ALARM", "+OVER_TEMP_WARN", "-OVER_TEMP_ALARM", "-OVER_TEMP_WARN"],
    ),
    Kind.HUMIDITY: ((5, 40, 90), "", 60, ["+HIGH_HUMIDITY", "-HIGH_HUMIDITY"]),
    Kind.CLOCK_WRONG: ((5, 30, 900_000), "", 60, ["+CLOCK_DRIFT", "-CLOCK_DRIFT"]),
    Kind.STORAGE_NEAR_FULL: ((5, 7, None), "", 12, ["+STORAGE_FULL", "-STORAGE_FULL"]),
    Kind.TAMPERED: ((5, None, None), "visit at 8", 12, ["+VANDALISM", "-VANDALISM"]),
}


def act(played: Played, script: str) -> None:
    for step in filter(None, script.split(", ")):
        what, _, at_h = step.split()
        match what:
            case "ask":
                played.ask(float(at_h))
            case "unlock":
                played.visit(float(at_h), by_order=True)
            case _:
                played.visit(float(at_h))


@pytest.mark.parametrize("kind", COURSES)
def test_a_fault_is_found_and_its_end_too(kind: Kind, played: Played) -> None:
    (at_h, until_h, value), script, hours, expected = COURSES[kind]
    slot = 1 if FORMS[kind].slot != "no" else None
    played.inject(kind, at_h, until_h, slot=slot, value=value)
    act(played, script)
    assert played.until(hours).told() == expected


def test_a_long_cut_empties_the_battery_and_the_machine_goes_dark_until_the_mains_are_back(played: Played) -> None:
    played.inject(Kind.MAINS_FAILS, 5, 20)
    assert played.until(10.9).told() == ["+POWER_LOSS", "+BATTERY_LOW"]
    assert played.machine.online
    assert not played.until(12).machine.online
    played.until(26)
    assert played.told() == ["+POWER_LOSS", "+BATTERY_LOW", "-POWER_LOSS", "-BATTERY_LOW"]


def test_a_machine_without_a_battery_goes_dark_at_once(tmp_path: Path) -> None:
    played = Played(tmp_path, **{"power.without_battery_share": 1})
    played.inject(Kind.MAINS_FAILS, 5, 6).until(5.1)
    assert not played.machine._powered
    assert played.until(7).machine.online
    played.machine.close()


def test_what_only_the_simulator_knows_is_noted(played: Played) -> None:
    played.inject(Kind.DROP_UNSEEN, 5).ask(5.1)
    played.inject(Kind.DROP_FAILS, 6).ask(6.1)
    played.inject(Kind.DROP_DOUBLE, 7).ask(7.1)
    played.inject(Kind.PACKS_STOLEN, 8, slot=1, value=3)
    played.until(10)
    assert played.machine.truth.unobserved[1] == Counter(did_not_fall=1, double_drop=-1, theft=-3)
    assert len(played.machine.board.coils[1]) == 400 - 1 - 2 - 3


def test_a_stolen_machine_says_so_as_long_as_it_can_and_is_gone(played: Played) -> None:
    played.inject(Kind.MACHINE_STOLEN, 5).until(24)
    assert played.told() == ["+VANDALISM", "+POWER_LOSS"]
    assert played.machine.stolen
    assert not played.machine.online
    assert played.machine.truth.unobserved[1] == Counter(theft=-400)
    played.machine.heal()
    played.visit(30).until(31)
    assert not played.machine.online


def test_nobody_comes_to_a_closed_site(tmp_path: Path) -> None:
    played = Played(tmp_path, **{"type_base_boxes_per_day.dormitory": 40})
    played.inject(Kind.SITE_CLOSED, 0.1, 48).until(48)
    assert played.machine.truth.tally.requests <= 1
    assert played.machine.truth.tally.outcomes["site_closed"] > 10
    played.until(96)
    assert played.machine.truth.tally.requests > 10
    played.machine.close()


def test_a_stuck_door_switch_hides_a_visit_and_is_replaced_in_it(played: Played) -> None:
    played.inject(Kind.DOOR_SWITCH_STUCK, 5).visit(6).visit(8).until(9)
    doors = [decode_fact(line).kind for line in played.machine._outbox.lines_after(0)]
    assert doors.count("door_opened") == doors.count("door_closed") == 1


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_card_is_replaced_restored_and_its_agent_goes_on(tmp_path: Path, in_memory: bool) -> None:
    played = Played(tmp_path)
    card = played.machine._outbox
    first, before = card.stream_id, card.last_seq
    played.inject(Kind.CARD_KEPT, 5).inject(Kind.CARD_RESTORED, 6).until(7)
    assert played.machine._outbox.stream_id == first
    assert played.machine._outbox.last_seq >= before
    played.inject(Kind.CARD_REPLACED, 8).until(9)
    second = played.machine._outbox.stream_id
    assert second != first
    assert played.machine.online
    assert set(played._streams) == {first, second}
    played.machine.close()


def test_a_card_that_was_never_copied_cannot_be_restored(played: Played) -> None:
    with pytest.raises(InjectionError, match="expected card_kept before it"):
        played.inject(Kind.CARD_RESTORED, 1).until(2)


def test_what_goes_on_is_kept_with_the_machine(tmp_path: Path) -> None:
    played = Played(tmp_path)
    played.inject(Kind.CONTROLLER_SILENT, 5, 20).inject(Kind.LOCK_STUCK, 5).until(6)
    played.machine.close()
    again = SimulatedMachine(
        played.machine.site,
        played.machine.world,
        tmp_path,
        START + 7 * HOUR_MS,
        played._sent,
    )
    assert set(again.active) == {Kind.CONTROLLER_SILENT, Kind.LOCK_STUCK}
    played.machine = again
    played.until(24)
    assert played.told() == ["+VMC_OFFLINE", "-VMC_OFFLINE"]
    again.close()


def test_the_same_seed_tells_the_same_facts_byte_for_byte(tmp_path: Path) -> None:
    def lines(name: str) -> list[bytes]:
        (tmp_path / name).mkdir()
        busy = Played(
            tmp_path / name, **{"faults.NET_LOSS.rate": 30, "faults.VMC_OFFLINE.rate": 5, "faults.SLOT_JAM.rate": 50}
        )
        busy.until(20 * 24)
        found = list(busy.machine._outbox.lines_after(0))
        busy.machine.close()
        return found

    one, other = lines("one"), lines("other")
    assert len(one) > 60
    assert one == other


def test_hands_open_the_door_that_somebody_unlocked_and_leave_in_it_what_the_books_say(played: Played) -> None:
    machine = played.machine
    hands = Hands({machine.id: machine}, speed=1)
    machine.board.coils[1] = ["GOOD"] * 7
    hands.lend(())
    played.until(0.2)
    assert played.doors() == []  # nobody has unlocked it
    played._unlock()
    hands.lend((machine.id,))
    played.until(0.3)
    assert played.doors() == []  # one of the crew is there
    hands.lend(())
    hands.lend(())
    played.until(0.5)
    assert played.doors() == ["door_opened", "door_closed"]
    assert machine.board.coils[1] == ["GOOD"] * 400
    assert not machine.unlocked
