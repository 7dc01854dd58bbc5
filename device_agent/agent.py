"""The agent: decides, keeps what it did, and asks the world for effects. No clock, no socket, no sleep."""

import contextlib
import random
from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Final, assert_never

from device_agent import events as ev
from device_agent.books import claimed
from device_agent.config import ConfigMixin
from device_agent.dispensing import BOARD_SEQUENCE_MAX, DispensingMixin
from device_agent.doors import DoorMixin
from device_agent.effects import Display, Effect, Publish, SlotShown
from device_agent.faults import OWN_TEST, TEST_AGAIN_MS
from device_agent.local_time import LocalTime
from device_agent.machine import Change as Step
from device_agent.machine import State, after
from device_agent.moment import Moment
from device_agent.ordering import OrdersMixin
from device_agent.outbox import Outbox, OutboxError, SlotBook
from device_agent.quota import Quota
from device_agent.sending import Sender
from device_agent.settings import AgentSettings
from device_agent.storing import StorageMixin, planned
from device_agent.vending import refusal_of_stock
from device_agent.watch import Watch
from protocol.codec import CodecError, decode_ack, encode
from protocol.messages import (
    Board,
    ClockChanged,
    Count,
    Refill,
    Started,
    Status,
    StockLevel,
    Vitals,
)
from protocol.topics import Channel

CLOCK_JUMP_MS: Final = 120_000
DAY_MS: Final = 86_400_000


