"""The corrected time of a fact: wall time is an attribute that a machine may have wrong; the order never depends on it. Pure."""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from fleet_server.devices.store import LAST_MS
from protocol.messages import FactBase

AHEAD_MAX: Final = timedelta(days=1)
"""A trusted clock may be ahead of ours by this, or behind what it said before: while history is played, ours follows in steps."""


class Last(NamedTuple):
    """The last fact of a stream that had a time: its corrected time, its boot, and its monotonic ms."""

    at: datetime | None
    boot_id: str | None
    mono_ms: int | None


def wall(fact: FactBase) -> datetime:
    """Return the machine's own wall time, or the last moment that can be written where it lies beyond."""
    return datetime.fromtimestamp(min(fact.at_ms, LAST_MS) / 1000, UTC)


def corrected(fact: FactBase, said: datetime, last: Last, received_at: datetime) -> datetime:
    """Return the best known time of a fact whose own wall time is `said`.

    A trusted wall time stands, unless it lies far ahead of the arrival or far behind the stream's last fact: then it is no
    time to trust. Otherwise the time since the stream's last fact of the same boot counts, and without one the fact is
    bounded by its neighbours: not before the last fact, not after its arrival.
    """
    is_behind = last.at is not None and said < last.at - AHEAD_MAX
    if fact.clock_trusted and not is_behind and said <= received_at + AHEAD_MAX:
        return said
    if last.at is None:
        return min(said, received_at)
    if last.boot_id == fact.boot_id and last.mono_ms is not None:
        # Bounded before it is added: a monotonic clock that says nonsense must not leave the calendar.
        since = timedelta(milliseconds=max(0, fact.mono_ms - last.mono_ms))
        return received_at if since > received_at - last.at else last.at + since
    return min(max(said, last.at), received_at)
