"""Every number of the simulated world with its unit and its basis: seen in a public source, or our assumption.

The demand model (`data/demand_model.json`) and the fault table (`data/faults.csv`) are read as they are; what they lack stands in
`OWN` below. A parameter has a dotted name, such as `site_effect.sigma` or `faults.SLOT_JAM.rate`; a scenario may override any.
"""

import csv
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Final

NOT_READ: Final = frozenset({"quota.window_days", "quota.boxes_per_window", "stock_drift.unverified_vend_per_1000"})
"""Kept for the record: the shipped agent reads no card, so no window is counted; the last is `faults.DROP_NOT_SEEN.rate` again."""
MARKS: Final = ("seen", "assumption")


class ParameterError(ValueError):
    """A parameter that does not exist, or a value that it cannot have; the text names field, value and expectation."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number, list or text of the world. `basis` says where it is from and holds a mark."""

    name: str
    value: Any
    basis: str
    words: str = ""


def _own(name: str, value: Any, words: str, basis: str = "assumption") -> Parameter:
    return Parameter(name, value, basis, words)


OWN: Final = (
    _own("market_days.every_days", 5, "a town fair is held on every so many days of the lunar month"),
    _own("quota.enforced", value=False, words="whether a reader turns away who has had theirs"),
    _own("visits.near_expiry_days", 30, "packs that expire within so many days are taken out at a visit"),
    _own("visits.finished_offline_share", 0.1, "visits whose entries are sent hours later, for want of a signal"),
    _own("patience.share", 0.5, "visitors who try once more after a refusal that may pass"),
    # Faults: how often is in faults.csv; how long, and what the words there leave open, is here.
    _own("faults.rare_per_machine_month", 0.002, "what 'rare' means: about one a year in a fleet of 42"),
    _own("network.outage_min.median", 8.0, "minutes", "assumption (faults.csv, NET_LOSS)"),
    _own("network.outage_min.sigma", 1.5, "log-normal spread: one outage in 100 lasts over four hours"),
    _own("network.outage_min.max", 5_760.0, "minutes: four days"),
    _own("network.latency_ms.median", 120.0, "round trip to the server"),
    _own("network.latency_ms.sigma", 0.6, "log-normal spread"),
    _own("network.signal_dbm.mean", -76.0, "mean over sites"),
    _own("network.signal_dbm.site_sd", 5.5, "between sites: about one in a hundred is below -93 dBm on most days"),
    _own("network.signal_dbm.day_sd", 3.0, "between days"),
    _own("power.cut_min.median", 20.0, "minutes"),
    _own("power.cut_min.sigma", 1.0, "log-normal spread"),
    _own("power.cut_min.max", 2_880.0, "minutes: two days"),
    _own("power.without_battery_share", 0.2, "machines that go dark at once"),
    _own("power.battery_h", 6.0, "hours from full to off"),
    _own("power.recharge_h", 4.0, "hours from empty to full"),
    _own("repair.by_itself_share", 0.5, "of faults of controller, reader, sensors and modem: the others last until somebody comes"),
    _own("repair.by_itself_h.median", 3.0, "hours, of those that end by themselves"),
    _own("repair.by_itself_h.sigma", 1.0, "log-normal spread"),
    _own("door.left_open_h.median", 1.0, "hours until somebody closes a door that was left or forced open"),
    _own("door.left_open_h.sigma", 0.8, "log-normal spread"),
    _own("clock.off_min.median", 45.0, "minutes by which a clock is wrong, either way"),
    _own("clock.off_min.sigma", 1.5, "log-normal spread"),
    _own("theft.packs_per_machine_month", 1 / 24, "packs that leave a machine by none of its ways"),
    _own("vends.did_not_fall_share", 0.3, "of vends whose drop was not seen: the pack is still there"),
    _own("vends.double_drop_per_1000", 0.5, "two packs fall for one"),
    _own("site_closed.per_machine_month", 0.02, "a site closed on a day on which it should be open"),
    _own("climate.year_mean_c", 13.5, "of the air on this coast"),
    _own("climate.year_amplitude_c", 13.0, "half of the span from January to August"),
    _own("climate.day_amplitude_c", 4.0, "half of the span of a day outdoors"),
    _own("climate.weather_sd_c", 2.2, "a day against its season, the same for all sites"),
    _own("climate.cabinet_gain_c", 2.0, "a cabinet outdoors against the air"),
    _own("climate.sun_gain_c", 6.0, "at most, early in the afternoon of a clear day, at a site exposed to the sun"),
    _own("climate.sun_exposed_share", 0.35, "of sites outdoors"),
    _own("climate.clear_share", 0.5, "days without clouds"),
    _own("climate.indoor_mean_c", 20.0, "heated and cooled"),
    _own("climate.humidity_pct.year_mean", 66.0, "outdoors"),
    _own("climate.humidity_pct.fog_season_gain", 20.0, "at the height of the coastal fog season, June to August"),
    _own("climate.humidity_pct.day_sd", 7.0, "a day against its season"),
    _own("climate.humidity_pct.indoor_less", 14.0, "indoors"),
)  # fmt: skip

