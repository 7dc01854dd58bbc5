"""Facts, reasons and faults in words, in the reader's language."""

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from fleet_server.clock import LOCAL
from fleet_server.ledger.fold import UNKNOWN
from fleet_server.web.models import QueuedLot

Say = Callable[[str], str]


def N_(text: str) -> str:  # noqa: N802 - the usual name for "translate later"
    """Mark a text for translation where it is used, not here."""
    return text


OUTCOMES = {
    "delivered": N_("vend verified"),
    "unverified": N_("vend unverified"),
    "jam": N_("jam"),
    "motor_fault": N_("motor fault"),
    "in_doubt": N_("vend in doubt"),
}
REFUSALS = {
    "empty": N_("sold out"),
    "expired": N_("expired"),
    "blocked_lot": N_("lot in quarantine"),
    "disabled": N_("out of service"),
    "door_open": N_("door open"),
    "limit": N_("pick-up limit"),
    "closed": N_("site closed"),
    "fault": N_("fault"),
    "busy": N_("busy"),
    "unknown_slot": N_("no such slot"),
}
FAULTS = {
    "SLOT_JAM": N_("coil jam"),
    "SLOT_HELIX": N_("coil not seated"),
    "SLOT_MOTOR_ABSENT": N_("motor missing"),
    "DROP_NOT_SEEN": N_("vend unverified"),
    "DROP_SENSOR_BLOCKED": N_("drop sensor blocked"),
    "SLOT_EMPTY": N_("slot sold out"),
    "LOW_STOCK": N_("below minimum"),
    "DOOR_OPEN_UNAUTH": N_("unauthorised door opening"),
    "DOOR_LEFT_OPEN": N_("door left open"),
    "DOOR_SWITCH_FAULT": N_("door switch stuck"),
    "LOCK_FAULT": N_("lock fault"),
    "READER_FAULT": N_("card or code reader fault"),
    "VMC_OFFLINE": N_("controller not answering"),
    "POWER_LOSS": N_("mains lost"),
    "BATTERY_LOW": N_("backup battery low"),
    "NET_LOSS": N_("offline"),
    "NET_WEAK": N_("weak signal"),
    "COMM_RELIABILITY_LOW": N_("too few reports arrive"),
    "SIM_FAULT": N_("SIM or registration denied"),
    "OVER_TEMP_WARN": N_("cabinet above label limit"),
    "OVER_TEMP_ALARM": N_("cabinet heat alarm"),
    "TEMP_SENSOR_FAULT": N_("temperature sensor fault"),
    "HIGH_HUMIDITY": N_("high humidity"),
    "EXPIRED_IN_SLOT": N_("expired lot in slot"),
    "CLOCK_DRIFT": N_("clock wrong"),
    "STORAGE_FULL": N_("local storage full"),
    "STORAGE_DAMAGED": N_("memory card damaged"),
    "VANDALISM": N_("vandalism"),
    "THEFT": N_("theft or missing machine"),
    "ACCESS_BLOCKED": N_("site closed or obstructed"),
    "BOOK_BELOW_ZERO": N_("book below zero"),
    "COUNT_DUE": N_("stock count due"),
    "LOT_CLAIM_DIFFERS": N_("machine and book name different lots"),
    "STOCK_CLAIM_DIFFERS": N_("machine and book differ"),
    "STREAM_REPLACED": N_("new memory card"),
    "STREAM_FORKED": N_("restored memory card"),
    "STREAM_GAP": N_("reports lost for good"),
    "FACT_QUARANTINED": N_("unreadable report"),
}
LOOK = N_("Have somebody look at it today. The plan brings a visit, too.")
REPAIR = N_("The plan brings a visit: repair it there.")
COUNT = N_("Count the slots at the next visit: that puts the book right.")
TODO = {
    "THEFT": LOOK,
    "VANDALISM": LOOK,
    "DOOR_OPEN_UNAUTH": LOOK,
    "DOOR_LEFT_OPEN": LOOK,
    "OVER_TEMP_ALARM": N_(
        "Decide whether the lots in it may stay: heat spoils them, and nothing is discarded by itself."
    ),
    "OVER_TEMP_WARN": N_("Look for shade and air. If it lasts, decide whether the lots in it may stay."),
    "HIGH_HUMIDITY": N_("Look for shade and air. If it lasts, decide whether the lots in it may stay."),
    "EXPIRED_IN_SLOT": N_("The machine gives none of it. Have it taken out at the next visit."),
    "POWER_LOSS": N_("Ask the site about its mains: the battery lasts for some hours."),
    "BATTERY_LOW": N_("Ask the site about its mains: the battery lasts for some hours."),
    "NET_LOSS": N_("Nothing is lost meanwhile. If it lasts for a day, ask the site, and have the modem restarted."),
    "VMC_OFFLINE": REPAIR,
    "SLOT_JAM": REPAIR,
    "SLOT_HELIX": REPAIR,
    "SLOT_MOTOR_ABSENT": REPAIR,
    "DROP_SENSOR_BLOCKED": REPAIR,
    "LOCK_FAULT": REPAIR,
    "READER_FAULT": REPAIR,
    "DOOR_SWITCH_FAULT": REPAIR,
    "SIM_FAULT": REPAIR,
    "TEMP_SENSOR_FAULT": REPAIR,
    "STORAGE_DAMAGED": N_("Change the memory card at the next visit, and count the slots."),
    "STREAM_FORKED": N_("Use a new memory card, and count the slots at the next visit."),
    "STREAM_REPLACED": COUNT,
    "STREAM_GAP": COUNT,
    "BOOK_BELOW_ZERO": COUNT,
    "DROP_NOT_SEEN": COUNT,
    "LOT_CLAIM_DIFFERS": COUNT,
    "STOCK_CLAIM_DIFFERS": COUNT,
    "COUNT_DUE": COUNT,
    "FACT_QUARANTINED": N_("Update the server: until then the report is kept as it came."),
    "ACCESS_BLOCKED": N_("Arrange with the site when somebody can get in."),
    "STORAGE_FULL": N_("It ends when the machine has a link again. If it has one, change its memory card."),
    "NET_WEAK": N_("Have the aerial looked at, at the next visit."),
    "COMM_RELIABILITY_LOW": N_("Have the aerial looked at, at the next visit."),
    "CLOCK_DRIFT": N_("It ends when the machine gets the time again. If it lasts, restart it at the next visit."),
    "SLOT_EMPTY": N_("The plan refills it once the machine runs low of that product."),
    "LOW_STOCK": N_("The next plan refills it."),
}
"""What a fault asks of people, the most urgent first."""
OF_A_SLOT = frozenset({"SLOT_JAM", "SLOT_HELIX", "SLOT_MOTOR_ABSENT"})
"""What ends when somebody has freed the slot and told the machine."""
ORDERS = {
    "done": N_("done"),
    "failed": N_("failed"),
    "expired": N_("too late"),
    "refused": N_("refused"),
}
JOBS = {
    "watch_expiry": N_("look for expired lots"),
    "watch_counts": N_("ask for stock counts"),
    "forget": N_("drop old readings"),
    "plan": N_("make the day's plan"),
    "release": N_("release the plan"),
    "watch": N_("look who is away"),
}
CHANNELS = {"orders": N_("orders"), "desired": N_("settings"), "books": N_("stock books")}
STATES = {
    "proposed": N_("proposed"),
    "released": N_("released"),
    "superseded": N_("superseded"),
    "picked": N_("picked"),
    "closed": N_("closed"),
    "cancelled": N_("cancelled"),
    "planned": N_("planned"),
    "arrived": N_("arrived"),
    "skipped": N_("left out"),
}
TYPES = {
    "community": N_("community"),
    "market": N_("market"),
    "dormitory": N_("dormitory"),
    "campus": N_("campus"),
    "health": N_("health station"),
    "transport": N_("transport"),
}


