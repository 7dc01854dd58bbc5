"""What happens to a machine at a moment: a closed list of kinds, drawn by the world at its rates or planted by a scenario."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from simulator.parameters import Parameters
from simulator.streams import Streams

MONTH_MS: Final = 365 * 86_400_000 // 12
HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000


class Kind(StrEnum):
    """What can happen. Where `until` is left out, it lasts until somebody comes and repairs it."""

    VISITOR_COMES = "visitor_comes"
    NETWORK_FAILS = "network_fails"
    ACKS_LOST = "acks_lost"
    SERVER_SILENT = "server_silent"
    NETWORK_BAD = "network_bad"
    SIGNAL_WEAK = "signal_weak"
    SIM_DENIED = "sim_denied"
    MAINS_FAILS = "mains_fails"
    BATTERY_DRAINED = "battery_drained"
    MOTOR_JAMS = "motor_jams"
    MOTOR_MISSING = "motor_missing"
    HELIX_UNSEATED = "helix_unseated"
    DROP_UNSEEN = "drop_unseen"
    DROP_FAILS = "drop_fails"
    DROP_DOUBLE = "drop_double"
    DROP_SENSOR_BLOCKED = "drop_sensor_blocked"
    CONTROLLER_SILENT = "controller_silent"
    DOOR_LEFT_OPEN = "door_left_open"
    DOOR_FORCED = "door_forced"
    DOOR_SWITCH_STUCK = "door_switch_stuck"
    LOCK_STUCK = "lock_stuck"
    READER_FAILS = "reader_fails"
    TEMPERATURE_SENSOR_FAILS = "temperature_sensor_fails"
    HEAT = "heat"
    HUMIDITY = "humidity"
    CLOCK_WRONG = "clock_wrong"
    STORAGE_NEAR_FULL = "storage_near_full"
    TAMPERED = "tampered"
    PACKS_STOLEN = "packs_stolen"
    MACHINE_STOLEN = "machine_stolen"
    SITE_CLOSED = "site_closed"
    AGENT_RESTARTS = "agent_restarts"
    CARD_REPLACED = "card_replaced"
    CARD_KEPT = "card_kept"
    CARD_RESTORED = "card_restored"


class Form(NamedTuple):
    """What an injection of a kind may or must say: `until`, `slot` and `value` are "yes", "may" or "no"."""

    until: str = "may"
    slot: str = "no"
    value: str = "no"
    unit: str = ""
    """What `value` means."""
    codes: tuple[str, ...] = ()
    """The faults of faults.csv that it leads to."""


FORMS: Final[dict[Kind, Form]] = {
    Kind.VISITOR_COMES: Form(until="no", slot="may", value="may", unit="the code of a product"),
    Kind.NETWORK_FAILS: Form(until="yes", codes=("NET_LOSS", "COMM_RELIABILITY_LOW")),
    Kind.ACKS_LOST: Form(until="yes"),
    Kind.SERVER_SILENT: Form(until="yes"),
    Kind.NETWORK_BAD: Form(until="yes", value="yes", unit="percent of batches lost, unanswered, doubled or late"),
    Kind.SIGNAL_WEAK: Form(value="may", unit="dBm", codes=("NET_WEAK",)),
    Kind.SIM_DENIED: Form(codes=("SIM_FAULT",)),
    Kind.MAINS_FAILS: Form(until="yes", codes=("POWER_LOSS", "BATTERY_LOW")),
    Kind.BATTERY_DRAINED: Form(value="may", unit="mV", codes=("BATTERY_LOW",)),
    Kind.MOTOR_JAMS: Form(until="no", slot="may", codes=("SLOT_JAM",)),
    Kind.MOTOR_MISSING: Form(slot="may", codes=("SLOT_MOTOR_ABSENT",)),
    Kind.HELIX_UNSEATED: Form(until="no", slot="may", codes=("SLOT_HELIX",)),
    Kind.DROP_UNSEEN: Form(until="no", slot="may", codes=("DROP_NOT_SEEN",)),
    Kind.DROP_FAILS: Form(until="no", slot="may", codes=("DROP_NOT_SEEN",)),
    Kind.DROP_DOUBLE: Form(until="no", slot="may"),
    Kind.DROP_SENSOR_BLOCKED: Form(codes=("DROP_SENSOR_BLOCKED",)),
    Kind.CONTROLLER_SILENT: Form(codes=("VMC_OFFLINE",)),
    Kind.DOOR_LEFT_OPEN: Form(codes=("DOOR_LEFT_OPEN",)),
    Kind.DOOR_FORCED: Form(until="yes", codes=("DOOR_OPEN_UNAUTH",)),
    Kind.DOOR_SWITCH_STUCK: Form(codes=("DOOR_SWITCH_FAULT",)),
    Kind.LOCK_STUCK: Form(codes=("LOCK_FAULT",)),
    Kind.READER_FAILS: Form(codes=("READER_FAULT",)),
    Kind.TEMPERATURE_SENSOR_FAILS: Form(codes=("TEMP_SENSOR_FAULT",)),
    Kind.HEAT: Form(value="may", unit="degrees C", codes=("OVER_TEMP_WARN", "OVER_TEMP_ALARM")),
    Kind.HUMIDITY: Form(value="may", unit="percent", codes=("HIGH_HUMIDITY",)),
    Kind.CLOCK_WRONG: Form(value="yes", unit="ms the clock is ahead; negative: behind", codes=("CLOCK_DRIFT",)),
    Kind.STORAGE_NEAR_FULL: Form(value="may", unit="percent", codes=("STORAGE_FULL",)),
    Kind.TAMPERED: Form(codes=("VANDALISM",)),
    Kind.PACKS_STOLEN: Form(until="no", slot="may", value="may", unit="packs"),
    Kind.MACHINE_STOLEN: Form(until="no", codes=("THEFT",)),
    Kind.SITE_CLOSED: Form(until="yes", codes=("ACCESS_BLOCKED",)),
    Kind.AGENT_RESTARTS: Form(until="no"),
    Kind.CARD_REPLACED: Form(until="no"),
    Kind.CARD_KEPT: Form(until="no"),
    Kind.CARD_RESTORED: Form(until="no"),
}


class InjectionError(ValueError):
    """An injection that its kind does not allow; the text names field, value and expectation."""


@dataclass(frozen=True, slots=True)
class Injection:
    """One thing that happens to one machine. Moments in ms since 1970 UTC; `value` as `FORMS[kind].unit` says."""

    at_ms: int
    kind: Kind
    until_ms: int | None = None
    slot: int | None = None
    value: float | str | None = None

    def __post_init__(self) -> None:
        form = FORMS[self.kind]
        for name, rule, value in (
            ("until_ms", form.until, self.until_ms),
            ("slot", form.slot, self.slot),
            ("value", form.value, self.value),
        ):
            if rule == "no" and value is not None:
                raise InjectionError(f"{name} = {value!r} with {self.kind}: expected none")
            if rule == "yes" and value is None:
                raise InjectionError(f"{name} with {self.kind}: expected {form.unit or 'one'}")
        if self.until_ms is not None and self.until_ms <= self.at_ms:
            raise InjectionError(f"until_ms = {self.until_ms}: expected later than {self.at_ms}")
        is_text = isinstance(self.value, str)
        if self.value is not None and is_text is not (self.kind is Kind.VISITOR_COMES):
            raise InjectionError(f"value = {self.value!r} with {self.kind}: expected {form.unit}")


class Chance(NamedTuple):
    """How often the world lets something happen by itself, and for how long: `minutes` and `hours` are log-normal parameters."""

    kind: Kind
    rate: str
    lasts: str
    """The parameters of how long, `repair` (some by itself, some until a visit), `day`, or nothing."""


CHANCES: Final = (
    Chance(Kind.NETWORK_FAILS, "faults.NET_LOSS.rate", "network.outage_min"),
    Chance(Kind.MAINS_FAILS, "faults.POWER_LOSS.rate", "power.cut_min"),
    Chance(Kind.SIM_DENIED, "faults.SIM_FAULT.rate", "repair"),
    Chance(Kind.MOTOR_MISSING, "faults.SLOT_MOTOR_ABSENT.rate", ""),
    Chance(Kind.DROP_SENSOR_BLOCKED, "faults.DROP_SENSOR_BLOCKED.rate", "repair"),
    Chance(Kind.CONTROLLER_SILENT, "faults.VMC_OFFLINE.rate", "repair"),
    Chance(Kind.DOOR_FORCED, "faults.DOOR_OPEN_UNAUTH.rate", "door.left_open_h"),
    Chance(Kind.DOOR_SWITCH_STUCK, "faults.DOOR_SWITCH_FAULT.rate", ""),
    Chance(Kind.LOCK_STUCK, "faults.LOCK_FAULT.rate", ""),
    Chance(Kind.READER_FAILS, "faults.READER_FAULT.rate", "repair"),
    Chance(Kind.TEMPERATURE_SENSOR_FAILS, "faults.TEMP_SENSOR_FAULT.rate", "repair"),
    Chance(Kind.CLOCK_WRONG, "faults.CLOCK_DRIFT.rate", "repair"),
    Chance(Kind.TAMPERED, "faults.VANDALISM.rate", ""),
    Chance(Kind.MACHINE_STOLEN, "faults.THEFT.rate", ""),
    Chance(Kind.PACKS_STOLEN, "theft.packs_per_machine_month", ""),
    Chance(Kind.SITE_CLOSED, "site_closed.per_machine_month", "day"),
)


class Misfortune:
    """What goes wrong by itself, at the rates of faults.csv. Drawn a year at a time: a day costs a look into a list."""

    def __init__(self, parameters: Parameters, streams: Streams) -> None:
        self._streams = streams
        self._rates = {chance.kind: parameters.number(chance.rate) for chance in CHANCES}
        self._lasts = {name: parameters.under(name) for name in {chance.lasts for chance in CHANCES} - {"", "day"}}
        self._off = parameters.under("clock.off_min")
        self._year: Callable[[str, int], list[Injection]] = lru_cache(maxsize=16_384)(self._draw_year)

    def of_day(self, dispenser_id: str, day: date, begins_ms: int, ends_ms: int) -> list[Injection]:
        """Return what begins on a local day, in order."""
        of_year = self._year(dispenser_id, day.year)
        first = bisect_left(of_year, begins_ms, key=lambda injection: injection.at_ms)
        last = bisect_left(of_year, ends_ms, key=lambda injection: injection.at_ms)
        return of_year[first:last]

    def _draw_year(self, dispenser_id: str, year: int) -> list[Injection]:
        # A year begins and ends at local midnights: 8 hours before those of UTC.
        begins_ms, ends_ms = (
            int(datetime(y, 1, 1, tzinfo=UTC).timestamp() * 1000) - 8 * HOUR_MS for y in (year, year + 1)
        )
        found = []
        for chance in CHANCES:
            rate = self._rates[chance.kind]
            draw = self._streams.stream("happens", chance.kind, dispenser_id, year)
            at_ms = begins_ms
            while rate > 0:
                at_ms += max(1, int(draw.expovariate(rate) * MONTH_MS))
                if at_ms >= ends_ms:
                    break
                found.append(self._happening(chance, at_ms, draw.random(), draw.gauss(0, 1), draw.random()))
        return sorted(found, key=lambda injection: injection.at_ms)

    def _happening(self, chance: Chance, at_ms: int, luck: float, spread: float, side: float) -> Injection:
        value: float | None = None
        if chance.kind is Kind.CLOCK_WRONG:
            off_min = self._off["median"] * _log_normal(self._off["sigma"], 2 * side - 1)
            value = float(int(off_min * MINUTE_MS) * (1 if side > 0.5 else -1))  # noqa: PLR2004 - either way
        return Injection(at_ms, chance.kind, self._until(chance.lasts, at_ms, luck, spread), None, value)

    def _until(self, lasts: str, at_ms: int, luck: float, spread: float) -> int | None:
        if not lasts:
            return None
        if lasts == "day":
            return at_ms - (at_ms + 8 * HOUR_MS) % (24 * HOUR_MS) + 24 * HOUR_MS
        of = self._lasts[lasts]
        if lasts == "repair":
            if luck >= of["by_itself_share"]:
                return None
            return at_ms + max(
                1, int(of["by_itself_h.median"] * _log_normal(of["by_itself_h.sigma"], spread) * HOUR_MS)
            )
        units = of["median"] * _log_normal(of["sigma"], spread)
        unit_ms = HOUR_MS if lasts.endswith("_h") else MINUTE_MS
        return at_ms + max(1, int(min(units, of.get("max", units)) * unit_ms))


def _log_normal(sigma: float, spread: float) -> float:
    return float(2.718281828459045 ** (sigma * spread))
