"""A machine on its bench, on a real broker: what the agent publishes is carried, what the server answers is told to it."""

import queue
import time
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from device_agent import effects as ef
from device_agent import events as ev
from fleet_server.embedded import BrokerAddress
from protocol.topics import FROM_SERVER, Channel, topic
from tests.device_agent.machines import Bench


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
