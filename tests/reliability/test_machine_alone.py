"""V1, T1, C1: what a machine decides by itself through power cuts, wrong clocks and orders in disorder."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest

from device_agent import effects as ef
from device_agent import events as ev
from protocol.codec import encode
from protocol.messages import (
    Ack,
    Board,
    ClearJam,
    ClockChanged,
    DoorClosed,
    LotInfo,
    Order,
    OrderOutcome,
    OrderResult,
    Outcome,
    Reboot,
    Refusal,
    SelfTest,
    StockLevel,
    Unlock,
    Vend,
)
from protocol.messages import TestVend as VendForTest
from protocol.topics import Channel
from simulator.boards.physical_board import PhysicalBoard
from tests.device_agent.machines import Bench

HOUR_MS: Final = 3_600_000
YEAR_MS: Final = 365 * 24 * HOUR_MS
BOARDS: Final = {
    "remembers": Board(model="REMEMBERS", runs_sequence_once=True, counts_life=True),
    "counts": Board(model="COUNTS", runs_sequence_once=False, counts_life=True),
    "plain": Board(model="PLAIN", runs_sequence_once=False, counts_life=False),
}
STEPS: Final = ("before the intent", "intent kept", "motor turned", "drop seen", "result told", "result kept")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "outbox.sqlite")
    yield bench
    bench.outbox.close()


def told(bench: Bench, kind: type) -> list[Any]:
    return [fact for fact in bench.facts() if isinstance(fact, kind)]


def motors(effects: list[ef.Effect]) -> list[ef.RunMotor]:
    return [effect for effect in effects if isinstance(effect, ef.RunMotor)]


# ---------------------------------------------------------------- V1


@pytest.mark.parametrize("board_kind", BOARDS)
@pytest.mark.parametrize("step", STEPS)
def test_v1_a_power_cut_at_each_step_of_a_vend_leaves_exactly_one_record(
    tmp_path: Path, step: str, board_kind: str
) -> None:
    """The cut takes the board's power as well: a motor that has not let the pack fall yet does not do it later."""
    bench = Bench(tmp_path / "outbox.sqlite", BOARDS[board_kind])
    bench.loaded(("GOOD", 3))
    coil = PhysicalBoard(random.Random(1))
    coil.load(1, "GOOD", 3)
    number = STEPS.index(step)
    if number >= STEPS.index("intent kept"):
        (motor,) = motors(bench.tell(ev.SlotChosen(1)))
        if number >= STEPS.index("drop seen"):
            turn = coil.turn(1, motor.board_sequence)
            if number == STEPS.index("result kept"):
                bench.tell(ev.VendEnded(motor.board_sequence, turn.result, 1500, coil.life_count))
    bench.power_cut()
    for effect in bench.start(life_count=coil.life_count, last_board_sequence=coil.last_sequence):
        if isinstance(effect, ef.AskBoard):
            remembers = bench.board.runs_sequence_once
            stored = coil.stored(effect.board_sequence) if remembers else None
            bench.tell(ev.BoardAnswered(effect.board_sequence, stored, coil.life_count))
    vends = told(bench, Vend)
    book = sum(packs for _, packs in bench.outbox.slots[1].queue)
    assert len(vends) == (number > 0)
    assert bench.outbox.intents == []
    if vends and vends[0].outcome is Outcome.IN_DOUBT:
        assert board_kind != "remembers"
        assert book == 2, "a pack that nobody can place is not offered"
    else:
        assert book == len(coil.coils[1])
        assert [v.outcome for v in vends] in ([], [Outcome.DELIVERED], [Outcome.REFUSED])
    (motor,) = motors(bench.tell(ev.SlotChosen(1)))  # and the machine serves the next one
    bench.outbox.close()


# ---------------------------------------------------------------- T1


def server_says(bench: Bench, wall_ms: int) -> None:
    """An acknowledgement with the server's time in it."""
    outbox = bench.outbox
    ack = Ack(
        server_epoch=1, stream_id=outbox.stream_id, through_seq=outbox.last_seq, digest=outbox.last_digest.hex(),
        server_at_ms=wall_ms,
    )  # fmt: skip
    bench.tell(ev.MessageArrived(Channel.ACK, encode(ack)))


JUMPS: Final = {"years back": -3 * YEAR_MS, "hours back": -5 * HOUR_MS, "hours ahead": 7 * HOUR_MS, "years ahead": 9 * YEAR_MS}  # fmt: skip


@pytest.mark.parametrize("jump", JUMPS)
def test_t1_a_clock_that_jumps_at_3_in_the_morning_changes_no_order_no_limit_and_no_expiry(
    bench: Bench, jump: str
) -> None:
    lots = [
        LotInfo(lot="GOOD", product="CONDOM-M", expires_on=date(2029, 1, 1)),
        LotInfo(lot="OLD", product="CONDOM-M", expires_on=date(2026, 9, 23)),
    ]
    bench.loaded(("GOOD", 9), lots=lots, limits={"cooldown_s": 60, "daily_packs_max": 5})
    bench.vend()
    bench.passes(15 * 3600)  # 03:00
    bench.tick()
    bench.vend()
    real_ms = bench.now_ms
    bench.now_ms += JUMPS[jump]
    bench.passes(30).vend()
    assert told(bench, Vend)[-1].reason is Refusal.LIMIT, "half a minute has passed, whatever the clock says"
    (changed,) = told(bench, ClockChanged)
    assert abs(changed.was_ms - real_ms - 30_000) < 1_000

    # Expiry goes on by the time that was known before: 2026-09-23, on which OLD is no longer given, and GOOD is.
    bench.passes(60).vend()
    assert told(bench, Vend)[-1].outcome is Outcome.DELIVERED
    bench.books(("OLD", 3))
    bench.passes(60).vend()
    assert told(bench, Vend)[-1].reason is Refusal.EXPIRED

    # A door session lasts as long as it lasts; a day has one claim of the stock.
    bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True))
    bench.now_ms -= JUMPS[jump]
    bench.passes(120).tell(ev.DoorChanged(open=False), ev.ServiceKeyTurned(on=False))
    assert told(bench, DoorClosed)[-1].open_ms == 120_000
    server_says(bench, bench.now_ms)
    claims = len(told(bench, StockLevel))
    for _ in range(48):
        bench.passes(1800).tick()
    assert len(told(bench, StockLevel)) == claims + 1
    assert [bench.outbox.last_seq] == [len(bench.facts())]


