"""Every fault that the machine finds itself: not before its time, once when it begins, once when it ends, through restarts."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.conditions import DayMean, Lasting, Streak
from protocol.codec import encode
from protocol.messages import Ack, ClearJam, FaultCleared, FaultRaised, NewStream, Refusal, SelfTest, Unlock, Vend
from protocol.topics import Channel
from tests.device_agent.machines import Bench

MINUTE, HOUR = 60, 3_600


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "outbox.sqlite")
    made.loaded(("GOOD", 9))
    yield made
    made.outbox.close()


def told(bench: Bench) -> list[str]:
    """`+CODE` where a fault began, `-CODE` where it ended, with its slot."""
    words = []
    for fact in bench.facts():
        if isinstance(fact, FaultRaised | FaultCleared):
            sign = "+" if isinstance(fact, FaultRaised) else "-"
            words.append(f"{sign}{fact.code}" + (f"/{fact.slot}" if fact.slot else ""))
    return words


def passes(bench: Bench, seconds: float) -> None:
    """Let time pass, with a tick whenever the agent asks for one."""
    ends_ms = bench.mono_ms + int(seconds * 1000)
    while (wakes_ms := bench.agent.wakes_at_ms()) <= ends_ms:
        bench.passes((max(wakes_ms, bench.mono_ms + 1) - bench.mono_ms) / 1000).tick()
    bench.passes((ends_ms - bench.mono_ms) / 1000)


def holds(bench: Bench, event: Any, seconds: float, every: float = 10 * MINUTE) -> None:
    """Let the same be read again and again for a while."""
    bench.tell(event)
    while seconds > 0:
        step = min(every, seconds)
        passes(bench, step)
        bench.tell(event)
        seconds -= step


def reading(**values: Any) -> ev.SensorRead:
    return ev.SensorRead(**values)


OPEN_VISIT = (ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True))

# code: (what is bad, seconds that are not yet enough, seconds that are), (what is good, not yet, enough)
LASTING: dict[str, tuple[tuple[Any, float, float], tuple[Any, float, float]]] = {
    "OVER_TEMP_WARN": (
        (reading(temperature_c=31), 17 * HOUR, 20 * HOUR),
        (reading(temperature_c=25), 2 * HOUR, 24 * HOUR),
    ),
    "OVER_TEMP_ALARM": (
        (reading(temperature_c=40), 50 * MINUTE, HOUR),
        (reading(temperature_c=37.9), 50 * MINUTE, HOUR),
    ),
    "HIGH_HUMIDITY": ((reading(humidity_pct=81), 23 * HOUR, 24 * HOUR), (reading(humidity_pct=74), 0, 0)),
    "NET_WEAK": ((reading(signal_dbm=-94), 20 * MINUTE, 30 * MINUTE), (reading(signal_dbm=-89), 0, 0)),
    "BATTERY_LOW": ((reading(battery_mv=10_990), 0, 0), (reading(battery_mv=12_450), 9 * MINUTE, 10 * MINUTE)),
    "SIM_FAULT": ((reading(registration=3), 0, 0), (reading(registration=5), 0, 0)),
    "STORAGE_FULL": ((reading(storage_pct=81), 0, 0), (reading(storage_pct=49), 0, 0)),
    "POWER_LOSS": ((ev.InputsRead(mains=False), 1.5, 2.5), (ev.InputsRead(mains=True), 1.5, 2.5)),
    "DROP_SENSOR_BLOCKED": (
        (ev.InputsRead(curtain_clear=False), 9, 11),
        (ev.InputsRead(curtain_clear=True), 0.5, 1.5),
    ),
}
NEITHER: dict[str, ev.SensorRead] = {
    "OVER_TEMP_ALARM": reading(temperature_c=39),
    "HIGH_HUMIDITY": reading(humidity_pct=78),
    "NET_WEAK": reading(signal_dbm=-91),
    "BATTERY_LOW": reading(battery_mv=11_800),
    "SIM_FAULT": reading(registration=2),
    "STORAGE_FULL": reading(storage_pct=65),
}
"""Between the two limits: what is open stays open, what is not does not begin."""


def only(code: str, bench: Bench) -> list[str]:
    return [words[0] for words in told(bench) if words[1:] == code]


@pytest.mark.parametrize("code", LASTING)
def test_a_fault_begins_when_it_has_lasted_and_ends_when_it_is_gone_as_long(code: str, bench: Bench) -> None:
    (bad, too_short, enough), (good, too_soon, over) = LASTING[code]
    if too_short:
        holds(bench, bad, too_short)
        assert only(code, bench) == []
    holds(bench, bad, enough)
    assert only(code, bench) == ["+"]
    holds(bench, bad, 3 * enough)
    assert only(code, bench) == ["+"], "told once, however long it lasts"
    if code in NEITHER:
        holds(bench, NEITHER[code], 30 * HOUR, every=HOUR)
        assert only(code, bench) == ["+"]
    if too_soon:
        holds(bench, good, too_soon)
        assert only(code, bench) == ["+"]
    holds(bench, good, over)
    holds(bench, good, over)
    assert only(code, bench) == ["+", "-"]


@pytest.mark.parametrize("code", NEITHER)
def test_between_the_limits_nothing_begins(code: str, bench: Bench) -> None:
    holds(bench, NEITHER[code], 50 * HOUR, every=HOUR)
    assert only(code, bench) == []


@pytest.mark.parametrize("code", LASTING)
def test_a_restart_tells_nothing_twice_and_forgets_no_end(code: str, bench: Bench) -> None:
    (bad, _, enough), (good, _, over) = LASTING[code]
    holds(bench, bad, enough)
    bench.power_cut().start()
    holds(bench, bad, enough)
    assert only(code, bench) == ["+"]
    bench.power_cut().start()
    holds(bench, good, over)
    holds(bench, good, over)
    assert only(code, bench) == ["+", "-"]


def test_an_interruption_begins_the_wait_anew(bench: Bench) -> None:
    for _ in range(5):
        holds(bench, reading(temperature_c=41), 50 * MINUTE)
        holds(bench, reading(temperature_c=39), 10 * MINUTE)
    assert told(bench) == []


# ---------------------------------------------------------------- sensor, reader, controller


def test_a_climate_sensor_is_broken_after_five_failures_and_well_after_three_readings(bench: Bench) -> None:
    bench.tell(*[reading(climate_failed=True)] * 4, reading(temperature_c=20.0), *[reading(climate_failed=True)] * 4)
    assert told(bench) == []
    bench.tell(*[reading(climate_failed=True)] * 3, *[reading(temperature_c=20.0)] * 2)
    assert told(bench) == ["+TEMP_SENSOR_FAULT"]
    bench.tell(reading(temperature_c=20.0))
    assert told(bench) == ["+TEMP_SENSOR_FAULT", "-TEMP_SENSOR_FAULT"]


@pytest.mark.parametrize("bad", [[None] * 3, [0x60], [0x66]])
def test_a_reader_that_fails_its_test_is_a_fault_until_it_passes(bad: list[int | None], bench: Bench) -> None:
    bench.tell(ev.ReaderAnswered(None), ev.ReaderAnswered(None), ev.ReaderAnswered(0x90))
    assert told(bench) == []
    bench.tell(*[ev.ReaderAnswered(status) for status in bad], *[ev.ReaderAnswered(status) for status in bad])
    bench.tell(ev.ReaderAnswered(0x80))
    assert told(bench) == ["+READER_FAULT"]
    bench.tell(ev.ReaderAnswered(0x90), ev.ReaderAnswered(0x90))
    assert told(bench) == ["+READER_FAULT", "-READER_FAULT"]


def test_a_silent_controller_serves_nobody_until_it_answers_and_passes_its_test(bench: Bench) -> None:
    bench.tell(ev.BoardFault("VMC_OFFLINE"), ev.BoardFault("VMC_OFFLINE"))
    assert bench.vend() == [] or not any(isinstance(effect, ef.RunMotor) for effect in bench.vend())
    assert bench.tell(ev.BoardFaultEnded("VMC_OFFLINE"))[:1] == [ef.SelfTest("own")]
    bench.tell(ev.OrderDone("own", ok=False))
    assert told(bench) == ["+VMC_OFFLINE"]
    tests = [effect for effect in bench.passes(61).tick() if isinstance(effect, ef.SelfTest)]
    assert len(tests) == 1
    bench.tell(ev.OrderDone("own", ok=True))
    assert told(bench) == ["+VMC_OFFLINE", "-VMC_OFFLINE"]
    bench.vend()
    assert [fact.reason for fact in bench.facts() if isinstance(fact, Vend)] == [Refusal.FAULT, Refusal.FAULT, None]


def test_a_controller_lost_before_a_restart_is_tested_after_it(bench: Bench) -> None:
    bench.tell(ev.BoardFault("VMC_OFFLINE"))
    bench.power_cut().start()
    passes(bench, 61)
    assert any(effect == ef.SelfTest("own") for effect in bench.asked)
    bench.tell(ev.OrderDone("own", ok=True))
    assert told(bench) == ["+VMC_OFFLINE", "-VMC_OFFLINE"]


def test_a_vend_without_any_result_takes_the_controller_for_lost_and_tests_it(bench: Bench) -> None:
    bench.tell(ev.SlotChosen(1))
    passes(bench, 200)
    assert told(bench) == ["+VMC_OFFLINE"]
    assert bench.asked.count(ef.SelfTest("own")) >= 1
    bench.tell(ev.OrderDone("own", ok=True))
    assert told(bench) == ["+VMC_OFFLINE", "-VMC_OFFLINE"]


def test_a_blocked_drop_sensor_serves_nobody_and_has_one_fault_however_it_is_found(bench: Bench) -> None:
    bench.vend(ev.BoardResult.CURTAIN_BLOCKED)
    holds(bench, ev.InputsRead(curtain_clear=False), 20)
    bench.vend()
    assert told(bench) == ["+DROP_SENSOR_BLOCKED"]
    assert [fact.reason for fact in bench.facts() if isinstance(fact, Vend)] == [Refusal.FAULT, Refusal.FAULT]
    holds(bench, ev.InputsRead(), 2)
    bench.vend()
    assert told(bench) == ["+DROP_SENSOR_BLOCKED", "-DROP_SENSOR_BLOCKED"]


# ---------------------------------------------------------------- door and lock


def test_a_door_left_open_in_a_visit_is_a_fault_after_ten_minutes_until_it_is_closed(bench: Bench) -> None:
    bench.tell(*OPEN_VISIT)
    passes(bench, 9 * MINUTE)
    assert told(bench) == []
    passes(bench, 2 * MINUTE)
    assert told(bench) == ["+DOOR_LEFT_OPEN"]
    bench.tell(ev.DoorChanged(open=False))
    assert told(bench) == ["+DOOR_LEFT_OPEN", "-DOOR_LEFT_OPEN"]
    bench.tell(*OPEN_VISIT)
    passes(bench, 5 * MINUTE)
    bench.tell(ev.DoorChanged(open=False))
    passes(bench, HOUR)
    assert len(told(bench)) == 2


def test_a_door_left_open_through_a_restart_is_told_once(bench: Bench) -> None:
    bench.tell(*OPEN_VISIT)
    passes(bench, 11 * MINUTE)
    bench.power_cut().start(door_open=True)
    passes(bench, 11 * MINUTE)
    bench.tell(ev.DoorChanged(open=False))
    assert told(bench) == ["+DOOR_LEFT_OPEN", "-DOOR_LEFT_OPEN"]


def test_a_door_opened_without_a_visit_stays_a_fault_until_somebody_with_the_right_has_been_there(bench: Bench) -> None:
    bench.tell(ev.DoorChanged(open=True))
    passes(bench, HOUR)
    bench.tell(ev.DoorChanged(open=False))
    assert told(bench) == ["+DOOR_OPEN_UNAUTH"], "and it is not one that a restocker left open"
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    assert told(bench) == ["+DOOR_OPEN_UNAUTH", "-DOOR_OPEN_UNAUTH"]


def test_a_shock_is_a_fault_until_a_visit(bench: Bench) -> None:
    bench.tell(ev.InputsRead(tampered=True), ev.InputsRead(tampered=False), ev.InputsRead(tampered=True))
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    assert told(bench) == ["+VANDALISM"], "the input still says so"
    bench.tell(ev.InputsRead(tampered=False), *OPEN_VISIT, ev.DoorChanged(open=False))
    assert told(bench) == ["+VANDALISM", "-VANDALISM"]


def order(bench: Bench, kind: Any, name: str, **more: Any) -> ev.MessageArrived:
    fields = {"order_id": name * 32, "stream_id": bench.outbox.stream_id, "session": bench.outbox.meta["session"]}
    return ev.MessageArrived(Channel.ORDERS, encode(kind.model_validate(fields | {"expires_after_ms": 10**9} | more)))


def test_a_lock_that_is_pulsed_while_the_door_does_not_move_is_a_fault_until_it_does(bench: Bench) -> None:
    bench.tell(ev.LinkUp())
    bench.tell(order(bench, Unlock, "a"))
    passes(bench, 30)
    bench.tell(ev.DoorChanged(open=True), ev.DoorChanged(open=False))
    passes(bench, HOUR)
    assert told(bench) == []
    bench.tell(order(bench, Unlock, "b"))
    passes(bench, 110)
    assert told(bench) == []
    passes(bench, 20)
    assert told(bench) == ["+LOCK_FAULT"]
    bench.tell(*OPEN_VISIT)
    passes(bench, 3)
    assert told(bench) == ["+LOCK_FAULT", "-LOCK_FAULT"]


# ---------------------------------------------------------------- slots


def test_a_slot_that_jams_first_thing_after_a_visit_was_not_seated(bench: Bench) -> None:
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    bench.vend(ev.BoardResult.JAM)
    assert told(bench) == ["+SLOT_HELIX/1"]
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    bench.vend()
    bench.vend(ev.BoardResult.JAM)
    assert told(bench) == ["+SLOT_HELIX/1", "-SLOT_HELIX/1", "+SLOT_JAM/1"]


def test_a_jam_that_a_visit_did_not_repair_is_still_the_same_jam(bench: Bench) -> None:
    bench.vend(ev.BoardResult.JAM)
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    bench.vend(ev.BoardResult.OVER_CURRENT)
    assert told(bench) == ["+SLOT_JAM/1"]


def test_a_pack_that_falls_ends_every_fault_of_its_slot(bench: Bench) -> None:
    bench.vend(ev.BoardResult.JAM)
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    bench.vend(ev.BoardResult.MOTOR_ABSENT)
    bench.tell(*OPEN_VISIT, ev.DoorChanged(open=False))
    bench.vend()
    began, ended = told(bench)[:2], told(bench)[2:]
    assert began == ["+SLOT_JAM/1", "+SLOT_MOTOR_ABSENT/1"]
    assert sorted(ended) == ["-SLOT_JAM/1", "-SLOT_MOTOR_ABSENT/1"]


def test_a_jam_cleared_by_order_is_over(bench: Bench) -> None:
    bench.vend(ev.BoardResult.JAM)
    bench.tell(ev.LinkUp())
    bench.tell(order(bench, ClearJam, "c", slot=1), ev.OrderDone("c" * 32, ok=True))
    assert told(bench) == ["+SLOT_JAM/1", "-SLOT_JAM/1"]


# ---------------------------------------------------------------- storage, clock, streams


def test_a_backlog_is_told_before_it_fills_the_card(bench: Bench) -> None:
    bench.agent.settings = type(bench.agent.settings)(dispenser_id="HD-001", pending_facts_max=20)
    while bench.outbox.pending <= 16:
        bench.vend(ev.BoardResult.NO_DROP)
    bench.tell(reading())
    assert told(bench) == ["+STORAGE_FULL"]
    bench.outbox.acknowledge(bench.outbox.last_seq - 5, 1, bench.now_ms)
    bench.tell(reading())
    assert told(bench) == ["+STORAGE_FULL", "-STORAGE_FULL"]


def ack(bench: Bench, sent_ms: int, server_ms: int) -> ev.MessageArrived:
    outbox = bench.outbox
    answer = Ack(
        server_epoch=1,
        stream_id=outbox.stream_id,
        through_seq=0,
        digest="0" * 64,
        server_at_ms=server_ms,
        sent_at_ms=sent_ms,
    )
    return ev.MessageArrived(Channel.ACK, encode(answer))


@pytest.mark.parametrize("off_ms", [-400_000, 400_000])
def test_a_clock_is_compared_with_the_servers_by_a_round_trip(off_ms: int, bench: Bench) -> None:
    def exchange(off_ms: int, round_trip_ms: int = 600) -> None:
        sent_ms = bench.now_ms
        bench.passes(round_trip_ms / 1000)
        bench.tell(ack(bench, sent_ms, sent_ms + round_trip_ms // 2 + off_ms))

    exchange(119_000)
    exchange(off_ms, 90_000)
    assert told(bench) == [], "too little, or an answer too slow to say anything"
    exchange(off_ms)
    exchange(off_ms)
    assert told(bench) == ["+CLOCK_DRIFT"]
    exchange(-100_000)
    assert told(bench) == ["+CLOCK_DRIFT", "-CLOCK_DRIFT"]


def test_an_unset_clock_is_no_drift(bench: Bench) -> None:
    bench.trusted = False
    bench.tell(ack(bench, bench.now_ms, bench.now_ms + 10**9))
    assert told(bench) == []


def test_what_is_open_is_told_again_in_a_new_stream(bench: Bench) -> None:
    bench.vend(ev.BoardResult.JAM)
    bench.tell(reading(registration=3), ev.LinkUp())
    bench.tell(order(bench, NewStream, "d"))
    assert told(bench) == ["+SLOT_JAM/1", "+SIM_FAULT"]
    assert [fact.kind for fact in bench.facts()][:3] == ["started", "fault_raised", "fault_raised"]
    bench.tell(order(bench, SelfTest, "e"), ev.OrderDone("e" * 32, ok=True), reading(registration=1))
    assert told(bench)[2:] == ["-SIM_FAULT"]


# ---------------------------------------------------------------- for every course of things

COURSES = st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from([True, False, None])), max_size=60)


@given(COURSES, st.integers(0, 5_000), st.integers(0, 5_000))
def test_a_lasting_fault_alternates_and_never_changes_before_its_time(
    course: list[tuple[int, bool | None]], raise_ms: int, clear_ms: int
) -> None:
    rule, is_open, mono_ms = Lasting("X", raise_ms, clear_ms), False, 0
    seen: list[tuple[int, bool | None]] = []
    for step_ms, bad in course:
        mono_ms += step_ms
        seen.append((mono_ms, bad))
        change = rule.see(bad, mono_ms, is_open=is_open)
        if change is None:
            due_ms = rule.due_ms(is_open=is_open)
            assert due_ms is None or due_ms > mono_ms
            continue
        assert change is not is_open, "only what is not open begins, only what is open ends"
        since_ms = mono_ms
        for at_ms, was in reversed(seen):
            if was is not bad:
                break
            since_ms = at_ms
        assert mono_ms - since_ms >= (raise_ms if change else clear_ms)
        is_open = change


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 6), st.integers(1, 6))
def test_a_streak_begins_and_ends_only_after_as_many_running(answers: list[bool], bad_max: int, good_min: int) -> None:
    rule, is_open = Streak("X", bad_max, good_min), False
    for place, bad in enumerate(answers):
        change = rule.see(bad, is_open=is_open)
        run = answers[max(0, place + 1 - (bad_max if bad else good_min)) : place + 1]
        expected = len(run) == (bad_max if bad else good_min) and set(run) == {bad} and bad is not is_open
        if change is not None:
            assert expected
            is_open = change
        else:
            assert not expected


@given(st.lists(st.tuples(st.integers(1, 120), st.floats(-30, 60)), min_size=1, max_size=150))
def test_a_days_mean_lies_between_its_readings_and_forgets_them_after_a_day(steps: list[tuple[int, float]]) -> None:
    mean, mono_ms = DayMean(), 0
    recent: list[tuple[int, float]] = []
    for minutes, value in steps:
        mono_ms += minutes * 60_000
        recent = [(at, v) for at, v in [*recent, (mono_ms, value)] if at > mono_ms - 26 * 3_600_000]
        found = mean.see(value, mono_ms)
        if found is not None:
            values = [v for _, v in recent]
            assert min(values) - 1e-9 <= found <= max(values) + 1e-9


@given(st.lists(st.sampled_from([31.0, 25.0, 41.0, 36.0]), min_size=1, max_size=90))
def test_on_the_machine_each_fault_alternates_whatever_is_read(hourly: list[float]) -> None:
    bench = Bench(Path(":memory:"))
    bench.start()
    for degrees in hourly:
        bench.tell(reading(temperature_c=degrees, humidity_pct=degrees * 2, signal_dbm=int(-degrees * 2.6)))
        bench.passes(HOUR)
    by_code: dict[str, list[str]] = {}
    for words in told(bench):
        by_code.setdefault(words[1:], []).append(words[0])
    for signs in by_code.values():
        assert signs[0] == "+"
        assert all(one != other for one, other in pairwise(signs))
    bench.outbox.close()
