"""A crowd of the shipped agents in one process, each on a connection of its own: more than processes would fit here.

Agent, sender and back-off are the product's; the thread of `runtime.py` and paho are replaced by one event loop, because a
process holds a few hundred paho clients at most.
"""

import asyncio
import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import aiomqtt

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.agent import Agent
from device_agent.moment import Moment
from device_agent.outbox import Outbox
from device_agent.reconnecting import BackOff
from device_agent.settings import AgentSettings
from device_agent.uplink import KEEPALIVE_S, RECONNECT_S_MAX
from fleet_server.embedded import BrokerAddress
from protocol.messages import Board
from protocol.topics import FROM_SERVER, Channel, parse, topic

BOARD: Final = Board(model="CROWD", runs_sequence_once=True, counts_life=True)
TICK_S: Final = 0.5


@dataclass
class Member:
    """One machine of the crowd."""

    id: str
    address: BrokerAddress
    seed: int
    tried_at_s: list[float] = field(default_factory=list)
    """When it tried to connect."""
    up_at_s: float | None = None

    def __post_init__(self) -> None:
        randomness = random.Random(self.seed)
        self.outbox = Outbox(":memory:", self.id, randomness=randomness)
        self.agent = Agent(AgentSettings(dispenser_id=self.id), self.outbox, BOARD, randomness, "0" * 8)
        self.back_off = BackOff(RECONNECT_S_MAX, randomness)
        self._began_s = time.monotonic()
        self._client: aiomqtt.Client | None = None
        self._sends: asyncio.Queue[ef.Publish] = asyncio.Queue()
        self.do(self.agent.start(self.at(), 0, 0))

    def at(self) -> Moment:
        return Moment(int(time.time() * 1000), int((time.monotonic() - self._began_s) * 1000))

    def tell(self, event: ev.Event) -> None:
        self.do(self.agent.handle(event, self.at()))

    def do(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.Publish):
                self._sends.put_nowait(effect)

    async def live(self) -> None:
        """Stay connected, with the pauses of the product."""
        while True:
            self.tried_at_s.append(time.monotonic())
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                await self._session()
            self.up_at_s = None
            self.tell(ev.LinkDown())
            while not self._sends.empty():
                self._sends.get_nowait()
            await asyncio.sleep(self.back_off.next_delay_s())

    async def _session(self) -> None:
        will = aiomqtt.Will(topic(self.id, Channel.STATUS), self.agent.will(self.at()), qos=1, retain=True)
        login: dict[str, Any] = {"username": "fleet", "password": self.address.users.get("fleet")}
        async with aiomqtt.Client(
            self.address.host,
            self.address.port,
            identifier=self.id,
            will=will,
            keepalive=KEEPALIVE_S,
            timeout=20,
            **login,
        ) as client:
            granted: Any = await client.subscribe([(topic(self.id, channel), 1) for channel in FROM_SERVER])
            if any(reason.is_failure for reason in granted):
                return  # as the product's uplink does
            self.back_off.connected()
            self.up_at_s = time.monotonic()
            self.tell(ev.LinkUp())
            sending = asyncio.create_task(self._send(client))
            try:
                async for message in client.messages:
                    self.tell(ev.MessageArrived(parse(str(message.topic)).channel, bytes(message.payload)))
            finally:
                sending.cancel()

    async def _send(self, client: aiomqtt.Client) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                message = await asyncio.wait_for(self._sends.get(), TICK_S)
                await client.publish(topic(self.id, message.channel), message.payload, message.qos, message.retain)
                continue
            if self.at().mono_ms >= self.agent.wakes_at_ms():
                self.do(self.agent.tick(self.at()))


class Crowd:
    """Many machines; `run` drives them in this thread until a condition holds."""

    def __init__(self, ids: list[str], address: BrokerAddress, seed: int) -> None:
        self.members = [Member(id_, address, seed * 100_000 + n) for n, id_ in enumerate(ids)]
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(1)
        self._tasks = [self._loop.create_task(member.live()) for member in self.members]

    def until(self, holds: Any, seconds: float) -> float:
        """Run until it holds; returns the seconds it took."""
        began_s = time.monotonic()

        async def wait() -> None:
            while not holds():
                assert time.monotonic() - began_s < seconds, self.standing()
                await asyncio.sleep(0.1)

        self._drive(wait())
        return time.monotonic() - began_s

    def _drive(self, work: Any) -> None:
        # In a thread of its own: a browser test before us may have left a loop that runs in this one.
        self._thread.submit(self._loop.run_until_complete, work).result()

    def standing(self) -> str:
        up = sum(member.up_at_s is not None for member in self.members)
        return f"{up} of {len(self.members)} connected, {sum(m.outbox.pending for m in self.members)} facts pending"

    def all_up(self) -> bool:
        return all(member.up_at_s is not None for member in self.members)

    def nothing_pending(self) -> bool:
        return self.all_up() and all(member.outbox.pending == 0 for member in self.members)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._drive(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()
