"""Makes a plan from its inputs, and from nothing else: any past plan can be made again on exactly what was then known."""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

from fleet_server.planning import rule

STOPS_MAX: Final = 14
TOURS_MAX: Final = 3
VAN_PACKS_MAX: Final = 2_600
NEAR_EXPIRY_DAYS: Final = 30
NEAR_EXPIRY: Final = timedelta(days=NEAR_EXPIRY_DAYS)
LEFT_THERE_DAYS: Final = 7
"""Whoever counted has seen what is near its expiry: where it was left, the next visit for it waits so long."""
COUNT_EVERY_DAYS: Final = 30
PRIORITY: Final = {"fault": 0, "empty": 1, "expired": 1, "first_load": 2, "low": 3, "near_expiry": 4, "count_due": 5}
RETRY_DAYS: Final = 3
"""Whether a repair held shows at the next vend: a fault that somebody has just been to waits so long for the next visit."""
REPAIRABLE: Final = frozenset(
    {
        "SLOT_JAM", "SLOT_HELIX", "SLOT_MOTOR_ABSENT", "DROP_SENSOR_BLOCKED", "DOOR_OPEN_UNAUTH", "DOOR_LEFT_OPEN",
        "DOOR_SWITCH_FAULT", "LOCK_FAULT", "READER_FAULT", "VMC_OFFLINE", "SIM_FAULT", "TEMP_SENSOR_FAULT",
        "VANDALISM", "THEFT", "BOOK_BELOW_ZERO", "STREAM_REPLACED", "STREAM_GAP",
    }
)  # fmt: skip
"""What a person at the machine can put right."""


