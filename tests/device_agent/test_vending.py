"""What a machine does when somebody asks for a pack."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.machine import Change, State, UnlistedChangeError, after
from device_agent.outbox import Outbox, OutboxDamagedError, OutboxError, open_or_set_aside
from protocol.messages import Board, DoorClosed, DoorOpened, FaultCleared, FaultRaised, Outcome, Refusal, Vend
from tests.device_agent.machines import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "outbox.sqlite")


def last_vend(bench: Bench) -> Vend:
    return next(fact for fact in reversed(bench.facts()) if isinstance(fact, Vend))


def test_a_delivered_pack_leaves_the_book_in_the_same_step_as_its_fact(bench: Bench) -> None:
    bench.loaded(("GOOD", 2), ("LATER", 1)).vend()
    assert last_vend(bench).outcome is Outcome.DELIVERED
    assert last_vend(bench).lot == "GOOD"
    assert bench.power_cut().outbox.slots[1].queue == [("GOOD", 1), ("LATER", 1)]


def test_the_intent_is_on_disk_before_the_motor_is_asked_to_turn(bench: Bench) -> None:
    bench.loaded(("GOOD", 2))
    (motor,) = bench.tell(ev.SlotChosen(1))
    assert isinstance(motor, ef.RunMotor)
    assert [i.board_sequence for i in Outbox(bench.path, "HD-001").intents] == [motor.board_sequence]


def test_a_motor_that_turned_without_a_drop_is_unverified_and_takes_the_pack(bench: Bench) -> None:
    bench.loaded(("GOOD", 2)).vend(ev.BoardResult.NO_DROP)
    assert last_vend(bench).outcome is Outcome.UNVERIFIED
    assert bench.outbox.slots[1].queue == [("GOOD", 1)]


def test_a_jam_keeps_the_pack_blocks_the_slot_and_raises_its_fault_once(bench: Bench) -> None:
    bench.loaded(("GOOD", 2)).vend(ev.BoardResult.JAM)
    assert bench.outbox.slots[1].queue == [("GOOD", 2)]
    bench.vend()
    assert last_vend(bench).reason is Refusal.FAULT
    assert [f.code for f in bench.facts() if isinstance(f, FaultRaised)] == ["SLOT_JAM"]


def test_a_jam_is_tried_again_after_a_door_session_and_cleared_by_the_next_pack(bench: Bench) -> None:
    bench.loaded(("GOOD", 2)).vend(ev.BoardResult.JAM)
    bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True), ev.DoorChanged(open=False))
    bench.tell(ev.ServiceKeyTurned(on=False))
    bench.vend()
    assert last_vend(bench).outcome is Outcome.DELIVERED
    assert [f.code for f in bench.facts() if isinstance(f, FaultCleared)] == ["SLOT_JAM"]


@pytest.mark.parametrize(
    ("queue", "more", "reason"),
    [
        ([], {}, Refusal.EMPTY),
        ([("OLD", 3)], {}, Refusal.EXPIRED),
        ([("HEATED", 3)], {}, Refusal.BLOCKED_LOT),
        ([("NOBODY-KNOWS", 3)], {}, Refusal.BLOCKED_LOT),
        (
            [("GOOD", 3)],
            {"planogram": [{"slot": 1, "product": "CONDOM-M", "capacity": 9, "enabled": False}]},
            Refusal.DISABLED,
        ),
        ([("GOOD", 3)], {"planogram": [{"slot": 2, "product": "CONDOM-M", "capacity": 9}]}, Refusal.UNKNOWN_SLOT),
        ([("GOOD", 3)], {"opening_hours": {"opens_hour": 13, "closes_hour": 18}}, Refusal.CLOSED),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_its_reason_and_turns_nothing(
    bench: Bench, queue: list[tuple[str, int]], more: dict[str, Any], reason: Refusal
) -> None:
    bench.loaded(*queue, **more)
    effects = bench.tell(ev.SlotChosen(1))
    assert not any(isinstance(effect, ef.RunMotor) for effect in effects)
    assert (last_vend(bench).outcome, last_vend(bench).reason) == (Outcome.REFUSED, reason)


def test_the_cool_down_and_the_daily_cap_hold_whatever_the_wall_clock_does(bench: Bench) -> None:
    bench.loaded(("GOOD", 9), limits={"cooldown_s": 20, "daily_packs_max": 2})
    bench.vend()
    bench.passes(10).vend()
    assert last_vend(bench).reason is Refusal.LIMIT
    bench.now_ms += 365 * 86_400_000  # the clock jumps a year ahead; ten seconds have passed
    bench.passes(1).vend()
    assert last_vend(bench).reason is Refusal.LIMIT
    bench.now_ms -= 365 * 86_400_000
    bench.passes(10).vend()
    assert last_vend(bench).outcome is Outcome.DELIVERED
    bench.passes(3600).vend()
    assert last_vend(bench).reason is Refusal.LIMIT
    bench.passes(86_400).vend()
    assert last_vend(bench).outcome is Outcome.DELIVERED


def test_while_the_door_is_open_nobody_is_served_and_the_session_has_a_code(bench: Bench) -> None:
    bench.loaded(("GOOD", 9))
    bench.tell(ev.DoorChanged(open=True))
    code = bench.agent.display().session
    bench.vend()
    assert last_vend(bench).reason is Refusal.DOOR_OPEN
    bench.passes(60).tell(ev.DoorChanged(open=False))
    opened = next(fact for fact in bench.facts() if isinstance(fact, DoorOpened))
    closed = next(fact for fact in bench.facts() if isinstance(fact, DoorClosed))
    assert opened.session == closed.session == code
    assert not opened.authorised
    assert [f.code for f in bench.facts() if isinstance(f, FaultRaised)] == ["DOOR_OPEN_UNAUTH"]


def test_a_vend_that_runs_when_the_door_opens_is_told_before_the_door(bench: Bench) -> None:
    """Its pack left the coil before anybody could count: a count of this session must find it gone."""
    bench.loaded(("GOOD", 9))
    [motor] = [effect for effect in bench.tell(ev.SlotChosen(1)) if isinstance(effect, ef.RunMotor)]
    bench.tell(ev.DoorChanged(open=True))
    assert not any(isinstance(fact, DoorOpened) for fact in bench.facts())
    bench.tell(ev.VendEnded(motor.board_sequence, ev.BoardResult.DROPPED))
    assert [fact.kind for fact in bench.facts()][-3:] == ["vend", "door_opened", "fault_raised"]
    assert bench.agent.display().session
    bench.tell(ev.DoorChanged(open=False))
    assert bench.vend()


def test_with_the_service_key_a_vend_with_the_door_open_is_a_test(bench: Bench) -> None:
    bench.loaded(("GOOD", 9))
    bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True))
    bench.vend()
    assert last_vend(bench).test
    assert last_vend(bench).outcome is Outcome.DELIVERED


def test_a_door_session_goes_on_across_a_power_cut(bench: Bench) -> None:
    bench.loaded(("GOOD", 9))
    bench.tell(ev.DoorChanged(open=True))
    code = bench.agent.display().session
    bench.power_cut().start(door_open=True)
    assert bench.agent.display().session == code
    bench.tell(ev.DoorChanged(open=False))
    assert [type(f).__name__ for f in bench.facts()].count("DoorOpened") == 1


def test_a_slot_believed_empty_is_tried_once_after_a_door_session_and_the_drop_sensor_decides(bench: Bench) -> None:
    bench.loaded()
    bench.tell(ev.DoorChanged(open=True), ev.DoorChanged(open=False))
    bench.vend()
    assert (last_vend(bench).outcome, last_vend(bench).lot) == (Outcome.DELIVERED, None)
    bench.vend(ev.BoardResult.NO_DROP)
    assert (last_vend(bench).outcome, last_vend(bench).reason) == (Outcome.REFUSED, Refusal.EMPTY)
    assert not any(isinstance(effect, ef.RunMotor) for effect in bench.tell(ev.SlotChosen(1)))


def test_an_expired_lot_stays_blocked_after_a_door_session(bench: Bench) -> None:
    bench.loaded(("OLD", 3))
    bench.tell(ev.DoorChanged(open=True), ev.DoorChanged(open=False))
    bench.vend()
    assert last_vend(bench).reason is Refusal.EXPIRED


@pytest.mark.parametrize(
    ("answer", "outcome", "left"),
    [
        (ev.BoardResult.DROPPED, Outcome.DELIVERED, 1),
        (ev.BoardResult.NO_DROP, Outcome.UNVERIFIED, 1),
        (None, Outcome.REFUSED, 2),
    ],
)
def test_after_a_power_cut_the_board_is_asked_what_became_of_the_vend(
    bench: Bench, answer: ev.BoardResult | None, outcome: Outcome, left: int
) -> None:
    bench.loaded(("GOOD", 2))
    (motor,) = bench.tell(ev.SlotChosen(1))
    assert isinstance(motor, ef.RunMotor)
    asked = bench.power_cut().start()
    assert ef.AskBoard(motor.board_sequence) in asked
    bench.tell(ev.BoardAnswered(motor.board_sequence, answer))
    assert last_vend(bench).outcome is outcome
    assert sum(packs for _, packs in bench.outbox.slots[1].queue) == left
    assert bench.outbox.intents == []


def test_where_nobody_can_know_the_vend_is_in_doubt(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "outbox.sqlite", Board(model="PLAIN", runs_sequence_once=False, counts_life=False))
    bench.loaded(("GOOD", 2)).tell(ev.SlotChosen(1))
    bench.power_cut().start()
    assert last_vend(bench).outcome is Outcome.IN_DOUBT
    assert [type(f).__name__ for f in bench.facts()].count("Vend") == 1


def test_a_result_that_the_board_says_twice_counts_once(bench: Bench) -> None:
    bench.loaded(("GOOD", 2))
    (motor,) = bench.tell(ev.SlotChosen(1))
    assert isinstance(motor, ef.RunMotor)
    ended = ev.VendEnded(motor.board_sequence, ev.BoardResult.DROPPED)
    bench.tell(ended, ended)
    assert bench.outbox.slots[1].queue == [("GOOD", 1)]


def test_a_disk_that_is_full_puts_the_machine_out_of_service_and_vends_nothing(bench: Bench) -> None:
    bench.loaded(("GOOD", 2))
    pages = bench.outbox._db.execute("PRAGMA page_count").fetchone()[0]
    bench.outbox._db.execute(f"PRAGMA max_page_count={pages}")
    seen: list[ef.Effect] = []
    for _ in range(200):
        seen = bench.vend()
        if bench.agent.state is State.OUT_OF_SERVICE:
            break
        bench.books(("GOOD", 2))
    assert bench.agent.state is State.OUT_OF_SERVICE
    assert not any(isinstance(effect, ef.RunMotor) for effect in bench.tell(ev.SlotChosen(1)))
    assert seen
    bench.outbox._db.execute("PRAGMA max_page_count=100000")
    bench.passes(31).tick()
    assert str(bench.agent.state) in {"ready", "vending"}
    assert bench.outbox.last_seq == len(bench.facts())


def test_one_flipped_byte_is_noticed_the_file_is_kept_aside_and_a_new_stream_begins(bench: Bench) -> None:
    bench.loaded(("GOOD", 9))
    for _ in range(3):
        bench.vend()
    stream_id = bench.outbox.stream_id
    bench.outbox.close()
    database = sqlite3.connect(bench.path)
    database.execute("UPDATE facts SET line = replace(CAST(line AS text), 'GOOD', 'GOOF') WHERE seq = 5")
    database.execute("UPDATE facts SET line = CAST(line AS blob)")
    database.commit()
    database.close()
    with pytest.raises(OutboxDamagedError, match="fact 5"):
        Outbox(bench.path, "HD-001")
    outbox, why = open_or_set_aside(bench.path, "HD-001")
    assert why is not None
    assert outbox.stream_id != stream_id
    assert (bench.path.parent / "outbox.damaged-1").exists()


def test_an_outbox_of_another_machine_is_refused(bench: Bench) -> None:
    bench.outbox.close()
    with pytest.raises(OutboxError, match="HD-001"):
        Outbox(bench.path, "HD-002")


def test_an_unlisted_change_is_an_error() -> None:
    with pytest.raises(UnlistedChangeError):
        after(State.READY, Change.DOOR_CLOSED)