def test_t1_a_wrong_time_is_believed_again_once_clock_and_server_agree(bench: Bench) -> None:
    lots = [LotInfo(lot="GOOD", product="CONDOM-M", expires_on=date(2029, 1, 1))]
    bench.loaded(("GOOD", 9), lots=lots)
    right_ms = bench.now_ms
    bench.now_ms += 9 * YEAR_MS  # a battery ran out; the machine starts in 2035, and nobody tells it better
    bench.power_cut().start()
    bench.vend()
    assert told(bench, Vend)[-1].reason is Refusal.EXPIRED
    bench.outbox.record(meta={"trusted_wall_ms": bench.now_ms})
    bench.now_ms = right_ms
    bench.power_cut().start()
    bench.vend()
    assert told(bench, Vend)[-1].reason is Refusal.EXPIRED, "a time that was known is not undercut by a clock alone"
    server_says(bench, right_ms)
    bench.vend()
    assert told(bench, Vend)[-1].outcome is Outcome.DELIVERED


# ---------------------------------------------------------------- C1


def orders_of(bench: Bench, throw: random.Random, number: int) -> list[Order]:
    """Orders of every kind, some of them with a life that ends soon."""
    orders: list[Order] = []
    for n in range(number):
        kind: Any = throw.choice([Unlock, VendForTest, ClearJam, Reboot, SelfTest])
        slot = {"slot": 1} if kind in {VendForTest, ClearJam} else {}
        orders.append(
            kind(
                order_id=f"{throw.getrandbits(96):024x}{n:08x}", stream_id=bench.outbox.stream_id,
                session=bench.outbox.meta["session"], expires_after_ms=throw.choice([5_000, 600_000]), **slot,
            )
        )  # fmt: skip
    return orders


class Obedient:
    """Carries out what orders ask for, and counts how often each was run."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.ran: Counter[str] = Counter()
        self.late: set[str] = set()

    def arrives(self, order: Order) -> None:
        bench = self.bench
        is_known = bench.outbox.order(order.order_id) is not None
        if not is_known and bench.mono_ms - bench.agent.session_began_ms > order.expires_after_ms:
            self.late.add(order.order_id)
        for effect in bench.tell(ev.MessageArrived(Channel.ORDERS, encode(order))):
            self._does(order.order_id, effect)

    def _does(self, order_id: str, effect: ef.Effect) -> None:
        if not isinstance(effect, ef.RunMotor | ef.ClearJam | ef.SelfTest | ef.PulseLock | ef.Restart):
            return
        self.ran[order_id] += 1
        match effect:
            case ef.RunMotor(_, sequence):
                self.bench.tell(ev.VendEnded(sequence, ev.BoardResult.DROPPED, 1500, 1))
            case ef.ClearJam(asked) | ef.SelfTest(asked):
                self.bench.tell(ev.OrderDone(asked, ok=True))
            case ef.Restart():
                self.restarts()

    def restarts(self) -> None:
        self.bench.power_cut().start()
        self.bench.tell(ev.LinkUp())


@pytest.mark.parametrize("seed", range(12))
def test_c1_orders_doubled_late_and_in_disorder_run_once_and_late_ones_are_expired(bench: Bench, seed: int) -> None:
    throw = random.Random(seed)
    bench.loaded(("GOOD", 90))
    bench.tell(ev.LinkUp())
    orders = orders_of(bench, throw, 12)
    wire = [order for order in orders for _ in range(throw.choice([1, 2, 3]))]
    throw.shuffle(wire)
    machine = Obedient(bench)
    for order in wire:
        bench.passes(throw.choice([0, 1, 3]))
        machine.arrives(order)
        if throw.random() < 0.1:
            machine.restarts()
    note = f"seed {seed}"
    answers = told(bench, OrderResult)
    assert {answer.order_id for answer in answers} == {order.order_id for order in orders}, note
    assert len(answers) == len(orders), f"{note}: answered twice"
    assert max(machine.ran.values(), default=1) == 1, f"{note}: run twice"
    not_run = {OrderOutcome.EXPIRED, OrderOutcome.REFUSED}
    assert all(machine.ran[a.order_id] == 0 for a in answers if a.outcome in not_run), note
    assert all(a.outcome in not_run for a in answers if a.order_id in machine.late), note


def test_c1_an_order_that_comes_after_its_time_is_answered_expired_and_not_run(bench: Bench) -> None:
    bench.loaded(("GOOD", 9))
    bench.tell(ev.LinkUp())
    session, stream_id = bench.outbox.meta["session"], bench.outbox.stream_id
    order = Unlock(order_id="a" * 32, stream_id=stream_id, session=session, expires_after_ms=60_000)
    machine = Obedient(bench)
    bench.passes(61)
    bench.now_ms -= YEAR_MS
    machine.arrives(order)
    machine.arrives(order)
    assert not machine.ran
    assert [answer.outcome for answer in told(bench, OrderResult)] == [OrderOutcome.EXPIRED]
