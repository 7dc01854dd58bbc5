"""A few simulated machines on a bench: shipped agents in virtual time, without a server, for firmware engineers' tests."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from protocol.messages import Fact
from simulator.bridges import InProcessBridge
from simulator.faults import Injection, Kind
from simulator.fleet import Fleet, People
from simulator.machine import SimulatedMachine
from simulator.parameters import Parameters
from simulator.scenarios import quantities
from simulator.scenarios.rounds import plan_stocking
from simulator.server_api import ServerApi
from simulator.stand_in import StandIn
from simulator.world import LOCAL, World, local, sites

START: Final = "2026-06-01"
STOCKING_MS: Final = 10 * 60_000
PATIENCE_S: Final = 30.0


def quiet() -> dict[str, Any]:
    """Return the parameters of a world in which nobody comes and nothing goes wrong by itself."""
    never = ("type_base_boxes_per_day.", "theft.", "site_closed.")
    return {
        parameter.name: 0
        for parameter in Parameters()
        if parameter.name.endswith(".rate")
        or parameter.name.startswith(never)
        or parameter.name.startswith("vends.double")
    }


class VirtualClock:
    """Virtual time: it stands still until somebody lets it advance, and then takes everybody along who listens."""

    def __init__(self, start: str = START) -> None:
        begins = datetime.fromisoformat(start)
        begins = begins.replace(tzinfo=LOCAL) if begins.tzinfo is None else begins
        self.now_ms = int(begins.timestamp() * 1000)
        self._fleets: list[BenchFleet] = []

    @property
    def now(self) -> datetime:
        """The local time."""
        return local(self.now_ms)

    def advance(self, duration: str | timedelta) -> datetime:
        """Let so much time pass, such as `90 min`, `4 d` or a timedelta; returns the time it is then."""
        is_text = isinstance(duration, str)
        self.now_ms += quantities.duration_ms(duration) if is_text else int(duration.total_seconds() * 1000)  # type: ignore[union-attr]
        for fleet in self._fleets:
            fleet.play_to(self.now_ms)
        return self.now

    def drives(self, fleet: "BenchFleet") -> None:
        """Take a fleet along from now on."""
        self._fleets.append(fleet)


class BenchFleet:
    """Machines with the shipped agent, stocked by hand, and a stand-in that acknowledges what they tell."""

    def __init__(self, world: World, clock: VirtualClock, dispensers: int = 2, *, stocked: bool = True) -> None:
        self.world, self.clock, self.server = world, clock, StandIn()
        people = (ServerApi(self.server.request, "", "") for _ in range(3))
        self._fleet = Fleet(world, sites()[:dispensers], InProcessBridge(self.server), People(*people), clock.now_ms)
        self._fleet.crew.stays_home = True
        for dispenser_id in self.machines:
            self.server.desire_usual(dispenser_id, clock.now.date())
        clock.drives(self)
        if stocked:
            # Time for the plan to arrive, and then for somebody to come and fill the slots.
            clock.advance(timedelta(minutes=2))
            self.stock()

    @property
    def machines(self) -> Mapping[str, SimulatedMachine]:
        """The machines by id."""
        return self._fleet.machines

    def __getitem__(self, dispenser_id: str) -> SimulatedMachine:
        return self._fleet.machines[dispenser_id]

    @property
    def ids(self) -> list[str]:
        """The ids of the machines."""
        return list(self._fleet.machines)

    def stock(self) -> None:
        """Let somebody count and fill every slot of every machine, with the door open; takes ten minutes."""
        for machine in self.machines.values():
            plan_stocking(self._fleet, machine, self.clock.now_ms)
        self.clock.advance(timedelta(milliseconds=STOCKING_MS))

    def inject(
        self, dispenser_id: str, kind: str, *, lasts: str | None = None, slot: int | None = None, value: Any = None
    ) -> None:
        """Let something happen to a machine now; kinds and values are those of scenarios. Raises InjectionError."""
        now_ms = self.clock.now_ms
        until_ms = None if lasts is None else now_ms + quantities.duration_ms(lasts)
        injection = Injection(now_ms, Kind(kind), until_ms, slot, value)
        machine = self[dispenser_id]
        machine.plan(now_ms, lambda: machine.inject(injection))

    def ask(self, dispenser_id: str, product: str = "CONDOM-M") -> None:
        """Let a visitor ask for a pack now; it falls within the next seconds of virtual time."""
        self.inject(dispenser_id, "visitor_comes", value=product)

    def facts(self, dispenser_id: str, kind: str | None = None) -> list[Fact]:
        """Return what the stand-in has heard of a machine, of one kind or of all."""
        return self.server.facts(dispenser_id, kind)

    def play_to(self, at_ms: int) -> None:
        """Let the machines catch up with a moment; the clock calls this."""
        self._fleet.play(at_ms, PATIENCE_S, lambda _: None)

    def finish(self) -> None:
        """End every outage, and let everything be told."""
        self._fleet.finish(PATIENCE_S)
        self.clock.now_ms = self._fleet.now_ms

    def close(self) -> None:
        """Put the machines away."""
        self._fleet.close()
