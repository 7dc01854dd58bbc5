"""The figures of a run: from the machines' surroundings, from the auditor, and from what the server's books say."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from simulator.access import SERVING
from simulator.auditor import Auditor, Findings
from simulator.fleet import Fleet
from simulator.machine import SimulatedMachine
from simulator.scenarios.codes import FAULT_CODES
from simulator.scenarios.expectations import Figures
from simulator.scenarios.metrics import METRICS
from simulator.server_api import ServerApi

PAGE = 1_000


def measured(fleet: Fleet, server: ServerApi | None, days: int) -> Figures:
    """Measure everything. Without a server that keeps a ledger, what only it can tell stays unmeasured."""
    figures = Figures()
    for dispenser_id, machine in fleet.machines.items():
        machine.truth.tally.disconnected_until(fleet.now_ms)
        figures.dispensers[dispenser_id] = _of_machine(machine)
    if server is not None:
        _of_ledger(fleet, server, figures)
    names = {name for own in figures.dispensers.values() for name in own}
    figures.fleet = {name: _together(name, figures.dispensers.values()) for name in names}
    figures.fleet |= _of_fleet(fleet, days)
    _quotients(figures)
    return figures


def _family(name: str, counts: Mapping[str, float], *, total: float | None = None) -> dict[str, float]:
    """A metric with its members; those that did not happen are 0."""
    members = {f"{name}.{member}": float(counts.get(member, 0)) for member in METRICS[name].members}
    return {name: float(sum(counts.values()) if total is None else total), **members}


def _of_machine(machine: SimulatedMachine) -> dict[str, float]:
    tally, access = machine.truth.tally, machine.truth.access
    access.note(access.cause, machine.now_ms)
    lost = {cause: ms for cause, ms in access.ms.items() if cause != SERVING}
    return {
        "requests": tally.requests,
        "delivered": tally.outcomes["vend:delivered"],
        **_family("vends", tally.vends),
        **_family("refused", tally.refused),
        **_family("lost_access", lost),
        "serving": access.ms[SERVING],
        **_family("facts", tally.kinds),
        **_unobservable(machine),
        "untold": tally.untold,
        "streams": len(tally.streams),
        "resent": tally.resent,
        "backlog": tally.backlog_max,
        "offline": tally.offline_ms_max,
        "caught_up_within": tally.catch_up_ms_max,
        **_family("orders", tally.orders, total=tally.kinds["order_result"]),
        **_family("visits", tally.visits),
        "recalled_dispensed": tally.blocked_dispensed,
        **({} if tally.temperature_c_max is None else {"temperature": tally.temperature_c_max}),
    }


def _of_fleet(fleet: Fleet, days: int) -> dict[str, float]:
    of_day: Counter[Any] = Counter()
    for machine in fleet.machines.values():
        of_day.update(machine.truth.tally.requests_of)
    quiet = 0 if len(of_day) < days else min(of_day.values(), default=0)
    return {
        "busiest_day": max(of_day.values(), default=0),
        "quietest_day": quiet,
        "packs_loaded": fleet.work.packs_loaded,
        "problems": len(fleet.work.problems),
        "dispensers": len(fleet.machines),
    }


LARGEST = frozenset({"backlog", "offline", "caught_up_within", "temperature"})
"""Of the fleet, these are the largest of a machine; all others are the sum."""


def _together(name: str, machines: Iterable[Mapping[str, float]]) -> float:
    values = [own[name] for own in machines if name in own]
    return max(values) if name in LARGEST else sum(values)


def _quotients(figures: Figures) -> None:
    for figures_of in (figures.fleet, *figures.dispensers.values()):
        serving, lost = figures_of.pop("serving"), figures_of["lost_access"]
        figures_of["availability"] = serving / (serving + lost) if serving + lost else 1.0
        if figures_of["requests"]:
            figures_of["fill_rate"] = figures_of["delivered"] / figures_of["requests"]


# ---------------------------------------------------------------- against the server's books


def _of_ledger(fleet: Fleet, server: ServerApi, figures: Figures) -> None:
    findings = Auditor(server).compare(fleet.machines)
    of_ledger = server.get("/ledger/audit")
    figures.audit_found = [str(residual) for residual in findings.residuals] + list(of_ledger["differences"])
    figures.audit_clean = not figures.audit_found
    faults = _faults(server)
    for dispenser_id in fleet.machines:
        figures.dispensers[dispenser_id] |= {
            **_residual(findings, dispenser_id),
            "count_difference": _counted_away(server, dispenser_id),
            **_family("faults", {code: faults[dispenser_id, code] for code in FAULT_CODES}),
        }


def _residual(findings: Findings, dispenser_id: str) -> dict[str, float]:
    return {"residual": float(sum(one.dispenser_id == dispenser_id for one in findings.residuals))}


def _unobservable(machine: SimulatedMachine) -> dict[str, float]:
    causes: Counter[str] = Counter()
    for of_slot in machine.truth.unobserved.values():
        for cause, packs in of_slot.items():
            causes[cause] += abs(packs)
    return _family("unobservable", causes)


def _counted_away(server: ServerApi, dispenser_id: str) -> float:
    account = f"count_difference/{dispenser_id}"
    moved = server.get(f"/ledger/movements?account={account}&limit={PAGE}")["items"]
    return float(sum(movement["units"] for movement in moved))


def _faults(server: ServerApi) -> Counter[tuple[str, str]]:
    """How often the server has opened each fault, open or ended."""
    found: Counter[tuple[str, str]] = Counter()
    before = ""
    while True:
        page = server.get(f"/faults?limit={PAGE}{before}")["items"]
        found.update((fault["dispenser_id"], fault["code"]) for fault in page)
        if len(page) < PAGE:
            return found
        before = f"&before={page[-1]['id']}"