def fact_words(fact: dict[str, Any] | None, kind: str | None, _: Say) -> str:  # noqa: C901, PLR0911, PLR0912 - one arm a kind
    """Say what a fact reports."""
    if fact is None or kind is None:
        return _("unreadable report, kept as it came")
    slot = fact.get("slot")
    match kind:
        case "vend" if fact["outcome"] == "refused":
            reason = REFUSALS[fact["reason"]]
            return _("slot {slot}: not dispensed, {reason}").format(slot=slot, reason=_(reason))
        case "vend":
            outcome = OUTCOMES[fact["outcome"]]
            words = _("slot {slot}: {outcome}").format(slot=slot, outcome=_(outcome))
            return words + (f" ({fact['lot']})" if fact.get("lot") else "")
        case "door_opened":
            return _("door opened, session {session}").format(session=fact["session"])
        case "door_closed":
            return _("door closed after {minutes} min").format(minutes=round(fact["open_ms"] / 60_000, 1))
        case "count":
            return _("slot {slot}: counted {packs}").format(slot=slot, packs=fact["counted"])
        case "refill":
            return _("slot {slot}: refilled at the machine").format(slot=slot)
        case "fault_raised":
            return _("fault: {fault}").format(fault=fault_words(fact["code"], _))
        case "fault_cleared":
            return _("fault ended: {fault}").format(fault=fault_words(fact["code"], _))
        case "stock_level":
            return _("daily stock report")
        case "order_result":
            became = ORDERS[fact["outcome"]]
            return _("order: {outcome}").format(outcome=_(became))
        case "config_applied":
            return _("settings {version} applied").format(version=fact["version"])
        case "clock_changed":
            return _("clock set")
        case _:
            return _("agent started, version {version}").format(version=fact.get("agent_version", "?"))


