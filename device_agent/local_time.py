"""The date and hour that expiry, opening hours and daily duties are judged by: the wall clock as far as it is believed."""

from datetime import UTC, datetime, timedelta
from typing import Final

from device_agent.moment import Moment

AGREES_MS: Final = 86_400_000
"""Server and machine agree that a remembered time was wrong when they are no further apart: a played clock moves in steps."""


class LocalTime:
    """Follows the wall clock, and through its jumps the monotonic one.

    A clock that has jumped is not believed before the server's time bears it out; a time known from before a restart is
    not undercut unless clock and server agree that it was wrong.
    """

    def __init__(self, utc_offset_min: int, floor_ms: int) -> None:
        self._utc_offset = timedelta(minutes=utc_offset_min)
        self.floor_ms = floor_ms
        # Wall less monotonic time that is held on to after a jump.
        self._held_ms: int | None = None

    def offset_ms(self, at: Moment) -> int:
        """Return believed less monotonic time."""
        return max(at.wall_ms - at.mono_ms, self.floor_ms) if self._held_ms is None else self._held_ms

    def now_ms(self, at: Moment) -> int:
        """Return the believed wall time."""
        return at.mono_ms + self.offset_ms(at)

    def now(self, at: Moment) -> datetime:
        """Return the believed local time."""
        return datetime.fromtimestamp(self.now_ms(at) / 1000, UTC) + self._utc_offset

    def known(self, at: Moment) -> int | None:
        """Return the time to remember over a restart, or None where no clock is trusted."""
        return self.now_ms(at) if at.trusted or self._held_ms is not None else None

    def jumped(self, was_offset_ms: int, *, was_trusted: bool) -> None:
        """The wall clock jumped: hold on to what it said before, if that was to be trusted."""
        if self._held_ms is None and was_trusted:
            self._held_ms = was_offset_ms

    def told(self, server_at_ms: int, at: Moment) -> bool:
        """Hear the server's time; returns whether the belief changed."""
        if not at.trusted:
            return False
        before = self.offset_ms(at)
        apart_ms = abs(at.wall_ms - server_at_ms)
        if self._held_ms is not None and apart_ms <= abs(at.mono_ms + self._held_ms - server_at_ms):
            self._held_ms = None
        if apart_ms <= AGREES_MS and at.mono_ms + self.floor_ms > max(at.wall_ms, server_at_ms) + AGREES_MS:
            self.floor_ms = at.wall_ms - at.mono_ms
        return self.offset_ms(at) != before