PER: Final = {"machine-month": "machine_month", "1000 vends": "1000_vends", "visit": "visit", "refills": "refill"}
RATE: Final = re.compile(
    r"(?P<low>[\d.]+)(?:-(?P<high>[\d.]+))?(?P<percent>%)? (?:of |per )?(?P<per>machine-month|1000 vends|visits?|\d+ refills)"
)


def data_text(name: str) -> str:
    """Read one of the simulator's data files."""
    return (files("simulator") / "data" / name).read_text(encoding="utf-8")


def fault_rows() -> list[dict[str, str]]:
    """Return the rows of faults.csv."""
    return list(csv.DictReader(data_text("faults.csv").splitlines()))


def _rates() -> Iterator[Parameter]:
    """Read `demo_rate_basis` once: `faults.CODE.rate`, per what `words` says. Derived faults have no rate of their own."""
    for row in fault_rows():
        name, basis = f"faults.{row['code']}.rate", row["demo_rate_basis"]
        if basis.startswith("rare"):
            yield Parameter(name, None, f"assumption ({basis}): faults.rare_per_machine_month", "per machine_month")
            continue
        found = RATE.match(basis)
        if found is None:
            continue
        low = float(found["low"])
        value = (low + float(found["high"] or low)) / 2 * (0.01 if found["percent"] else 1)
        per = found["per"].removesuffix("s") if found["per"].startswith("visit") else found["per"]
        refills = re.fullmatch(r"(\d+) refills", per)
        if refills is not None:
            value, per = value / int(refills[1]), "refills"
        yield Parameter(name, value, basis, f"per {PER[per]}")


def _leaves(section: dict[str, Any], prefix: str = "", inherited: str = "") -> Iterator[Parameter]:
    """Walk the demand model; a value's basis is its own `..._basis`, or that of its section."""
    basis = section.get("basis", inherited)
    own = {name.removesuffix("_basis"): text for name, text in section.items() if name.endswith("_basis")}
    for name, value in section.items():
        if name in {"basis", "note", "dist", "first"} or name.endswith("_basis"):
            continue
        marked = next((text for stem, text in own.items() if name.startswith(stem)), basis)
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.", marked)
        else:
            yield Parameter(f"{prefix}{name}", value, marked)


def declared() -> dict[str, Parameter]:
    """Return every parameter with its default, by name."""
    found = [*_leaves(json.loads(data_text("demand_model.json"))), *_rates(), *OWN]
    return {parameter.name: parameter for parameter in found}


class Parameters:
    """The defaults with a scenario's overrides; raises ParameterError for a name or a value that cannot be."""

    def __init__(self, overrides: Mapping[str, Any] | None = None) -> None:
        self._all = declared()
        self.read: set[str] = set()
        """Names that have been asked for: what nobody reads is not a parameter."""
        for name, value in (overrides or {}).items():
            default = self._all.get(name)
            if default is None:
                near = difflib.get_close_matches(name, self._all, n=3)
                raise ParameterError(f"{name}: expected a known parameter{f', such as {near[0]}' if near else ''}")
            _check(default, value)
            self._all[name] = replace(default, value=value, basis=f"{default.basis}; overridden by the scenario")

    def __getitem__(self, name: str) -> Any:
        """Return a value; what is called rare has the rate of rare things."""
        self.read.add(name)
        value = self._all[name].value
        return self["faults.rare_per_machine_month"] if value is None else value

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._all.values())

    def number(self, name: str) -> float:
        """Return a number."""
        return float(self[name])

    def under(self, prefix: str) -> dict[str, Any]:
        """Return all values whose names begin with `prefix.`, by the rest of their names."""
        names = [name for name in self._all if name.startswith(f"{prefix}.")]
        return {name[len(prefix) + 1 :]: self[name] for name in names}


def _check(default: Parameter, value: Any) -> None:
    expected = _expectation(default)
    if not _fits(default, value):
        raise ParameterError(f"{default.name} = {value!r}: expected {expected}")


def _expectation(default: Parameter) -> str:
    match default.value:
        case bool():
            return "true or false"
        case None | int() | float():
            return "a share from 0 to 1" if default.name.endswith("share") else _bound(default)
        case [*texts] if _are_texts(texts):
            return f"a list of texts like {texts[0]!r}"
        case list():
            return f"a list of {len(default.value)} values like {default.value[:3]}"
        case _:
            return f"a value like {default.value!r}"


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


def _may_be_negative(default: Parameter) -> bool:
    return (default.value or 0) < 0 or default.name.endswith(("_c", "mean"))


def _bound(default: Parameter) -> str:
    return "a number" if _may_be_negative(default) else "a number, 0 or more"


def _fits(default: Parameter, value: Any) -> bool:  # noqa: PLR0911 - one arm a type
    match default.value:
        case bool():
            return isinstance(value, bool)
        case None | int() | float():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return False
            if default.name.endswith("share"):
                return 0 <= value <= 1
            return value >= 0 or _may_be_negative(default)
        case [*texts] if _are_texts(texts):
            return isinstance(value, list) and _are_texts(value)
        case list():
            kinds = [type(one) if isinstance(one, str) else (int, float) for one in default.value]
            return isinstance(value, list) and len(value) == len(kinds) and all(map(isinstance, value, kinds))
        case _:
            return isinstance(value, type(default.value))
