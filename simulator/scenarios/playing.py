"""Plays one scenario with one seed, and judges it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from simulator.connecting import Connection
from simulator.faults import Injection, Kind
from simulator.fleet import Fleet, Progress
from simulator.real_time import monotonic
from simulator.scenarios import injections
from simulator.scenarios.expectations import judge
from simulator.scenarios.form import BrokerOutage, Event, LotRecall, Miscount, Scenario, ServerOutage
from simulator.scenarios.measuring import measured
from simulator.scenarios.outcome import Outcome
from simulator.scenarios.rounds import plan_rounds
from simulator.world import World

RECALL = "recalled (scenario)"


@dataclass(frozen=True)
class Stage:
    """What a scenario is played on: a connection to a server, and whether that keeps a ledger to be audited."""

    connection: Connection
    keeps_ledger: bool = True
    patience_s: float = 120.0


def play(scenario: Scenario, seed: int, stage: Stage, report: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Play to the end and judge; raises ServerError where the server cannot play this history."""
    began_s = monotonic()
    world = World(seed, injections.overrides(scenario))
    chosen = scenario.sites()
    people = stage.connection.people
    fleet = Fleet(world, chosen, stage.connection.bridge, people, scenario.start_ms)
    try:
        _plan(scenario, fleet)
        fleet.play(scenario.end_ms, stage.patience_s, report)
        fleet.finish(stage.patience_s)
        figures = measured(fleet, people.administrator if stage.keeps_ledger else None, math.ceil(scenario.days))
    finally:
        fleet.close()
    return Outcome(
        name=scenario.name,
        seed=seed,
        days=scenario.days,
        dispensers=len(chosen),
        facts=int(figures.fleet["facts"]),
        seconds=monotonic() - began_s,
        judged=[judge(clause, figures) for clause in scenario.expect],
        findings=figures.audit_found,
        problems=fleet.work.problems,
    )


def _plan(scenario: Scenario, fleet: Fleet) -> None:
    """Lay out everything that the scenario wants to happen."""
    for place, fault in enumerate(scenario.faults):
        if fault.rate is None:
            injection = injections.injection(fault, scenario.start_ms)
            _inject(fleet, _drawn(fleet, fault.dispensers, f"fault/{place}"), injection)
    for place, event in enumerate(scenario.events):
        _plan_event(fleet, event, event.at.at_ms(scenario.start_ms), f"event/{place}")
    if scenario.restock.policy != "plan":
        fleet.crew.stays_home = True
    if scenario.restock.every is not None:
        plan_rounds(fleet, scenario.restock.every, scenario.end_ms)


def _plan_event(fleet: Fleet, event: Event, at_ms: int, purpose: str) -> None:
    match event:
        case BrokerOutage():
            _inject(fleet, list(fleet.machines), Injection(at_ms, Kind.NETWORK_FAILS, at_ms + event.lasts))
        case ServerOutage():
            _inject(fleet, list(fleet.machines), Injection(at_ms, Kind.SERVER_SILENT, at_ms + event.lasts))
        case Miscount():
            for dispenser_id in _drawn(fleet, event.dispensers, purpose):
                fleet.crew.miscount_next(dispenser_id, event.slot, event.off_by, at_ms)
        case LotRecall():
            fleet.at_desk(at_ms, lambda: _recall(fleet, event.product, event.lot))
        case _:
            assert_never(event)


def _inject(fleet: Fleet, dispenser_ids: Sequence[str], injection: Injection) -> None:
    for dispenser_id in dispenser_ids:
        machine = fleet.machines[dispenser_id]
        machine.plan(injection.at_ms, lambda machine=machine: machine.inject(injection))  # type: ignore[misc]


def _drawn(fleet: Fleet, chosen: tuple[str, ...] | int | None, purpose: str) -> list[str]:
    """Return the machines that are meant; a number of them is drawn by the seed."""
    everywhere = sorted(fleet.machines)
    if chosen is None:
        return everywhere
    if isinstance(chosen, int):
        return sorted(fleet.world.stream("scenario", purpose).sample(everywhere, chosen))
    return [dispenser_id for dispenser_id in everywhere if dispenser_id in chosen]


def _recall(fleet: Fleet, product: str, lot: str | None) -> None:
    """Block the lot that is named, or the one of which most packs are in machines."""
    if lot is None:
        packs: dict[str, int] = {}
        for machine in fleet.machines.values():
            for slot, plan in machine.agent.plan.slots.items():
                for name in machine.board.coils.get(slot, []) if plan.product == product else ():
                    packs[name] = packs.get(name, 0) + 1
        if not packs:
            return
        lot = max(sorted(packs), key=packs.__getitem__)
    body: dict[str, Any] = {"product": product, "lot": lot, "reason": RECALL}
    fleet.people.dispatcher.post("/lots/block", body)
