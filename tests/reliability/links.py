"""A machine on its bench, on a real broker: what the agent publishes is carried, what the server answers is told to it."""

import queue
import random
import time
from datetime import date
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.clock import FixedClock
from fleet_server.database import Database
from fleet_server.embedded import BrokerAddress
from fleet_server.ingest.worker import Message, Outbound, Worker
from protocol.codec import decode_fact
from protocol.messages import LotInfo, LotPacks
from protocol.topics import FROM_SERVER, Channel, parse, topic
from simulator.boards.physical_board import PhysicalBoard
from tests.device_agent.machines import Bench
from tests.fleet_server.fixtures import NOW
from tests.reliability.invariants import Witness


class Link:
    """One connection. The bench's clock stands still while the test waits: its own timeouts are the test's to let pass."""

    def __init__(self, bench: Bench, address: BrokerAddress) -> None:
        self._bench = bench
        self._heard: queue.SimpleQueue[tuple[Channel, bytes]] = queue.SimpleQueue()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=bench.outbox.dispenser_id)
        self._client.username_pw_set("fleet", address.users["fleet"])
        for channel in FROM_SERVER:
            self._client.message_callback_add(topic(bench.outbox.dispenser_id, channel), self._hears(channel))
        self._client.connect(address.host, address.port)
        self._client.subscribe([(topic(bench.outbox.dispenser_id, channel), 1) for channel in FROM_SERVER])
        self._client.loop_start()
        self.carry(bench.tell(ev.LinkUp()))

    def _hears(self, channel: Channel) -> Any:
        return lambda _client, _data, message: self._heard.put((channel, bytes(message.payload)))

    def carry(self, effects: list[ef.Effect]) -> None:
        """Send what is to be sent."""
        for effect in effects:
            if isinstance(effect, ef.Publish):
                where = topic(self._bench.outbox.dispenser_id, effect.channel)
                self._client.publish(where, effect.payload, qos=effect.qos, retain=effect.retain)

    def send_again(self) -> None:
        """Let the agent's patience pass: what is unanswered goes out once more."""
        for _ in range(20):
            self.carry(self._bench.passes(5).tick())

    def hear(self, seconds: float) -> bool:
        """Tell the agent what arrives in this time; returns whether anything did."""
        try:
            channel, payload = self._heard.get(timeout=seconds)
        except queue.Empty:
            return False
        self.carry(self._bench.tell(ev.MessageArrived(channel, payload)))
        return True

    def acknowledged(self, seconds: float) -> bool:
        """Wait until the server has everything; returns whether it has."""
        ends_s = time.monotonic() + seconds
        while self._bench.outbox.pending and time.monotonic() < ends_s:
            self.hear(0.02)
        return self._bench.outbox.pending == 0

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._bench.tell(ev.LinkDown())


class Wire:
    """A machine on its bench, and the server's worker in the same process: what one says the other hears at once."""

    def __init__(self, bench: Bench, database: Database, url: str = "") -> None:
        self.bench, self.database, self.url = bench, database, url
        self.worker = Worker(database, FixedClock(NOW))

    def connect(self) -> None:
        """Begin a session, and exchange what there is."""
        self.bench.tell(ev.LinkUp())
        self.carry()

    def carry(self) -> None:
        """Hand everything over, both ways, until neither side has more to say."""
        asked, self.bench.asked = self.bench.asked, []
        while asked:
            for effect in asked:
                if isinstance(effect, ef.Publish) and effect.qos:
                    message = Message(topic(self.bench.outbox.dispenser_id, effect.channel), effect.payload)
                    self.hear(self.worker.commit([message]).answers)
            self.hear(self.worker.outbound())
            asked, self.bench.asked = self.bench.asked, []

    def hear(self, messages: list[Outbound]) -> None:
        for message in messages:
            self.bench.tell(ev.MessageArrived(parse(message.topic).channel, message.payload))

    def disconnect(self) -> None:
        """What happens now is not heard of before the next `connect`."""
        self.bench.tell(ev.LinkDown())
        self.bench.asked.clear()


class Stocked:
    """A machine whose packs are entered by hand, so that its coils and the ledger can be compared."""

    door_open = False

    def __init__(self, path: Path, seed: int, dispenser_id: str = "HD-001") -> None:
        self.bench = Bench(path, dispenser_id=dispenser_id)
        lots = [LotInfo(lot=lot, product="CONDOM-M", expires_on=date(2029, 1, 1)) for lot in ("L1", "L2")]
        self.bench.loaded(lots=lots, limits={"daily_packs_max": 1000})
        self.board = PhysicalBoard(random.Random(seed))
        self.bench.asked.clear()

    @property
    def witness(self) -> Witness:
        return Witness(self.bench.outbox.dispenser_id, self.bench.path, lambda: self.board.coils)

    def kinds_after(self, seq: int) -> set[type]:
        """The kinds of facts that were kept after one."""
        return {type(decode_fact(line)) for line in self.bench.outbox.lines_after(seq)}

    def opens(self) -> str:
        """Somebody with the key opens; returns the code on the screen."""
        self.door_open = True
        self.bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True))
        return self.bench.agent.display().session or ""

    def closes(self) -> None:
        self.door_open = False
        self.board.jammed.clear()
        self.bench.passes(60).tell(ev.DoorChanged(open=False), ev.ServiceKeyTurned(on=False))

    def refill_here(self, lot: str, packs: int) -> None:
        """Put packs in, and enter them at the machine's own keys."""
        self.board.load(1, lot, packs)
        self.enter_refill(lot, packs)

    def enter_refill(self, lot: str, packs: int) -> None:
        self.bench.tell(ev.LocalRefill(1, "CONDOM-M", added=(LotPacks(lot=lot, packs=packs),)))

    def count_here(self) -> None:
        self.bench.tell(ev.LocalCount(1, len(self.board.coils.get(1, []))))

    def ask(self) -> None:
        """A visitor comes, a minute after the last one."""
        for effect in self.bench.passes(60).tell(ev.SlotChosen(1)):
            if isinstance(effect, ef.RunMotor):
                turn = self.board.turn(effect.slot, effect.board_sequence)
                ended = ev.VendEnded(effect.board_sequence, turn.result, turn.duration_ms, self.board.life_count)
                self.bench.tell(ended)