def make(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the plan: tours of stops, each with its reasons and its picks, and the machines left for another day."""
    today = date.fromisoformat(inputs["today"])
    needed = []
    for dispenser in inputs["dispensers"]:
        reasons = _reasons(dispenser, today)
        if reasons and not dispenser["promised"]:
            needed.append((_urgency(reasons), dispenser, reasons))
    needed.sort(key=lambda item: (item[0], item[1]["id"]))
    depot_stock = _unexpired_first(inputs["depot_stock"], today)
    stops = [
        {"dispenser_id": dispenser["id"], "reasons": reasons, "picks": _picks(dispenser, depot_stock, today)}
        for _, dispenser, reasons in needed[: STOPS_MAX * TOURS_MAX]
    ]
    places = {dispenser["id"]: (dispenser["latitude"], dispenser["longitude"]) for dispenser in inputs["dispensers"]}
    tours = _tours(stops, places, tuple(inputs["depot"]))
    while len(tours) > TOURS_MAX:
        # The vans are full before the stops are used up: the least urgent stop waits.
        stops.pop()
        tours = _tours(stops, places, tuple(inputs["depot"]))
    return {"tours": tours, "left_for_later": [dispenser["id"] for _, dispenser, _ in needed[len(stops) :]]}


def _by_product(dispenser: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for slot in dispenser["slots"]:
        if slot["enabled"]:
            groups[slot["product"]].append(slot)
    return groups


def _usable(slot: dict[str, Any], today: date) -> int:
    """Packs that may still be dispensed; what is owed counts against them.

    Of an expired or blocked lot the machine gives nothing, nor of one whose expiry nobody knows.
    """
    good = [run for run in slot["queue"] if run["expires_on"] and _expiry(run) > today and not run.get("blocked")]
    return int(sum(run["packs"] for run in good) - slot["owed"])


def _stays(slot: dict[str, Any], today: date) -> int:
    """Packs that a visit leaves in the slot: it takes out what is near its expiry, too."""
    good = [run for run in slot["queue"] if not run.get("blocked") and today + NEAR_EXPIRY < _expiry(run) < date.max]
    return int(sum(run["packs"] for run in good) - slot["owed"])


def _in_transit(slot: dict[str, Any]) -> int:
    return int(slot.get("in_transit", 0))


def _expiry(run: dict[str, Any]) -> date:
    return date.fromisoformat(run["expires_on"]) if run["expires_on"] else date.max


def _reasons(dispenser: dict[str, Any], today: date) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = [
        {"code": "fault", "fault": fault["code"], "slot": fault["slot"]}
        for fault in dispenser["faults"]
        if fault["code"] in REPAIRABLE and _is_worth_a_visit(fault)
    ]
    if not dispenser["ever_loaded"]:
        return [*reasons, {"code": "first_load"}]
    return reasons + _stock(dispenser, today) + _dates(dispenser, today)


def short_of(inputs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the products below their minimum of each machine that was ever loaded, as reasons for a visit."""
    today = date.fromisoformat(inputs["today"])
    loaded = [dispenser for dispenser in inputs["dispensers"] if dispenser["ever_loaded"]]
    return {dispenser["id"]: reasons for dispenser in loaded if (reasons := _stock(dispenser, today))}


def _stock(dispenser: dict[str, Any], today: date) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = []
    for product, slots in _by_product(dispenser).items():
        stock = sum(_usable(slot, today) + _in_transit(slot) for slot in slots)
        rate = dispenser["rates"].get(product, 0.0)
        level = rule.level(rate, stock, sum(slot["capacity"] for slot in slots))
        figures = {
            "product": product,
            "stock": stock,
            "minimum": round(level.minimum, 1),
            "per_day": round(rate, 2),
            "days_of_supply": None if level.days_of_supply is None else round(level.days_of_supply, 1),
            "emergency": level.is_emergency,
        }
        if stock <= 0:
            reasons.append({"code": "empty", **figures})
        elif stock < level.minimum:
            reasons.append({"code": "low", **figures})
    return reasons


def _is_worth_a_visit(fault: dict[str, Any]) -> bool:
    tried = fault.get("tried_days_ago")
    return tried is None or tried >= RETRY_DAYS


def _dates(dispenser: dict[str, Any], today: date) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = []
    days_ago = dispenser["counted_days_ago"]
    was_left = days_ago is not None and days_ago < LEFT_THERE_DAYS
    for slot in dispenser["slots"]:
        for run in slot["queue"]:
            days = (_expiry(run) - today).days
            if days <= 0 or (days <= NEAR_EXPIRY_DAYS and not was_left):
                code = "expired" if days <= 0 else "near_expiry"
                reasons.append({"code": code, "slot": slot["slot"], "lot": run["lot"], "days": days})
    asked = any(fault["code"] == "COUNT_DUE" for fault in dispenser["faults"])
    if days_ago is None or days_ago >= COUNT_EVERY_DAYS or asked:
        reasons.append({"code": "count_due", "days": days_ago})
    return reasons


def _urgency(reasons: Sequence[dict[str, Any]]) -> tuple[int, bool, float]:
    """Return what sorts the most urgent first: by reason, an emergency before the merely low, by days of supply."""
    days = [reason["days_of_supply"] for reason in reasons if reason.get("days_of_supply") is not None]
    emergency = any(reason.get("emergency") for reason in reasons)
    return min(PRIORITY[reason["code"]] for reason in reasons), not emergency, min(days, default=math.inf)


def _unexpired_first(stock: Sequence[dict[str, Any]], today: date) -> dict[str, list[dict[str, Any]]]:
    """Lots that may go out, first expired first; one that expires before it could be used stays in the depot."""
    lots: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in sorted(stock, key=lambda line: (line["product"], line["expires_on"] or "9999", line["lot"])):
        usable = _expiry(line) > today + timedelta(days=2 * NEAR_EXPIRY_DAYS)
        if line["packs"] > 0 and usable and not line["blocked"]:
            lots[line["product"]].append(dict(line))
    return lots


def _picks(
    dispenser: dict[str, Any], depot_stock: dict[str, list[dict[str, Any]]], today: date
) -> list[dict[str, Any]]:
    picks = []
    for slot in dispenser["slots"]:
        wanted = rule.top_up(slot["capacity"], _stays(slot, today), _in_transit(slot)) if slot["enabled"] else 0
        for lot in depot_stock[slot["product"]]:
            packs = min(wanted, lot["packs"])
            if packs > 0:
                lot["packs"] -= packs
                wanted -= packs
                picks.append({"slot": slot["slot"], "product": slot["product"], "lot": lot["lot"], "planned": packs})
    return picks


def _tours(
    stops: list[dict[str, Any]], places: dict[str, tuple[float, float]], depot: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Nearest next, from the depot; a tour ends with its stops or with its van."""
    tours = []
    rest = list(stops)
    while rest:
        here, packs = depot, 0
        tour: list[dict[str, Any]] = []
        while rest and len(tour) < STOPS_MAX:
            rest.sort(key=lambda stop: (_km(here, places[stop["dispenser_id"]]), stop["dispenser_id"]))
            load = sum(pick["planned"] for pick in rest[0]["picks"])
            if tour and packs + load > VAN_PACKS_MAX:
                break
            packs += load
            here = places[rest[0]["dispenser_id"]]
            tour.append(rest.pop(0))
        tours.append({"stops": tour, "packs": packs})
    return tours


def _km(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Distance of two (latitude, longitude) in km, flat: a district is small."""
    north = (one[0] - other[0]) * 111.2
    east = (one[1] - other[1]) * 111.2 * math.cos(math.radians(one[0]))
    return math.hypot(north, east)
