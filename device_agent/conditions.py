"""When a fault begins and ends: a condition that has lasted, or a run of bad readings. Pure, with hysteresis, on monotonic time.

Whether the fault is open is the machine's durable memory, so it is an argument: a restart raises nothing twice and forgets no end.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

HOUR_MS: Final = 3_600_000
DAY_HOURS: Final = 24
HOURS_MIN: Final = 18
"""A mean of 24 hours needs readings in so many of them."""


@dataclass(slots=True)
class Lasting:
    """A fault that begins when its condition has held for a while, and ends when the opposite has."""

    code: str
    raise_after_ms: int = 0
    clear_after_ms: int = 0
    since_ms: int | None = None
    """When the change that is waited for began."""

    def see(self, bad: bool | None, mono_ms: int, *, is_open: bool) -> bool | None:
        """Take one observation, None being neither; returns True when the fault begins, False when it ends."""
        if bad is None or bad == is_open:
            self.since_ms = None
            return None
        if self.since_ms is None:
            self.since_ms = mono_ms
        if mono_ms - self.since_ms < (self.raise_after_ms if bad else self.clear_after_ms):
            return None
        self.since_ms = None
        return bad

    def due_ms(self, *, is_open: bool) -> int | None:
        """When the same observation once more would begin or end the fault."""
        if self.since_ms is None:
            return None
        return self.since_ms + (self.clear_after_ms if is_open else self.raise_after_ms)


@dataclass(slots=True)
class Streak:
    """A fault that begins after so many failures running, and ends after so many good answers running."""

    code: str
    bad_max: int
    good_min: int
    _bad: int = 0
    _good: int = 0

    def see(self, bad: bool, *, is_open: bool) -> bool | None:
        """Take one answer; returns True when the fault begins, False when it ends."""
        self._bad, self._good = (self._bad + 1, 0) if bad else (0, self._good + 1)
        if bad and not is_open and self._bad >= self.bad_max:
            return True
        if not bad and is_open and self._good >= self.good_min:
            return False
        return None


class DayMean:
    """The mean of the last 24 full hours, each hour weighing the same however often it was read."""

    def __init__(self) -> None:
        self._hours: deque[int] = deque()
        self._means: deque[float] = deque()
        self._hour, self._sum, self._readings = -1, 0.0, 0
        self._mean: float | None = None

    def see(self, value: float, mono_ms: int) -> float | None:
        """Take a reading; returns the mean, None while too few hours have readings."""
        hour = mono_ms // HOUR_MS
        if hour != self._hour:
            if self._readings:
                self._hours.append(self._hour)
                self._means.append(self._sum / self._readings)
            while self._hours and self._hours[0] < hour - DAY_HOURS:
                self._hours.popleft()
                self._means.popleft()
            self._mean = sum(self._means) / len(self._means) if len(self._means) >= HOURS_MIN else None
            self._hour, self._sum, self._readings = hour, 0.0, 0
        self._sum += value
        self._readings += 1
        return self._mean
