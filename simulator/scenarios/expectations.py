"""`availability >= 0.99`, `lost_access.jam <= 40 h`, `audit clean`: read, checked when the file is, judged by figures."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from protocol.topics import DISPENSER_ID_PATTERN
from simulator.scenarios.metrics import METRICS, Metric, Unit, names
from simulator.scenarios.quantities import UNIT_MS
from simulator.scenarios.words import unknown

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
NEAR: Final = 1e-9
"""Figures that differ by less are equal: shares are quotients."""
AN_EXPECTATION: Final = "METRIC OPERATOR NUMBER UNIT, such as lost_access.jam <= 40 h, or audit clean"

_FORM: Final = re.compile(
    r"(?P<name>[a-z_]+(?:\.\w+)?)(?:\[(?P<dispenser>[^\]]*)\])? *(?P<operator>[=!<>]=?) *"
    r"(?P<number>-?\d+(?:\.\d+)?) *(?P<unit>\S*)"
)


@dataclass(frozen=True, slots=True)
class Expectation:
    """One clause. Times are in ms and shares between 0 and 1, whatever the unit they are written in."""

    text: str
    metric: str
    operator: str
    value: float
    unit: str
    dispenser: str | None = None

    @property
    def is_audit(self) -> bool:
        """Whether this is `audit clean`."""
        return self.metric == "audit"


@dataclass
class Figures:
    """What a run has measured: of the fleet, and of each machine. What is not there was not measured."""

    fleet: dict[str, float] = field(default_factory=dict)
    dispensers: dict[str, dict[str, float]] = field(default_factory=dict)
    audit_clean: bool | None = None
    audit_found: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Judged:
    """An expectation beside what was measured, in the expectation's unit. `held` is None for what only a server can tell."""

    expectation: Expectation
    measured: str
    held: bool | None


def read(value: object) -> Expectation:
    """Read one clause; raises ValueError that says what was expected."""
    if not isinstance(value, str):
        raise ValueError(AN_EXPECTATION)  # noqa: TRY004 - pydantic wants ValueError
    text = value.strip()
    if re.fullmatch(r"audit\s+clean", text):
        return Expectation(text, "audit", "==", 1, "")
    found = _FORM.fullmatch(text)
    if not found or found["operator"] not in OPERATORS:
        raise ValueError(AN_EXPECTATION)
    name, dispenser = found["name"], found["dispenser"]
    if name == "audit":
        raise ValueError("audit clean, without a number")
    if name not in names():
        raise ValueError(f"{name} is not a metric; {_near(name)}")
    metric = METRICS[name.split(".", maxsplit=1)[0]]
    if dispenser is not None and not (metric.by_dispenser and re.match(DISPENSER_ID_PATTERN, dispenser)):
        told = "an id such as HD-001" if metric.by_dispenser else f"{name} of the whole fleet"
        raise ValueError(f"{told} in place of [{dispenser}]")
    return Expectation(
        text, name, found["operator"], float(found["number"]) * _factor(metric, found["unit"]), found["unit"], dispenser
    )


def _near(name: str) -> str:
    """Name the members of a family whose name is right, and the families where it is not."""
    family = METRICS.get(name.split(".", maxsplit=1)[0])
    if family is None or not family.members:
        return unknown(name, ["audit", *METRICS])
    return unknown(name, [family.name, *(f"{family.name}.{member}" for member in family.members)])


def _factor(metric: Metric, unit: str) -> float:
    factors: dict[Unit, dict[str, float]] = {
        Unit.NUMBER: {"": 1},
        Unit.PACKS: {"": 1, "packs": 1, "pack": 1},
        Unit.SHARE: {"": 1, "%": 0.01},
        Unit.TIME: {name: float(ms) for name, ms in UNIT_MS.items()},
        Unit.CELSIUS: {"": 1, "°C": 1, "C": 1},
    }
    allowed = factors[metric.unit]
    if unit not in allowed:
        told = ", ".join(name or "nothing" for name in allowed)
        raise ValueError(f"{told} behind the number: {metric.name} is {metric.unit}")
    return allowed[unit]


def judge(expectation: Expectation, figures: Figures) -> Judged:
    """Compare an expectation with the figures of a run. What was not measured does not hold."""
    if expectation.is_audit:
        clean = figures.audit_clean
        found = "not audited" if clean is None else "clean" if clean else _told(figures.audit_found)
        return Judged(expectation, found, clean)
    of = figures.fleet if expectation.dispenser is None else figures.dispensers.get(expectation.dispenser, {})
    value = of.get(expectation.metric)
    if value is None:
        needs_server = figures.audit_clean is None and METRICS[expectation.metric.split(".", maxsplit=1)[0]].of_ledger
        return Judged(expectation, "not measured", held=None if needs_server else False)
    difference = value - expectation.value
    held = OPERATORS[expectation.operator](0.0 if abs(difference) < NEAR else difference, 0.0)
    return Judged(expectation, _shown(value, expectation), held)


def _told(found: list[str]) -> str:
    return f"{len(found)} findings: {found[0]}" if found else "not clean"


def _shown(value: float, expectation: Expectation) -> str:
    metric = METRICS[expectation.metric.split(".", maxsplit=1)[0]]
    unit = expectation.unit or ("" if metric.unit in {Unit.NUMBER, Unit.SHARE} else metric.unit)
    number = value / _factor(metric, expectation.unit)
    # Never rounded to where the expectation would seem to hold, or seem not to.
    digits = next((n for n in range(6) if abs(round(number, n) - number) < NEAR), 6)
    return f"{number:.{digits}f} {unit}".strip()
