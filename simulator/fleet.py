"""The fleet in virtual time: lanes run side by side to the next moment at which the server's clock must move."""

import hashlib
import heapq
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from protocol.topics import Channel
from simulator import collector
from simulator.bridges import Bridge
from simulator.by_hand import Hands
from simulator.machine import SimulatedMachine
from simulator.phone import Phone
from simulator.real_time import monotonic, pause
from simulator.restockers import Crew, Steps, Work
from simulator.server_api import ServerApi, ServerError
from simulator.world import HOUR_MS, LOCAL_MS, Site, World, local

SAVE_EVERY_S: Final = 30.0
"""A simulator that is killed while it is live forgets at most so much of what is physically where."""
WINDOW_MS: Final = 12 * HOUR_MS
"""Lanes run so far side by side at the most before the server's clock moves."""
SILENCE_S: Final = 3.0
"""Real seconds without any answer after which connection and server are looked at."""
OUTGOING_WAIT_S: Final = 3.0
FINISHING_STEPS_MAX: Final = 20
RELEASE: Final = timedelta(hours=6, minutes=30)
BEGIN_WORK: Final = timedelta(hours=8)


class SeedError(ValueError):
    """A kept fleet was begun with another seed."""


@dataclass
class People:
    """Who the simulation signs in as."""

    administrator: ServerApi
    dispatcher: ServerApi
    restocker: ServerApi


@dataclass
class Progress:
    """How far a run has come, for a progress bar."""

    began_ms: int
    ends_ms: int
    now_ms: int
    facts: int = 0