class Agent(StorageMixin, DispensingMixin, DoorMixin, OrdersMixin, ConfigMixin):
    """One dispenser. `handle` and `tick` return what the world is to do; `at` is always given."""

    def __init__(
        self, settings: AgentSettings, outbox: Outbox, board: Board, randomness: random.Random, boot_id: str
    ) -> None:
        self.settings, self.outbox, self._board = settings, outbox, board
        self._randomness, self._boot_id = randomness, boot_id
        self.sender = Sender(outbox, randomness, settings.ack_timeout_s, settings.silence_s_max)
        self.state = State.STARTING
        self._quota = Quota()
        self.plan = planned(outbox.meta.get("desired"))
        self._time = LocalTime(settings.utc_offset_min, int(outbox.meta.get("trusted_wall_ms", 0)))
        self._door_open = False
        self._key_on = False
        self._unlocked_ms: int | None = None
        self._unlock_order: str | None = None
        self._held_opening = None
        self._link_up = False
        self._session_begun = False
        self.session_began_ms = 0
        self._readings = ev.SensorRead()
        self._clock: Moment | None = None
        self._vitals_due_ms = 0
        self._stock_due_ms: int | None = None
        self._stock_jitter_ms = randomness.randrange(0, 3_600_000)
        self._vend_due_ms: int | None = None
        self._board_before: tuple[int | None, int | None] = (None, None)
        self._test_due_ms: int | None = None
        self.watch = Watch(self.open_faults)

    # ------------------------------------------------------------ time

    def _when(self, at: Moment) -> dict[str, Any]:
        return {"at_ms": at.wall_ms, "mono_ms": at.mono_ms, "boot_id": self._boot_id, "clock_trusted": at.trusted}

    def _local(self, at: Moment) -> datetime:
        return self._time.now(at)

    def _today(self, at: Moment) -> date:
        return self._local(at).date()

    def _watch_clock(self, at: Moment) -> None:
        before, self._clock = self._clock, at
        if before is None:
            return
        was_offset_ms = before.wall_ms - before.mono_ms
        if abs(at.wall_ms - at.mono_ms - was_offset_ms) > CLOCK_JUMP_MS:
            self._time.jumped(was_offset_ms, was_trusted=before.trusted)
            self._stock_due_ms = None
            self._keep(ClockChanged(**self._when(at), was_ms=max(0, at.mono_ms + was_offset_ms)))

    # ------------------------------------------------------------ the two ways in

    def start(
        self, at: Moment, life_count: int | None = None, last_board_sequence: int | None = None, door_open: bool = False
    ) -> list[Effect]:
        """Begin: settle what a former run left open, and say so."""
        self._clock = at
        self._vitals_due_ms = at.mono_ms + self._randomness.randrange(0, 60_000)
        self._board_before = life_count, last_board_sequence
        self._door_open = door_open
        try:
            return self._begin(at)
        except OutboxError as error:
            return self._storage_failed(error, at)

    def _begin(self, at: Moment) -> list[Effect]:
        outbox, (life_count, last_board_sequence) = self.outbox, self._board_before
        outbox.reserve.keep()
        self._follow_board(last_board_sequence)
        self._keep(self.started(at, "new_stream" if outbox.last_seq == 0 else "start", life_count))
        self._begun = True
        self._storage_is_over(at)
        self._finish_interrupted_orders(at)
        if self.has_fault("VMC_OFFLINE"):
            self._test_due_ms = at.mono_ms + TEST_AGAIN_MS
        if self.state is State.STARTING:
            self.state = after(self.state, Step.RECOVERED)
        return self._go_on(life_count, at)

    def _follow_board(self, last_board_sequence: int | None) -> None:
        """Number vends on from the board's last one: an outbox that is new, or came from an old card, is behind it.

        A number that the board has run already would be answered with its old result, and turn nothing.
        """
        own = self.outbox.meta.get("board_sequence")
        last = last_board_sequence or 0
        ahead = 0 if own is None else (last - own) % BOARD_SEQUENCE_MAX
        if own is None or (last and not self.outbox.intents and 0 < ahead < BOARD_SEQUENCE_MAX // 2):
            self._keep(meta={"board_sequence": last})

    def started(self, at: Moment, reason: Any, life_count: int | None = None) -> Started:
        """The first word of an agent, or of a stream."""
        return Started(
            **self._when(at),
            reason=reason,
            agent_version=self.settings.agent_version,
            board=self._board,
            life_count=life_count,
            desired_version=self.outbox.meta.get("desired_version"),
        )

    def handle(self, event: ev.Event, at: Moment) -> list[Effect]:
        """Take one event; returns what is to be done. Raises OutboxDamagedError where only a new start helps."""
        try:
            self._watch_clock(at)
            effects = self._handle(event, at)
        except OutboxError as error:
            if isinstance(event, ev.VendEnded | ev.BoardAnswered):
                self._unkept = event
            effects = self._storage_failed(error, at)
        return effects + self._send(self.sender.pump, at)

    def _send(self, send: Callable[[Moment], list[Effect]], at: Moment) -> list[Effect]:
        try:
            return send(at)
        except OutboxError as error:
            return self._storage_failed(error, at)

    def _handle(self, event: ev.Event, at: Moment) -> list[Effect]:  # noqa: C901, PLR0911, PLR0912 - one arm an event
        match event:  # what happens most often first
            case ev.SensorRead():
                return self._sensors_read(event, at)
            case ev.MessageArrived(channel, payload):
                return self._message(channel, payload, at)
            case ev.SlotChosen(slot):
                return self._choose(slot, at)
            case ev.ProductChosen(product):
                return self._choose_product(product, at)
            case ev.VendEnded() | ev.BoardAnswered():
                return self._vend_answered(event, at)
            case ev.DoorChanged(is_open, life_count):
                return self._door_opened(at, life_count) if is_open else self._door_closed(at, life_count)
            case ev.ServiceKeyTurned(on):
                self._key_on = on
                return []
            case ev.BoardFault():
                return self._board_fault(event, at)
            case ev.BoardFaultEnded():
                return self._board_fault_ended(event, at)
            case ev.InputsRead():
                self.note(self.watch.inputs(event, at.mono_ms), at)
                return []
            case ev.ReaderAnswered(status):
                self.note(self.watch.reader_answered(status), at)
                return []
            case ev.LinkUp():
                return self._link_came_up(at)
            case ev.LinkDown():
                self._link_up = self._link_waits = False
                self.sender.link_down()
                return []
            case ev.OrderDone(order_id, ok) if order_id == OWN_TEST:
                self._controller_tested(at, ok=ok)
                return []
            case ev.OrderDone(order_id, ok, detail):
                return self.order_done(order_id, ok=ok, detail=detail, at=at)
            case ev.LocalCount() | ev.LocalRefill():
                return self._entered_here(event, at)
            case _:
                assert_never(event)

    def tick(self, at: Moment) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        try:
            self._watch_clock(at)
            if self._storage_due_ms is not None and at.mono_ms >= self._storage_due_ms:
                effects += self._try_storage(at)
            in_service = self.state is not State.OUT_OF_SERVICE
            if in_service and self._vend_due_ms is not None and at.mono_ms >= self._vend_due_ms:
                effects += self._vend_overdue(at)
            if in_service and self.watch.due_ms is not None and at.mono_ms >= self.watch.due_ms:
                self.note(self.watch.look(at.mono_ms), at)
            if in_service and self._test_due_ms is not None and at.mono_ms >= self._test_due_ms:
                effects += self._test_controller(at)
            if at.mono_ms >= self._vitals_due_ms:
                effects += self._vitals(at)
            if in_service and self._time.now_ms(at) >= self._stock_due(at):
                self._tell_stock(at)
        except OutboxError as error:
            effects += self._storage_failed(error, at)
        return effects + self._send(self.sender.tick, at)

    def wakes_at_ms(self) -> int:
        """The monotonic time of the next tick that has something to do."""
        wakes_ms = self._vitals_due_ms
        for due_ms in (self.sender.wakes_at_ms(), self._storage_due_ms):
            if due_ms is not None and due_ms < wakes_ms:
                wakes_ms = due_ms
        if self.state is State.OUT_OF_SERVICE:
            return wakes_ms
        for due_ms in (self._vend_due_ms, self.watch.due_ms, self._test_due_ms):
            if due_ms is not None and due_ms < wakes_ms:
                wakes_ms = due_ms
        if self._stock_due_ms is not None and self._clock is not None:
            wakes_ms = min(wakes_ms, self._stock_due_ms - self._time.offset_ms(self._clock))
        return wakes_ms

    # ------------------------------------------------------------ what the machine tells

    def _vitals(self, at: Moment) -> list[Effect]:
        self._vitals_due_ms = at.mono_ms + self.settings.vitals_every_s * 1000
        if not self._link_up:
            return []
        vitals = Vitals(
            stream_id=self.outbox.stream_id,
            session=int(self.outbox.meta.get("session", 0)),
            at_ms=at.wall_ms,
            agent_version=self.settings.agent_version,
            pending_facts=self.outbox.pending,
            temperature_c=self._readings.temperature_c,
            humidity_pct=self._readings.humidity_pct,
            signal_dbm=self._readings.signal_dbm,
            supply_mv=self._readings.supply_mv,
            battery_mv=self._readings.battery_mv,
        )
        return [Publish(Channel.VITALS, encode(vitals), qos=0)]

    def _stock_due(self, at: Moment) -> int:
        """Believed time of the next daily stock level: a fixed local hour, spread over it by machine."""
        if self._stock_due_ms is None:
            offset_ms = self.settings.utc_offset_min * 60_000
            hour_ms = self.settings.stock_level_hour * 3_600_000 + self._stock_jitter_ms
            local = self._time.now_ms(at) + offset_ms
            due = local - local % DAY_MS + hour_ms
            self._stock_due_ms = (due if due > local else due + DAY_MS) - offset_ms
        return self._stock_due_ms

    def _tell_stock(self, at: Moment) -> None:
        self._stock_due_ms = None
        for claims in claimed((slot, self.book(slot)) for slot in sorted(self.plan.slots)):
            self._keep(StockLevel(**self._when(at), slots=claims))
        self._stock_due(at)

    def _link_came_up(self, at: Moment) -> list[Effect]:
        self._link_waits = True
        if not self._session_begun:
            self._keep(meta={"session": self._next_session(at)})
        session, self._session_begun = int(self.outbox.meta["session"]), False
        self._link_up, self._link_waits = True, False
        self.session_began_ms = at.mono_ms
        self.sender.link_up()
        return [Publish(Channel.STATUS, self._status(session, at, online=True), qos=1, retain=True)]

    def _status(self, session: int, at: Moment, *, online: bool) -> bytes:
        status = Status(stream_id=self.outbox.stream_id, session=session, online=online, at_ms=at.wall_ms)
        return encode(status)

    def will(self, at: Moment, *, went_nowhere: bool = False) -> bytes:
        """Begin the next session; returns its last will, which the connection is made with.

        Each attempt has a number of its own: one that a broker took and that never came up may end after its successor
        began, and its will must not say that this one is offline. Only where the last attempt `went_nowhere`, its number
        is used again: a machine without a network does not write for each attempt.
        """
        again = went_nowhere and self._session_begun
        session = int(self.outbox.meta.get("session", 0)) if again else self._next_session(at)
        with contextlib.suppress(OutboxError):  # a machine with a full disk still connects
            if session != self.outbox.meta.get("session"):
                self.outbox.record(meta={"session": session})
            self._session_begun = True
        return self._status(session, at, online=False)

    def _next_session(self, at: Moment) -> int:
        """Never less than the seconds of the clock: an old card that is put back would else count from where it was copied,
        and what its sessions announce would be taken for old.
        """
        return max(int(self.outbox.meta.get("session", 0)) + 1, at.wall_ms // 1000 if at.trusted else 0)

    def _message(self, channel: Channel, payload: bytes, at: Moment) -> list[Effect]:
        """Take a message of the server; one that cannot be read is dropped: the server sends it again."""
        arms: dict[Channel, Callable[[bytes, Moment], list[Effect]]] = {
            Channel.ORDERS: self.order_arrived,
            Channel.DESIRED: self.desired_arrived,
            Channel.BOOKS: self.books_arrived,
        }
        try:
            if channel is Channel.ACK:
                answer = decode_ack(payload)
                if self._time.told(answer.server_at_ms, at):
                    self._stock_due_ms = None
                self._compare_clock(answer, at)
                return self.sender.answered(answer, at)
            return arms[channel](payload, at) if channel in arms else []
        except CodecError:
            return []

    def _entered_here(self, event: ev.LocalCount | ev.LocalRefill, at: Moment) -> list[Effect]:
        session = self.outbox.meta.get("door_session") or None
        fact: Count | Refill
        if isinstance(event, ev.LocalCount):
            fact = Count(**self._when(at), slot=event.slot, counted=event.counted, session=session)
        else:
            lots: dict[str, Any] = {"added": list(event.added), "removed": list(event.removed)}
            fact = Refill(**self._when(at), slot=event.slot, product=event.product, session=session, **lots)
        self.entered(fact)
        return []

    # ------------------------------------------------------------ what the screen shows

    def book(self, slot: int) -> SlotBook:
        """What the machine believes of a slot."""
        return self.outbox.slots.get(slot) or SlotBook()

    def display(self, message: str | None = None) -> Display:
        """What the screen shows now. Expiry is judged when somebody asks: the screen has no clock."""
        shown = {}
        for slot, plan in self.plan.slots.items():
            reason = refusal_of_stock(self.plan, plan, self.book(slot), date.min)
            shown[slot] = SlotShown(plan.product, reason is None, reason and str(reason))
        return Display(str(self.state), self.outbox.meta.get("door_session") or None, shown, message)
