"""Restocking by fixed rounds: every machine in turn, by the service key, entered at the machine itself; no server is asked."""

from typing import Final

from device_agent import events as ev
from protocol.messages import LotPacks
from simulator.fleet import Fleet
from simulator.machine import SimulatedMachine
from simulator.world import HOUR_MS, local

FIRST_HOUR: Final = 8
AT_THE_MACHINE_MS: Final = 6 * 60_000


def plan_rounds(fleet: Fleet, every_ms: int, end_ms: int) -> None:
    """Let somebody come by everywhere every so often, from the first morning on."""
    begins_ms = fleet.now_ms + FIRST_HOUR * HOUR_MS
    for place, machine in enumerate(fleet.machines.values()):
        at_ms = begins_ms + place * AT_THE_MACHINE_MS
        while at_ms < end_ms:
            plan_stocking(fleet, machine, at_ms)
            at_ms += every_ms


def plan_stocking(fleet: Fleet, machine: SimulatedMachine, at_ms: int) -> None:
    """Let somebody open a machine, count and fill every slot, and close it."""

    def fill() -> None:
        fleet.work.visits += 1
        machine.truth.tally.visits["online"] += 1
        for slot in machine.agent.plan.slots:
            fleet.work.packs_loaded += fill_slot(machine, slot)

    def opened() -> None:
        machine.open_door(by_key=True)
        machine.plan(machine.now_ms + AT_THE_MACHINE_MS // 2, fill)
        machine.plan(machine.now_ms + AT_THE_MACHINE_MS, machine.close_door)

    machine.plan(at_ms, opened)


def fill_slot(machine: SimulatedMachine, slot: int) -> int:
    """Count a slot and fill it with the good lot that expires first, both entered at the machine; returns the packs."""
    plan = machine.agent.plan.slots[slot]
    coil = machine.board.coils.setdefault(slot, [])
    machine.tell(ev.LocalCount(slot, len(coil)))
    machine.truth.counted(slot, 0)
    today = local(machine.now_ms).date()
    good = sorted(
        (info.expires_on, lot)
        for (product, lot), info in machine.agent.plan.lots.items()
        if product == plan.product and info.expires_on > today and not info.blocked
    )
    packs = plan.capacity - len(coil)
    if packs <= 0 or not good:
        return 0
    lot = good[0][1]
    machine.board.load(slot, lot, packs)
    machine.tell(ev.LocalRefill(slot, plan.product, added=(LotPacks(lot=lot, packs=packs),)))
    return packs
