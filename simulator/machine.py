"""One simulated dispenser: the shipped agent, a board, a network, visitors, and a lane of virtual time of its own.

A lane runs ahead by itself until its agent has sent facts; then it stands still, in virtual time, until the server's
answer has arrived in real time. So the stream of a machine depends on nothing but the seed and what the server answers.
"""

import heapq
import itertools
import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.agent import Agent
from device_agent.moment import Moment
from device_agent.settings import AgentSettings
from protocol.messages import LotPacks
from protocol.topics import Channel
from simulator.access import Access
from simulator.boards.virtual_board import IDENTITY, Chances, Turn, VirtualBoard
from simulator.card import Card
from simulator.faults import Kind
from simulator.happenings import NEVER_MS, HappeningsMixin
from simulator.link import Fate, Link, told_at
from simulator.truth import Truth, kept_from_serving
from simulator.world import Site, Visitor, World, day_start_ms, local, local_day

WILL_DELAY_MS: Final = 45_000
"""A broker notices a dead connection after one and a half keep-alives."""
BOOT_MS: Final = 20_000
RETRY_MS: Final = 40_000


class SimulatedMachine(HappeningsMixin):
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
        self.board = VirtualBoard(world.stream("board", self.id), chances=Chances.of(world.parameters))
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._begin_happenings()
        self._restore()
        self._boot_ms = start_ms
        self._powered = False
        self._link = False
        self._network_down_until = 0
        self.link = Link(world, self.id)
        self._inbox: list[tuple[Channel, bytes]] = []
        self._retained: bytes | None = None
        self._closing = False
        self._asked: Visitor | None = None
        self._door_open = self._in_hands = False
        self._lock_pulsed = False
        self._open_card()
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
            self.restore_happenings(value["happenings"])

    def save(self) -> None:
        """Keep the physical truth; the agent keeps its own."""
        if self._directory is None:
            return
        path = self._directory / f"{self.id}.json"
        value = {
            "board": self.board.to_json(),
            "truth": self.truth.to_json(),
            "happenings": self.happenings_to_json(),
        }
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(value))
        temporary.replace(path)

    def _open_card(self, image: bytes | None = None) -> None:
        """Open the card, or put another in its place: an image, or an empty one with a stream of its own."""
        path = None if self._directory is None else self._directory / f"{self.id}.outbox"
        self._learnt = -1
        self._outbox = Card(path, self.id, self.world.stream("stream", self.id, self.cards), image)

    def _new_agent(self) -> Agent:
        # An old card must not make an agent throw the same dice again.
        where = int(self._outbox.meta.get("session", 0)), self._outbox.last_seq, self.cards
        draw = self.world.stream("boot", self.id, *where)
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
        return Moment(self.now_ms + self.clock_off_ms, self.now_ms - self._boot_ms, trusted=True)

    def plan(self, at_ms: int, what: Callable[[], None]) -> None:
        """Let something happen at a virtual moment."""
        heapq.heappush(self._heap, (max(at_ms, self.now_ms), next(self._order), what))

    @property
    def waits(self) -> bool:
        """Whether the lane stands still for an answer of the server."""
        return bool(self.link.waiting)

    def run_until(self, end_ms: int) -> bool:
        """Run the lane to `end_ms`; returns whether it got there, or waits for an answer."""
        heap, link = self._heap, self.link
        while not link.waiting:
            now_ms = self.now_ms
            wakes_ms = self.agent.wakes_at_ms() + self._boot_ms if self._powered else NEVER_MS
            if wakes_ms <= now_ms:
                wakes_ms = now_ms + 1
            planned_ms = heap[0][0] if heap else NEVER_MS
            was_planned = planned_ms <= wakes_ms
            due_ms = planned_ms if was_planned else wakes_ms
            if due_ms > end_ms:
                self.now_ms = max(now_ms, end_ms)
                return True
            if due_ms > now_ms:
                self.now_ms = due_ms
            self.truth.tally.events += 1
            if was_planned:
                heapq.heappop(heap)[2]()
            else:
                self._after(self.agent.tick(self.at()))
        return False

    def tell(self, event: ev.Event) -> None:
        """Let the agent handle an event now."""
        if self._powered:
            self._after(self.agent.handle(event, self.at()))

    def _after(self, effects: list[ef.Effect]) -> None:
        """Do what the agent asks for, and learn what it has recorded."""
        if effects:
            self._do(effects)
        if self._outbox.commits != self._learnt:
            self._learn()

    # ------------------------------------------------------------ effects

    def _do(self, effects: list[ef.Effect]) -> None:  # noqa: C901 - one arm an effect
        for effect in effects:
            match effect:
                case ef.Publish(channel, payload, qos, retain):
                    if self._link:
                        self._publish(channel, payload, qos, retain)
                case ef.RunMotor():
                    self._run_motor(effect)
                case ef.AskBoard(sequence):
                    self._ask_board(sequence)
                case ef.PulseLock():
                    self.truth.tally.pulses += 1
                    self._pulse_lock()
                case ef.ClearJam() | ef.SelfTest():
                    self.truth.tally.acted[effect.order_id] += 1
                    self._board_does(effect)
                case ef.Restart(order_id):
                    self.truth.tally.acted[order_id] += 1
                    self._cut_power(self.now_ms + BOOT_MS)
                case ef.Reconnect():
                    self._link_down()
                    self.plan(self.now_ms + 2_000, self._link_up)
                case ef.Show(display):
                    self._seen(display)

    def _publish(self, channel: Channel, payload: bytes, qos: int, retain: bool) -> None:
        if channel is not Channel.FACTS:
            self._send(self.id, channel, payload, qos, retain)
            return
        sent = self.truth.tally.sent(payload)
        match self.link.fate(self.now_ms):
            case Fate.ARRIVES:
                self._send_batch(payload, sent)
            case Fate.UNANSWERED:
                self._send_batch(payload, sent, heard=False)
            case Fate.DOUBLED:
                self._send_batch(payload, sent)
                self._send_batch(payload, sent)
            case Fate.LATE:
                self.plan(self.now_ms + self.link.later_ms(self.now_ms), lambda: self._send_batch(payload, sent))
            case Fate.LOST:
                pass  # the agent's own timeout does what it is for

    def _send_batch(self, payload: bytes, sent: tuple[int, int], *, heard: bool = True) -> None:
        if self._link:
            self.link.sent(*sent, heard=heard)
            self._send(self.id, Channel.FACTS, payload, 1, False)

    def _turn(self, turn: Turn) -> None:
        ended = ev.VendEnded(turn.board_sequence, turn.result, turn.duration_ms, self.board.life_count)
        self.plan(self.now_ms + turn.duration_ms, lambda: self.tell(ended))

    def _learn(self) -> None:
        """Take note of what the agent has recorded, beside what really happened."""
        self._learnt = self._outbox.commits
        if self.truth.learn(self._outbox, self.board, self.agent.plan, self.now_ms):
            self.truth.access.note(self._lost_to(), self.now_ms)

    def _lost_to(self) -> str | None:
        """What keeps a visitor from getting a condom now; None where nothing does."""
        if not self._powered:
            return "stolen" if self.stolen else "power"
        if (cause := self._kept_away()) is not None:
            return cause
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
        for hour in range(24):
            self.plan(day_start_ms(today) + hour * 3_600_000, self._read_sensors)
        self.plan(day_start_ms(today + timedelta(days=1)), self._plan_day)

    def _visit(self, visitor: Visitor) -> None:
        if self._closing:
            return
        if self.is_closed or not self._powered or self._in_hands:
            turned_away = "site_closed" if self.is_closed else "in_hands" if self._powered else "no_power"
            self.truth.tally.outcomes[turned_away] += 1
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
        self.link.cut()
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
        self.link.heal()
        if self.stolen:
            return
        self._healed()
        if not self._powered:
            self._boot()
        self._network_returns()

    def _network_returns(self) -> None:
        failing = self.active.get(Kind.NETWORK_FAILS)
        self._network_down_until = (failing.until_ms or 0) if failing is not None else 0
        self._link_up()

    def _cut_power(self, until_ms: int) -> None:
        if not self._powered:
            return
        self._link_down()
        self._powered = False
        self.truth.access.note(self._lost_to(), self.now_ms)
        self.plan(until_ms + BOOT_MS, self._boot)

    def _boot(self) -> None:
        if self._powered or self.stolen:
            return
        self._powered = True
        self._boot_ms = self.now_ms
        self._asked = None
        self.agent = self._new_agent()
        self._after(self.agent.start(self.at(), self.board.life_count, self.board.last_sequence, self._door_open))
        self._booted()
        self.plan(self.now_ms + 1_000, self._link_up)

    def message(self, channel: Channel, payload: bytes) -> None:
        """A message has arrived from the broker. An answer lets the lane go on; what nobody asked for waits for `deliver`."""
        if channel is Channel.ACK and b'"sent_at_ms"' in payload:
            if self.link.answered(payload):
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
        self.link.cut()

    # ------------------------------------------------------------ by hand

    def open_door(self, *, by_key: bool) -> str | None:
        """A restocker opens the door; returns the session code that the machine shows, None without power."""
        # Whoever works under the service key lets nobody else press: it would be a test vend.
        self._in_hands = by_key
        if by_key:
            self.tell(ev.ServiceKeyTurned(on=True))
        self._door_moves(is_open=True)
        return self.agent.display().session if self._powered else None

    @property
    def unlocked(self) -> bool:
        """Whether the lock has been pulsed by an order since the door was last closed."""
        return self._lock_pulsed

    def close_door(self) -> None:
        """The restocker, who has repaired what could be, closes the door and turns the key back."""
        self._lock_pulsed = self._in_hands = False
        if not self._stays_open():
            self._door_moves(is_open=False)
        self.tell(ev.ServiceKeyTurned(on=False))
        self._repaired()

    def randomness(self, purpose: str) -> random.Random:
        """A stream for something that happens at this machine now."""
        return self.world.stream(purpose, self.id, self.now_ms)

    def count_exactly(self) -> None:
        """Somebody opens the door with the key, counts every slot, and enters it at the machine itself."""
        self.open_door(by_key=True)
        for slot in sorted(self.agent.plan.slots):
            self.tell(ev.LocalCount(slot, len(self.board.coils.get(slot, []))))
            self.truth.counted(slot, 0)
        self.close_door()

    def fill_up(self) -> None:
        """Somebody fills every slot with the lot that expires last, and enters it at the machine itself."""
        self.open_door(by_key=True)
        for slot, plan in sorted(self.agent.plan.slots.items()):
            lots = [lot for (product, _), lot in self.agent.plan.lots.items() if product == plan.product]
            packs = plan.capacity - len(self.board.coils.get(slot, []))
            if lots and packs > 0:
                lot = max(lots, key=lambda known: (known.expires_on, known.lot)).lot
                self.board.load(slot, lot, packs)
                self.tell(ev.LocalRefill(slot, plan.product, added=(LotPacks(lot=lot, packs=packs),)))
        self.close_door()

    def stands(self) -> tuple[str, int, int]:
        """Name the stream, the last of its facts, and the last that the server has acknowledged."""
        return self._outbox.stream_id, self._outbox.last_seq, self._outbox.acked_through

    def reopen(self) -> None:
        """Let people come again."""
        self._closing = False

    def chain(self) -> str:
        """Name the current stream and the digest of its last fact: equal chains are equal facts, byte for byte."""
        return f"{self._outbox.stream_id}/{self._outbox.last_seq}/{self._outbox.last_digest.hex()}"

    def pending(self) -> int:
        """Facts that the server has not acknowledged and may still hear of, and vends that are still to be one."""
        return 0 if self.stolen else self._outbox.pending + len(self._outbox.intents)

    def facts(self) -> int:
        """Facts recorded, in all streams."""
        return self.truth.tally.facts
