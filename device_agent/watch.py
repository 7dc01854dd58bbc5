"""What the machine itself finds wrong: the rules of faults.csv over readings, inputs, the door and the clock. Pure.

Each method takes what was observed and returns what begins and ends because of it; `due_ms` is when to look again.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from device_agent import events as ev
from device_agent.conditions import DayMean, Lasting, Streak

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS

WARM_C, COOL_C = 30.0, 29.0
HOT_C, COOLED_C = 39.999, 38.0
"""From 40 degrees on."""
DAMP_PCT, DRY_PCT = 80.0, 75.0
WEAK_DBM, STRONG_DBM = -93, -90
"""Below CSQ 10, and from CSQ 12 (-89 dBm) on: dBm = -113 + 2 CSQ."""
BATTERY_LOW_MV, BATTERY_GOOD_MV = 11_000, 12_400
STORAGE_FULL_PCT, STORAGE_FREE_PCT = 80, 50
CLOCK_WRONG_MS: Final = 120_000
ROUND_TRIP_MS_MAX: Final = 60_000
"""A slower answer says too little about the clock."""
DENIED, REGISTERED = frozenset({0, 3}), frozenset({1, 5})
"""Answers of the modem to AT+CREG?."""
READER_BROKEN, READER_OK = frozenset({0x60, 0x66}), 0x90
LOCK_PATIENCE_MS: Final = 2 * MINUTE_MS
DOOR_PATIENCE_MS: Final = 10 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Change:
    """A fault of the whole machine begins (`raised`) or ends."""

    code: str
    raised: bool
    detail: str = ""


def _less(value: int | None) -> int | None:
    """Turn a value of which less is worse into one of which more is."""
    return None if value is None else -value


def _outside(value: float | None, bad_above: float, good_below: float) -> bool | None:
    """Tell bad from good; between the two, and without a value, neither."""
    if value is None:
        return None
    return True if value > bad_above else False if value < good_below else None


class Watch:
    """The rules of one machine. `open_faults` asks its durable memory which faults are open."""

    def __init__(self, open_faults: Callable[[], Container[str]]) -> None:
        self._open_faults = open_faults
        self._mean = DayMean()
        self._warm = Lasting("OVER_TEMP_WARN")
        self._hot = Lasting("OVER_TEMP_ALARM", HOUR_MS, HOUR_MS)
        self._damp = Lasting("HIGH_HUMIDITY", 24 * HOUR_MS)
        self._weak = Lasting("NET_WEAK", 30 * MINUTE_MS)
        self._battery = Lasting("BATTERY_LOW", 0, 10 * MINUTE_MS)
        self._storage = Lasting("STORAGE_FULL")
        self._denied = Lasting("SIM_FAULT")
        self._clock = Lasting("CLOCK_DRIFT")
        self._sensor = Streak("TEMP_SENSOR_FAULT", 5, 3)
        self._reader = Streak("READER_FAULT", 3, 1)
        self._limits: tuple[tuple[Lasting, str, str, float, float], ...] = (
            (self._warm, "24 h mean", " C", WARM_C, COOL_C),
            (self._hot, "cabinet", " C", HOT_C, COOLED_C),
            (self._damp, "cabinet", " %", DAMP_PCT, DRY_PCT),
            (self._storage, "memory", " % full", STORAGE_FULL_PCT, STORAGE_FREE_PCT),
            (self._weak, "signal", " dBm", -WEAK_DBM, -STRONG_DBM),
            (self._battery, "battery", " mV", -BATTERY_LOW_MV, -BATTERY_GOOD_MV),
        )
        # Inputs and the door speak once, when they change: these are looked at again when they are due.
        self._held: list[tuple[Lasting, str]] = [
            (Lasting("POWER_LOSS", 2_000, 2_000), ""),
            (Lasting("DROP_SENSOR_BLOCKED", 10_000, 1_000), "light curtain broken"),
            (Lasting("DOOR_LEFT_OPEN", DOOR_PATIENCE_MS), "open for 10 minutes"),
            (Lasting("LOCK_FAULT", LOCK_PATIENCE_MS), "unlocked, and the door did not move"),
        ]
        self._bad: list[bool | None] = [None, None, None, None]
        self.tampered = False
        self.due_ms: int | None = None
        """The monotonic time of the next look."""

    # ------------------------------------------------------------ readings

    def read(self, reading: ev.SensorRead, storage_pct: int, mono_ms: int) -> list[Change]:
        """Take the readings of a moment, and how full the machine's memory is. Nearly all are good, and cost little."""
        changes: list[Change] = []
        is_open = self._open_faults()
        degrees = reading.temperature_c
        if degrees is not None or reading.climate_failed:
            self._count(self._sensor, reading.climate_failed, "no reading that a sensor can mean", changes)
        mean = None if degrees is None else self._mean.see(degrees, mono_ms)
        weak, low = _less(reading.signal_dbm), _less(reading.battery_mv or None)
        values = (mean, degrees, reading.humidity_pct, storage_pct, weak, low)
        for value, (rule, what, unit, bad_above, good_below) in zip(values, self._limits, strict=True):
            if value is not None and (value > bad_above or rule.since_ms is not None or rule.code in is_open):
                bad = _outside(value, bad_above, good_below)
                self._see(rule, bad, mono_ms, f"{what} {round(abs(value), 1)}{unit}", changes)
        registration = reading.registration
        if registration is not None and (registration not in REGISTERED or self._denied.code in is_open):
            denied = True if registration in DENIED else False if registration in REGISTERED else None
            self._see(self._denied, denied, mono_ms, f"CREG {registration}", changes)
        return changes

    def _see(self, rule: Lasting, bad: bool | None, mono_ms: int, detail: str, changes: list[Change]) -> None:
        change = rule.see(bad, mono_ms, is_open=rule.code in self._open_faults())
        if change is not None:
            changes.append(Change(rule.code, change, detail))

    def _count(self, rule: Streak, bad: bool, detail: str, changes: list[Change]) -> None:
        change = rule.see(bad, is_open=rule.code in self._open_faults())
        if change is not None:
            changes.append(Change(rule.code, change, detail if change else ""))

    def reader_answered(self, status: int | None) -> list[Change]:
        """Take the answer of the card or code reader to its self test; None: no answer. Other codes say nothing."""
        changes: list[Change] = []
        if status in READER_BROKEN and "READER_FAULT" not in self._open_faults():
            changes.append(Change("READER_FAULT", raised=True, detail=f"status {status:02X}"))
        elif status is None or status == READER_OK:
            self._count(self._reader, status is None, "no answer", changes)
        return changes

    def clock_compared(self, sent_ms: int, now_ms: int, server_ms: int, mono_ms: int) -> list[Change]:
        """Compare with the server's clock by a round trip; half of it is the doubt that remains."""
        round_trip_ms = now_ms - sent_ms
        if not 0 <= round_trip_ms <= ROUND_TRIP_MS_MAX:
            return []
        doubt_ms = round_trip_ms // 2
        off_ms = abs(sent_ms + doubt_ms - server_ms)
        wrong = _outside(off_ms, CLOCK_WRONG_MS + doubt_ms, CLOCK_WRONG_MS - doubt_ms + 1)
        changes: list[Change] = []
        self._see(self._clock, wrong, mono_ms, f"off by {off_ms / 1000} s", changes)
        return changes

    # ------------------------------------------------------------ inputs, door, lock

    def inputs(self, inputs: ev.InputsRead, mono_ms: int) -> list[Change]:
        """Take the cabinet's inputs, all of them, when one has changed."""
        changes: list[Change] = []
        if inputs.tampered and "VANDALISM" not in self._open_faults():
            changes.append(Change("VANDALISM", raised=True, detail="tamper or shock input"))
        self.tampered = inputs.tampered
        self._bad[0], self._bad[1] = not inputs.mains, not inputs.curtain_clear
        return changes + self.look(mono_ms)

    def door(self, mono_ms: int, *, is_open: bool, in_visit: bool) -> list[Change]:
        """Take the door's state; one that moves has a lock that works."""
        self._bad[2], self._bad[3] = is_open and in_visit, False
        return self.look(mono_ms)

    def lock_pulsed(self, mono_ms: int) -> list[Change]:
        """Wait for the door to move."""
        self._bad[3] = True
        return self.look(mono_ms)

    @property
    def curtain_is_blocked(self) -> bool:
        """Whether the drop sensor's input says so now."""
        return bool(self._bad[1])

    def look(self, mono_ms: int) -> list[Change]:
        """Look whether what was said last has lasted long enough."""
        changes: list[Change] = []
        dues = []
        for place, (rule, detail) in enumerate(self._held):
            is_open = rule.code in self._open_faults()
            change = rule.see(self._bad[place], mono_ms, is_open=is_open)
            if change is not None:
                changes.append(Change(rule.code, change, detail if change else ""))
            elif (due_ms := rule.due_ms(is_open=is_open)) is not None:
                dues.append(due_ms)
        self.due_ms = min(dues, default=None)
        return changes