def fault_words(code: str, _: Say) -> str:
    """Name a fault; one without words keeps its code."""
    return _(FAULTS[code]) if code in FAULTS else code


def todo_words(code: str, _: Say) -> str:
    """Say what a fault asks of people; nothing of one that is not known."""
    return _(TODO[code]) if code in TODO else ""


def urgency(code: str) -> int:
    """Return the place of a fault among all, the most urgent first; one that is not known comes last."""
    return list(TODO).index(code) if code in TODO else len(TODO)


def lot_words(lot: str, _: Say) -> str:
    """Name a lot; packs of which only a count tells have none."""
    return _("lot unknown") if lot == UNKNOWN else lot


def merged(queue: Sequence[QueuedLot]) -> list[QueuedLot]:
    """Return a queue with its neighbours of one lot as one entry: they came at different visits."""
    runs: list[QueuedLot] = []
    for run in queue:
        if runs and (runs[-1].product, runs[-1].lot) == (run.product, run.lot):
            runs[-1] = runs[-1].model_copy(update={"packs": runs[-1].packs + run.packs})
        else:
            runs.append(run)
    return runs


def reason_words(reason: dict[str, Any], _: Say, product: Say) -> str:  # noqa: PLR0911 - one arm a reason
    """Say why a stop is in the plan; `product` names a product."""
    if "product" in reason:
        reason = reason | {"product": product(reason["product"])}
    match reason["code"]:
        case "empty":
            return _("{product} out of stock").format(**reason)
        case "low":
            return _("{product} low: {stock} left, minimum {minimum}, {per_day} a day").format(
                product=reason["product"],
                stock=reason["stock"],
                minimum=math.ceil(reason["minimum"]),
                per_day=round(reason["per_day"], 1),
            )
        case "first_load":
            return _("first load")
        case "fault":
            words = _("fault: {fault}").format(fault=fault_words(reason["fault"], _))
            return words + (" · " + _("slot {slot}").format(slot=reason["slot"]) if reason.get("slot") else "")
        case "near_expiry":
            return _("near expiry: lot {lot}, {days} days").format(**reason)
        case "expired":
            return _("expired: lot {lot}").format(**reason)
        case _:
            return _("monthly stock count")


def age_words(seconds: float | None, _: Say) -> str:
    """Say how old data is."""
    if seconds is None:
        return _("never")
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return _("just now")
    if seconds < 7_200:  # noqa: PLR2004 - two hours
        return _("{n} min ago").format(n=round(seconds / 60))
    if seconds < 172_800:  # noqa: PLR2004 - two days
        return _("{n} h ago").format(n=round(seconds / 3_600))
    return _("{n} days ago").format(n=round(seconds / 86_400))


def local_time(at: datetime | None) -> str:
    """Write a moment in local time."""
    return "" if at is None else f"{at.astimezone(LOCAL):%Y-%m-%d %H:%M}"
