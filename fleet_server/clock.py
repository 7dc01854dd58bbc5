"""The server's clock is a port: the wall clock in production, a played one while history is being made.

The played clock lives in the database, so that every replica and every restart sees the same time.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

LOCAL = ZoneInfo("Asia/Shanghai")
"""The district's time zone: days, months and opening hours are local."""

Mode = Literal["system", "played", "scaled"]


class Clock(Protocol):
    """Tells the time as the fleet sees it, always in UTC."""

    def now(self) -> datetime: ...


def system_now() -> datetime:
    """Read the wall clock; the only place of the server that does."""
    return datetime.now(UTC)


class SystemClock:
    """The wall clock."""

    def now(self) -> datetime:
        return system_now()


@dataclass(frozen=True)
class ClockState:
    """How the fleet's time runs: `played` stands still at `base`; `scaled` runs on from `base` at `speed` since `wall`."""

    mode: Mode
    base: datetime
    wall: datetime
    speed: float = 1.0

    def at(self, wall: datetime) -> datetime:
        """Tell the fleet's time at a moment of the wall clock."""
        if self.mode == "system":
            return wall
        if self.mode == "played":
            return self.base
        return self.base + (wall - self.wall) * self.speed


class FixedClock:
    """A clock that stands where it is put; the port's implementation for tests and for played history."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def set(self, at: datetime) -> None:
        """Move the clock; time never runs backwards."""
        self._at = max(at, self._at)


class SettableClock:
    """A clock whose state is read from where it is kept, at most every `fresh_s` of wall time."""

    def __init__(self, load: "Loader", fresh_s: float = 1.0) -> None:
        self._load, self._fresh_s = load, fresh_s
        self._state: ClockState | None = None
        self._loaded_s = 0.0

    def state(self) -> ClockState:
        """Return the state in force."""
        if self._state is None or time.monotonic() - self._loaded_s > self._fresh_s:
            self._state, self._loaded_s = self._load(), time.monotonic()
        return self._state

    def put(self, state: ClockState) -> None:
        """Take over a state that has just been kept."""
        self._state, self._loaded_s = state, time.monotonic()

    def now(self) -> datetime:
        return self.state().at(system_now())


class Loader(Protocol):
    """Reads the clock's state from where it is kept."""

    def __call__(self) -> ClockState: ...


def days_before(at: datetime, days: float) -> datetime:
    """Return the moment `days` days before."""
    return at - timedelta(days=days)
