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
COUNT_EVERY_DAYS: Final = 30
PRIORITY: Final = {"fault": 0, "empty": 1, "expired": 1, "first_load": 2, "low": 3, "near_expiry": 4, "count_due": 5}
REPAIRABLE: Final = frozenset(
    {"SLOT_JAM", "SLOT_MOTOR_ABSENT", "DROP_SENSOR_BLOCKED", "BOOK_BELOW_ZERO", "COUNT_DUE", "STREAM_REPLACED"}
)


def make(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the plan: tours of stops, each with its reasons and its picks, and the machines left for another day."""
    today = date.fromisoformat(inputs["today"])
    needed = []
    for dispenser in inputs["dispensers"]:
        reasons = _reasons(dispenser, today)
        if reasons and not dispenser["promised"]:
            needed.append((min(PRIORITY[reason["code"]] for reason in reasons), _urgency(reasons), dispenser, reasons))
    needed.sort(key=lambda item: (item[0], item[1], item[2]["id"]))
    taken, left = needed[: STOPS_MAX * TOURS_MAX], needed[STOPS_MAX * TOURS_MAX :]
    depot_stock = _unexpired_first(inputs["depot_stock"], today)
    stops = []
    for _, _, dispenser, reasons in taken:
        picks = _picks(dispenser, depot_stock, today)
        stops.append({"dispenser_id": dispenser["id"], "reasons": reasons, "picks": picks})
    places = {dispenser["id"]: (dispenser["latitude"], dispenser["longitude"]) for dispenser in inputs["dispensers"]}
    tours = _tours(stops, places, tuple(inputs["depot"]))
    return {"tours": tours, "left_for_later": [item[2]["id"] for item in left]}


def _by_product(dispenser: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for slot in dispenser["slots"]:
        if slot["enabled"]:
            groups[slot["product"]].append(slot)
    return groups


def _usable(slot: dict[str, Any], today: date) -> int:
    """Packs that may still be dispensed; what is owed counts against them."""
    good = sum(run["packs"] for run in slot["queue"] if _expiry(run) > today)
    return int(good - slot["owed"])


def _expiry(run: dict[str, Any]) -> date:
    return date.fromisoformat(run["expires_on"]) if run["expires_on"] else date.max


def _reasons(dispenser: dict[str, Any], today: date) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = [
        {"code": "fault", "fault": fault["code"], "slot": fault["slot"]}
        for fault in dispenser["faults"]
        if fault["code"] in REPAIRABLE
    ]
    if not dispenser["ever_loaded"]:
        return [*reasons, {"code": "first_load"}]
    for product, slots in _by_product(dispenser).items():
        stock = sum(_usable(slot, today) for slot in slots)
        rate = dispenser["rates"].get(product, 0.0)
        level = rule.level(rate, stock, sum(slot["capacity"] for slot in slots))
        figures = {
            "product": product,
            "stock": stock,
            "minimum": round(level.minimum, 1),
            "per_day": round(rate, 2),
            "days_of_supply": None if level.days_of_supply is None else round(level.days_of_supply, 1),
        }
        if stock <= 0:
            reasons.append({"code": "empty", **figures})
        elif stock < level.minimum:
            reasons.append({"code": "low", **figures})
    return reasons + _dates(dispenser, today)


def _dates(dispenser: dict[str, Any], today: date) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = []
    for slot in dispenser["slots"]:
        for run in slot["queue"]:
            days = (_expiry(run) - today).days
            if days <= NEAR_EXPIRY_DAYS:
                code = "expired" if days <= 0 else "near_expiry"
                reasons.append({"code": code, "slot": slot["slot"], "lot": run["lot"], "days": days})
    if dispenser["counted_days_ago"] is None or dispenser["counted_days_ago"] >= COUNT_EVERY_DAYS:
        reasons.append({"code": "count_due", "days": dispenser["counted_days_ago"]})
    return reasons


def _urgency(reasons: Sequence[dict[str, Any]]) -> float:
    days = [reason["days_of_supply"] for reason in reasons if reason.get("days_of_supply") is not None]
    return min(days, default=math.inf)


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
        wanted = rule.top_up(slot["capacity"], _usable(slot, today)) if slot["enabled"] else 0
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
