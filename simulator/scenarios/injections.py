"""From the words of a scenario to what the world takes: injections into machines, and overrides of its parameters."""

from collections.abc import Iterator
from typing import Any, Final

from simulator.faults import FORMS, Injection, Kind
from simulator.parameters import ParameterError, Parameters
from simulator.scenarios import quantities
from simulator.scenarios.form import Fault, Loc, Scenario
from simulator.scenarios.quantities import Rate

PER: Final = {"machine_month": "machine-months", "1000_vends": "vends", "visit": "visits", "refill": "refills"}
"""The units of the world's rates, in the words of a scenario."""


def injection(fault: Fault, start_ms: int) -> Injection:
    """Return what a fault with `kind` and `at` does to one machine; it has been checked."""
    assert fault.kind is not None  # noqa: S101 - `mistakes` has seen to it
    assert fault.at is not None  # noqa: S101
    at_ms = fault.at.at_ms(start_ms)
    value = quantities.signed_duration_ms(fault.value) if fault.kind is Kind.CLOCK_WRONG else fault.value
    return Injection(at_ms, fault.kind, None if fault.lasts is None else at_ms + fault.lasts, fault.slot, value)


def overrides(scenario: Scenario) -> dict[str, Any]:
    """Return every parameter of the world that the scenario sets, by name."""
    rates = {
        f"faults.{fault.code}.rate": _converted(fault.rate, _per(fault.code)) or 0.0
        for fault in scenario.faults
        if fault.rate is not None
    }
    restock = scenario.restock
    habits = {
        "stock_drift.miscount_per_refill_sd_boxes": restock.miscount_sd,
        "visits.finished_offline_share": restock.offline_share,
    }
    return scenario.world | rates | {name: value for name, value in habits.items() if value is not None}


def _per(code: str | None) -> str | None:
    """What the rate of a code is counted in; None for a code that has none."""
    words = next((it.words for it in Parameters() if it.name == f"faults.{code}.rate"), "")
    return PER.get(words.removeprefix("per "))


def _converted(rate: Rate, per: str | None) -> float | None:
    if rate.per == per:
        return rate.number * 1_000 if per == "vends" else rate.number
    if rate.per == "machine-days" and per == "machine-months":
        return rate.number * 365 / 12
    return None


def mistakes(scenario: Scenario) -> Iterator[tuple[Loc, str]]:
    """Yield (place, what was expected) of everything that the world would not take."""
    for name, value in scenario.world.items():
        try:
            Parameters({name: value})
        except ParameterError as error:
            yield ("world", name), str(error).partition(": ")[2]
    for place, fault in enumerate(scenario.faults):
        for key, told in _of_rate(fault) if fault.rate is not None else _of_kind(fault):
            yield ("faults", place, key), told


def _of_rate(fault: Fault) -> Iterator[tuple[str, str]]:
    for key, value in (("kind", fault.kind), ("at", fault.at), ("for", fault.lasts), ("slot", fault.slot)):
        if value is not None:
            yield key, "expected none with rate:, which goes with code: alone"
    if fault.code is None:
        yield "rate", "expected code: beside it"
    elif (per := _per(fault.code)) is None:
        yield "code", "expected a code that has a rate; this one follows from others, or needs kind: and at:"
    elif fault.rate is not None and _converted(fault.rate, per) is None:
        yield "rate", f"expected a rate per {per}"


def _of_kind(fault: Fault) -> Iterator[tuple[str, str]]:
    if fault.kind is None or fault.at is None:
        yield ("code" if fault.code else "at"), "expected kind: and at:, or code: and rate:"
        return
    if fault.code is not None:
        yield "code", "expected none with kind:"
    form = FORMS[fault.kind]
    for key, rule, value in (("for", form.until, fault.lasts), ("slot", form.slot, fault.slot)):
        if rule == "no" and value is not None:
            yield key, f"expected none with {fault.kind}"
        if rule == "yes" and value is None:
            yield "kind", f"expected {key}: beside {fault.kind}"
    yield from _of_value(fault, fault.kind)


def _of_value(fault: Fault, kind: Kind) -> Iterator[tuple[str, str]]:
    form, value = FORMS[kind], fault.value
    if value is None:
        if form.value == "yes":
            yield "kind", f"expected value: beside {kind}"
    elif form.value == "no":
        yield "value", f"expected none with {kind}"
    elif kind is Kind.CLOCK_WRONG:
        try:
            quantities.signed_duration_ms(value)
        except ValueError as error:
            yield "value", f"expected {error}"
    elif isinstance(value, str) is not (kind is Kind.VISITOR_COMES):
        yield "value", f"expected {form.unit}"