class Fleet:
    """All machines and people of one depot. `directory` keeps them between runs; None keeps everything in memory."""

    def __init__(
        self,
        world: World,
        sites: Sequence[Site],
        bridge: Bridge,
        people: People,
        start_ms: int,
        directory: Path | None = None,
    ) -> None:
        self.world, self._directory, self._bridge, self.people = world, directory, bridge, people
        state = self._read_state()
        self.now_ms = max(start_ms, int(state.get("now_ms", 0)))
        self.work = Work(**state.get("work", {}))
        collector.spare()
        self.machines = {
            site.dispenser_id: SimulatedMachine(site, world, directory, self.now_ms, bridge.publish) for site in sites
        }
        phone = Phone(people.restocker, lambda: self.now_ms, directory and directory / "phone.json")
        self.crew = Crew(
            world,
            self.machines,
            people.dispatcher,
            people.restocker,
            lambda: self.now_ms,
            self.collect,
            self.work,
            phone,
        )
        self._desk: list[tuple[int, int, Callable[[], Steps | None]]] = []
        self._order = itertools.count()
        self._received = 0
        self._plan_desk()

    # ------------------------------------------------------------ keeping

    def _read_state(self) -> dict[str, Any]:
        if self._directory is None:
            return {}
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / "fleet.json"
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if state.get("seed", self.world.seed) != self.world.seed:
            raise SeedError(f"--seed {self.world.seed}: expected {state['seed']}, with which {path} was begun")
        return state

    def save(self) -> None:
        """Keep where virtual time stands, and the physical truth of every machine."""
        if self._directory is None:
            return
        work = {name: value for name, value in vars(self.work).items() if name != "problems"}
        state = {"seed": self.world.seed, "now_ms": self.now_ms, "work": work}
        (self._directory / "fleet.json").write_text(json.dumps(state))
        for machine in self.machines.values():
            machine.save()

    def close(self) -> None:
        """Save, and let every machine say goodbye."""
        collector.usual()
        self.save()
        for machine in self.machines.values():
            machine.close()

    # ------------------------------------------------------------ the desk

    def _plan_desk(self) -> None:
        day = local(self.now_ms).replace(hour=0, minute=0, second=0, microsecond=0)
        for offset, what in ((RELEASE, self._release), (BEGIN_WORK, self._begin_work)):
            at = day + offset
            at_ms = int(at.timestamp() * 1000)
            if at_ms < self.now_ms:
                at_ms += 24 * HOUR_MS
            self.at_desk(at_ms, what)

    def at_desk(self, at_ms: int, what: Callable[[], Steps | None]) -> None:
        """Let people do something at a virtual moment."""
        heapq.heappush(self._desk, (at_ms, next(self._order), what))

    def _release(self) -> None:
        self.at_desk(self.now_ms + 24 * HOUR_MS, self._release)
        self.crew.release()

    def _begin_work(self) -> None:
        self.at_desk(self.now_ms + 24 * HOUR_MS, self._begin_work)
        for tour in self.crew.begin_work():
            self._step(tour)

    def _step(self, steps: Steps) -> None:
        """Let a person do the next thing, and come back when the time that takes is over."""
        pause_ms = next(steps, None)
        if pause_ms is not None:
            self.at_desk(self.now_ms + pause_ms, lambda: self._step(steps))

    def _run_desk(self) -> None:
        while self._desk and self._desk[0][0] <= self.now_ms:
            heapq.heappop(self._desk)[2]()
        self.crew.send_due()

    # ------------------------------------------------------------ virtual time

    def play(self, end_ms: int, patience_s: float, report: Callable[[Progress], None]) -> None:
        """Play to a virtual moment; the server's clock follows, and its jobs run on the way."""
        self._patience_s = patience_s
        for machine in self.machines.values():
            machine.reopen()
        collector.spare()
        progress = Progress(self.now_ms, end_ms, self.now_ms)
        self._synchronise()
        while self.now_ms < end_ms:
            target = min(end_ms, _next_window(self.now_ms), *(at_ms for at_ms, _, _ in self._desk[:1]))
            target = max(target, self.now_ms)
            self._run_lanes(target)
            self.now_ms = target
            self._synchronise()
            self._run_desk()
            progress.now_ms, progress.facts = target, sum(machine.facts() for machine in self.machines.values())
            report(progress)

    def digest(self) -> str:
        """Sum up the facts of all machines: two runs with the same digest told the same, byte for byte."""
        chains = sorted(f"{name}:{machine.chain()}" for name, machine in self.machines.items())
        return hashlib.sha256("\n".join(chains).encode()).hexdigest()

    def finish(self, patience_s: float, steps_max: int = FINISHING_STEPS_MAX) -> int:
        """End outages and send what is still to be sent, so that everything is told; returns how long that took (ms).

        A step is half a minute; so many are taken at the most.
        """
        self._patience_s = patience_s
        for machine in self.machines.values():
            machine.heal()
        healed_ms = self.now_ms
        for _ in range(steps_max):
            self.now_ms += 30_000
            self._run_lanes(self.now_ms)
            self._synchronise()
            self.crew.send_due(all_of_it=True)
            if not any(machine.pending() for machine in self.machines.values()):
                break
        return self.now_ms - healed_ms

    def _run_lanes(self, end_ms: int) -> None:
        deadline = monotonic() + self._patience_s
        waiting = {machine_id for machine_id, machine in self.machines.items() if not machine.run_until(end_ms)}
        while waiting:
            arrived = self._bridge.take(SILENCE_S)
            if arrived is None:
                self._after_silence(waiting, deadline)
                waiting = {machine_id for machine_id in waiting if not self.machines[machine_id].run_until(end_ms)}
                continue
            deadline = monotonic() + self._patience_s
            # All that is here, before anybody goes on: what those machines then say leaves together.
            answered = {}
            while arrived is not None:
                answered[self._hand_over(*arrived)] = True
                arrived = self._bridge.take(0)
            for machine_id in answered:
                if machine_id in waiting and self.machines[machine_id].run_until(end_ms):
                    waiting.discard(machine_id)

    def _hand_over(self, machine_id: str, channel: Channel, payload: bytes) -> str:
        self._received += channel is not Channel.ACK
        machine = self.machines.get(machine_id)
        if machine is not None:
            machine.message(channel, payload)
        return machine_id

    def _after_silence(self, waiting: set[str], deadline: float) -> None:
        """Nothing came for seconds: the broker or the server is away. Machines would lose their connection, and so do these."""
        while monotonic() < deadline:
            if self._bridge.connected and self._server_is_ready():
                break
            pause(0.3)
        for machine_id in waiting:
            self.machines[machine_id].give_up_waiting()
            self.machines[machine_id].reconnect()

    def _server_is_ready(self) -> bool:
        try:
            return bool(self.people.administrator.is_ready())
        except ServerError:
            return False

    def _synchronise(self) -> None:
        """Bring the server's clock here once it has all that was told, and deliver what it sends because of that."""
        self._bridge.settle()
        at = datetime.fromtimestamp(self.now_ms / 1000, UTC).isoformat()
        body: dict[str, Any] = {"to": at}
        if self._told_before is not None:
            body["after_messages"] = self._bridge.told + self._told_before
        answer = self.people.administrator.post("/clock/advance", body)
        self._told_before = int(answer["messages_handled"]) - self._bridge.told
        self.collect(int(answer["messages_sent"]))

    _told_before: int | None = None
    """What the server had been told by others, or before it restarted: its count less ours."""

    def collect(self, total: int) -> None:
        """Deliver what the server has sent of itself, `total` messages since it started, and let the machines answer."""
        self._await_messages(total)
        if [machine for machine in self.machines.values() if machine.deliver()]:
            self._run_lanes(self.now_ms)

    def _await_messages(self, total: int) -> None:
        """Wait until all that the server says it has sent so far is here; `total` begins anew when it restarts."""
        known = self._sent_before is not None and total >= self._sent_before
        self._sent_before = total
        deadline = monotonic() + (OUTGOING_WAIT_S if known else self._bridge.settling_s)
        while not (known and self._received >= total + self._offset):
            arrived = self._bridge.take(0.02)
            if arrived is not None:
                self._hand_over(*arrived)
            elif self._bridge.settling_s == 0 or monotonic() >= deadline:
                break
        if not known:
            self._offset = self._received - total

    _sent_before: int | None = None
    _offset = 0
    _patience_s = 120.0

    # ------------------------------------------------------------ the wall clock

    def live(self, speed: float, stop: Callable[[], bool]) -> None:
        """Go on in real time, or faster by a factor, until told to stop."""
        began_s, base_ms = monotonic(), self.now_ms
        heard_s = saved_s = began_s
        hands = Hands(self.machines, speed)
        while not stop():
            arrived = self._bridge.take(0.05)
            while arrived is not None:
                heard_s = monotonic()
                self._hand_over(*arrived)
                arrived = self._bridge.take(0.0)
            self.now_ms = base_ms + int((monotonic() - began_s) * 1000 * speed)
            quiet = monotonic() - heard_s > SILENCE_S
            for machine in self.machines.values():
                if machine.waits and quiet:
                    machine.give_up_waiting()
                if machine.run_until(self.now_ms):
                    machine.deliver()
            if quiet:
                heard_s = monotonic()
            hands.lend(self.crew.at_work)
            self._run_desk_live()
            if monotonic() - saved_s > SAVE_EVERY_S:
                saved_s = monotonic()
                self.save()

    def _run_desk_live(self) -> None:
        """People wait for a server that is away; the machines do not."""
        try:
            self._run_desk()
        except ServerError as error:
            self.work.problems.append(str(error))


def _next_window(now_ms: int) -> int:
    """The next local noon or midnight."""
    shifted = now_ms + LOCAL_MS
    return shifted - shifted % WINDOW_MS + WINDOW_MS - LOCAL_MS
