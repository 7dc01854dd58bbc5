"""One simulated dispenser: the shipped agent, a board, a network, visitors, and a lane of virtual time of its own.

A lane runs ahead by itself until its agent has sent facts; then it stands still, in virtual time, until the server's
answer has arrived in real time. So the stream of a machine depends on nothing but the seed and what the server answers.
"""

import heapq
import itertools
import json
import random
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.agent import Agent
from device_agent.moment import Moment
from device_agent.outbox import Outbox
from device_agent.settings import AgentSettings
from protocol.topics import Channel
from simulator.access import Access
from simulator.boards.virtual_board import IDENTITY, Turn, VirtualBoard
from simulator.faults import Injection, Kind
from simulator.truth import Truth, kept_from_serving
from simulator.world import Site, Visitor, World, day_start_ms, local, local_day, local_hour

WILL_DELAY_MS: Final = 45_000
"""A broker notices a dead connection after one and a half keep-alives."""
BOOT_MS: Final = 20_000
RETRY_MS: Final = 40_000
SERVER_AT: Final = re.compile(rb'"server_at_ms":\d+')


class SimulatedMachine:
    """The machine and its surroundings. `send(channel, payload, qos, retain)` is its way to the broker."""

    def __init__(
        self,
        site: Site,
        world: World,
        directory: Path | None,
        start_ms: int,
        send: Callable[[str, Channel, bytes, int, bool], None],
    ) -> None:
        """`directory` keeps the machine's card and its physical state; None keeps both in memory, for one run."""
        self.site, self.world, self._directory, self._send = site, world, directory, send
        self.id = site.dispenser_id
        self.now_ms = start_ms
        self.truth = Truth(Access(world.opening(site), start_ms))
        self.board = VirtualBoard(world.stream("board", self.id))
        self._restore()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._boot_ms = start_ms
        self._powered = False
        self._link = False
        self._network_down_until = 0
        self._unheard_until_ms = self._unserved_until_ms = 0
        self._unanswered = 0
        self._inbox: list[tuple[Channel, bytes]] = []
        self._retained: bytes | None = None
        self._closing = False
        self._asked: Visitor | None = None
        self._wake_ms: int | None = None
        self._door_open = False
        self._lock_pulsed = False
        self._outbox = self._open()
        self.truth.begin(self._outbox)
        self.agent = self._new_agent()
        self._boot()
        self._plan_day()

    # ------------------------------------------------------------ keeping

    def _restore(self) -> None:
        if self._directory is None:
            return
        path = self._directory / f"{self.id}.json"
        if path.exists():
            value = json.loads(path.read_text())
            self.board.restore(value["board"])
            self.truth.restore(value["truth"])

    def save(self) -> None:
        """Keep the physical truth; the agent keeps its own."""
        if self._directory is None:
            return
        path = self._directory / f"{self.id}.json"
        value = {
            "board": self.board.to_json(),
            "truth": self.truth.to_json(),
        }
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(value))
        temporary.replace(path)

    def _open(self) -> Outbox:
        path = ":memory:" if self._directory is None else self._directory / f"{self.id}.outbox"
        return Outbox(path, self.id, durable=False, randomness=self.world.stream("stream", self.id))

    def _new_agent(self) -> Agent:
        boots = int(self._outbox.meta.get("session", 0)), self._outbox.last_seq
        draw = self.world.stream("boot", self.id, *boots)
        settings = AgentSettings(dispenser_id=self.id)
        return Agent(settings, self._outbox, IDENTITY, draw, f"{draw.getrandbits(32):08x}")

    def close(self) -> None:
        """Save, say goodbye, and close the outbox."""
        self.save()
        if self._link:
            self._send(self.id, Channel.STATUS, self._will, 1, True)
        self._outbox.close()

    # ------------------------------------------------------------ the lane

    def at(self) -> Moment:
        """This machine's now."""
        return Moment(self.now_ms, self.now_ms - self._boot_ms, trusted=True)

    def plan(self, at_ms: int, what: Callable[[], None]) -> None:
        """Let something happen at a virtual moment."""
        heapq.heappush(self._heap, (max(at_ms, self.now_ms), next(self._order), what))

    @property
    def waits(self) -> bool:
        """Whether the lane stands still for an answer of the server."""
        return self._unanswered > 0

    def run_until(self, end_ms: int) -> bool:
        """Run the lane to `end_ms`; returns whether it got there, or waits for an answer."""
        while not self.waits:
            wake = self._next_wake()
            planned = self._heap[0][0] if self._heap else None
            due = min(ms for ms in (wake, planned, end_ms + 1) if ms is not None)
            if due > end_ms:
                self.now_ms = max(self.now_ms, end_ms)
                return True
            self.now_ms = max(self.now_ms, due)
            self.truth.tally.events += 1
            if planned is not None and planned <= due:
                heapq.heappop(self._heap)[2]()
            else:
                self._do(self.agent.tick(self.at()))
                self._learn()
        return False

    def _next_wake(self) -> int | None:
        if not self._powered:
            return None
        mono_ms = self.agent.wakes_at_ms()
        return None if mono_ms is None else max(mono_ms + self._boot_ms, self.now_ms + 1)

    def tell(self, event: ev.Event) -> None:
        """Let the agent handle an event now."""
        if self._powered:
            self._do(self.agent.handle(event, self.at()))
            self._learn()

    # ------------------------------------------------------------ effects

    def _do(self, effects: list[ef.Effect]) -> None:  # noqa: C901 - one arm an effect
        for effect in effects:
            match effect:
                case ef.Publish(channel, payload, qos, retain):
                    if self._link:
                        self._publish(channel, payload, qos, retain)
                case ef.RunMotor(slot, sequence):
                    self._turn(self.board.run(slot, sequence))
                case ef.AskBoard(sequence):
                    result = self.board.stored(sequence)
                    answer = ev.BoardAnswered(sequence, result, self.board.life_count)
                    self.plan(self.now_ms + 100, lambda answer=answer: self._board_said(answer))  # type: ignore[misc]
                case ef.PulseLock():
                    self._lock_pulsed = True
                case ef.ClearJam(order_id, slot):
                    self.board.jammed.discard(slot)
                    self.plan(self.now_ms + 2_000, lambda o=order_id: self.tell(ev.OrderDone(o, ok=True)))  # type: ignore[misc]
                case ef.SelfTest(order_id):
                    self.plan(self.now_ms + 3_000, lambda o=order_id: self.tell(ev.OrderDone(o, ok=True)))  # type: ignore[misc]
                case ef.Restart():
                    self._cut_power(self.now_ms + BOOT_MS)
                case ef.Reconnect():
                    self._link_down()
                    self.plan(self.now_ms + 2_000, self._link_up)
                case ef.Show(display):
                    self._seen(display)

    def _publish(self, channel: Channel, payload: bytes, qos: int, retain: bool) -> None:
        if channel is Channel.FACTS:
            self.truth.tally.sent(payload)
            # Nobody waits for an answer that will not arrive: the agent's own timeout does what it is for.
            self._unanswered += self.now_ms >= self._unheard_until_ms
        if channel is not Channel.FACTS or self.now_ms >= self._unserved_until_ms:
            self._send(self.id, channel, payload, qos, retain)

    def _turn(self, turn: Turn) -> None:
        ended = ev.VendEnded(turn.board_sequence, turn.result, turn.duration_ms, self.board.life_count)
        self.plan(self.now_ms + turn.duration_ms, lambda: self._board_said(ended))

    def _board_said(self, event: ev.VendEnded | ev.BoardAnswered) -> None:
        self.tell(event)

    def _learn(self) -> None:
        """Take note of what the agent has recorded, beside what really happened."""
        if self.truth.learn(self._outbox, self.board, self.agent.plan, self.now_ms):
            self.truth.access.note(self._lost_to(), self.now_ms)

    def _lost_to(self) -> str | None:
        """What keeps a visitor from getting a condom now; None where nothing does."""
        if not self._powered:
            return "power"
        if self._door_open:
            return "door"
        return kept_from_serving(self.agent, self.board, local_day(self.now_ms))

    # ------------------------------------------------------------ visitors

    def _plan_day(self) -> None:
        today = local(self.now_ms).date()
        products = {slot.product for slot in self.agent.plan.slots.values()} or set(self.world.product_mix)
        for visitor in self.world.visitors(self.site, today, products):
            if visitor.at_ms > self.now_ms:
                self.plan(visitor.at_ms, lambda visitor=visitor: self._visit(visitor))  # type: ignore[misc]
        for injection in self.world.injections(self.site, today):
            if injection.at_ms > self.now_ms:
                self.plan(injection.at_ms, lambda injection=injection: self.inject(injection))  # type: ignore[misc]
        for hour in range(0, 24, 6):
            self.plan(day_start_ms(today) + hour * 3_600_000, self._read_sensors)
        self.plan(day_start_ms(today + timedelta(days=1)), self._plan_day)

    def _read_sensors(self) -> None:
        air, hour = self.world.air(self.site, self.now_ms), local_hour(self.now_ms)
        self.truth.tally.felt(air.temperature_at(hour))
        self.tell(
            ev.SensorRead(
                temperature_c=air.temperature_at(hour),
                humidity_pct=air.humidity_at(hour),
                signal_dbm=air.signal_at(hour),
                supply_mv=12_100,
                battery_mv=12_900,
            )
        )

    def inject(self, injection: Injection) -> None:
        """Let something happen now."""
        match injection.kind:
            case Kind.NETWORK_FAILS if injection.until_ms is not None:
                self._network_fails(injection.until_ms)
            case Kind.MAINS_FAILS if injection.until_ms is not None:
                self._cut_power(injection.until_ms)
            case Kind.ACKS_LOST if injection.until_ms is not None:
                self._unheard_until_ms = max(self._unheard_until_ms, injection.until_ms)
            case Kind.SERVER_SILENT if injection.until_ms is not None:
                self._unheard_until_ms = max(self._unheard_until_ms, injection.until_ms)
                self._unserved_until_ms = max(self._unserved_until_ms, injection.until_ms)
            case Kind.PACKS_STOLEN:
                self._steal()
            case _:
                pass

    def _visit(self, visitor: Visitor) -> None:
        if self._closing:
            return
        if not self._powered:
            self.truth.tally.outcomes["no_power"] += 1
            return
        self.truth.tally.asked(local_day(self.now_ms))
        self._asked = visitor
        self.tell(ev.ProductChosen(visitor.product))

    def _seen(self, display: ef.Display) -> None:
        """A visitor reads the screen: one who is patient tries once more after a refusal that may pass."""
        message, visitor = display.message, self._asked
        if message is None or visitor is None:
            return
        self._asked = None
        self.truth.tally.outcomes[message] += 1
        if message in {"refused:limit", "refused:busy"} and visitor.patient:
            again = Visitor(self.now_ms + RETRY_MS, visitor.product, patient=False)
            self.plan(again.at_ms, lambda: self._visit(again))

    def _steal(self) -> None:
        stocked = sorted(slot for slot, coil in self.board.coils.items() if coil)
        if stocked:
            slot = self.world.stream("stolen", self.id, self.now_ms).choice(stocked)
            self.board.coils[slot].pop()
            self.truth.note(slot, "theft", -1)

    # ------------------------------------------------------------ network and mains

    @property
    def online(self) -> bool:
        """Whether messages get through now."""
        return self._link

    def _link_up(self) -> None:
        if self._link or not self._powered or self.now_ms < self._network_down_until:
            return
        self._will = self.agent.will(self.at())
        self._link = True
        self.truth.tally.connected(self.now_ms, self._outbox.pending)
        self.tell(ev.LinkUp())
        if self._retained is not None:
            # What a broker retains, it repeats to who subscribes.
            self.plan(self.now_ms + 1, lambda: self._hear(Channel.DESIRED, self._retained or b""))

    def _link_down(self) -> None:
        if not self._link:
            return
        self._link = False
        self.truth.tally.disconnected(self.now_ms)
        self._unanswered = 0
        will = self._will
        self._inbox.clear()
        self.tell(ev.LinkDown())
        self.plan(
            self.now_ms + WILL_DELAY_MS,
            lambda: None if self._link else self._send(self.id, Channel.STATUS, will, 1, True),
        )

    def _network_fails(self, until_ms: int) -> None:
        self._network_down_until = max(self._network_down_until, until_ms)
        self._link_down()
        self.plan(self._network_down_until + 3_000, self._link_up)

    def heal(self) -> None:
        """End every outage now, and let nobody come any more: a run ends with everything told."""
        self._closing = True
        self._network_down_until = 0
        self._unheard_until_ms = self._unserved_until_ms = 0
        if not self._powered:
            self._boot()
        self._link_up()

    def _cut_power(self, until_ms: int) -> None:
        if not self._powered:
            return
        self._link_down()
        self._powered = False
        self.truth.access.note("power", self.now_ms)
        self.plan(until_ms + BOOT_MS, self._boot)

    def _boot(self) -> None:
        if self._powered:
            return
        self._powered = True
        self._boot_ms = self.now_ms
        self._asked = None
        self.agent = self._new_agent()
        self._do(self.agent.start(self.at(), self.board.life_count, self.board.last_sequence, self._door_open))
        self._learn()
        self.plan(self.now_ms + 1_000, self._link_up)

    def message(self, channel: Channel, payload: bytes) -> None:
        """A message has arrived from the broker. An answer lets the lane go on; anything else waits for `deliver`."""
        if channel is Channel.ACK:
            if self._unanswered:
                self._unanswered -= 1
                at_ms = self.now_ms + self.world.latency_ms(self.id, self.now_ms)
                self.plan(at_ms, lambda: self._hear(channel, told_at(payload, at_ms)))
        else:
            if channel is Channel.DESIRED:
                self._retained = payload
            self._inbox.append((channel, payload))

    def deliver(self) -> bool:
        """Let what the server sent of itself arrive now; returns whether there was any."""
        waiting, self._inbox = self._inbox, []
        for channel, payload in waiting:
            self._hear(channel, payload)
        return bool(waiting)

    def _hear(self, channel: Channel, payload: bytes) -> None:
        if self._link:
            self.tell(ev.MessageArrived(channel, payload))

    def reconnect(self) -> None:
        """The connection was lost and is made anew."""
        self._link_down()
        self._link_up()

    def give_up_waiting(self) -> None:
        """Real patience is over: virtual time goes on, and the agent's own timeout does what it is for."""
        self._unanswered = 0

    # ------------------------------------------------------------ by hand

    def open_door(self, *, by_key: bool) -> str | None:
        """A restocker opens the door; returns the session code that the machine shows, None without power."""
        if by_key:
            self.tell(ev.ServiceKeyTurned(on=True))
        self._door_open = True
        self.tell(ev.DoorChanged(open=True, life_count=self.board.life_count))
        return self.agent.display().session if self._powered else None

    @property
    def unlocked(self) -> bool:
        """Whether the lock has been pulsed by an order since the door was last closed."""
        return self._lock_pulsed

    def close_door(self) -> None:
        """The restocker closes the door and turns the key back."""
        self._door_open = False
        self._lock_pulsed = False
        self.board.jammed.clear()
        self.tell(ev.DoorChanged(open=False, life_count=self.board.life_count))
        self.tell(ev.ServiceKeyTurned(on=False))

    def randomness(self, purpose: str) -> random.Random:
        """A stream for something that happens at this machine now."""
        return self.world.stream(purpose, self.id, self.now_ms)

    def reopen(self) -> None:
        """Let people come again."""
        self._closing = False

    def chain(self) -> str:
        """Name the current stream and the digest of its last fact: equal chains are equal facts, byte for byte."""
        return f"{self._outbox.stream_id}/{self._outbox.last_seq}/{self._outbox.last_digest.hex()}"

    def pending(self) -> int:
        """Facts that the server has not acknowledged, and vends that are still to be one."""
        return self._outbox.pending + len(self._outbox.intents)

    def lines(self) -> list[bytes]:
        """All facts of the current stream that are kept, as bytes."""
        return list(self._outbox.lines_after(0))

    def facts(self) -> int:
        """Facts recorded, in all streams."""
        return self.truth.tally.facts


def told_at(payload: bytes, at_ms: int) -> bytes:
    """Return a server's answer as a server whose clock runs would have given it: ours stands still while lanes run."""
    return SERVER_AT.sub(b'"server_at_ms":%d' % at_ms, payload, count=1)
