"""How long a machine could serve, and why it could not: physical truth, in opening hours only."""

from collections import Counter
from typing import Final

from simulator.world import DAY_MS, HOUR_MS, LOCAL_MS

SERVING: Final = "serving"


class Access:
    """Hours in which a site is open, by what kept its machine from giving a condom; `serving` where nothing did."""

    def __init__(self, opening: tuple[int, int], now_ms: int) -> None:
        self._opens_ms, self._closes_ms = (hour * HOUR_MS for hour in opening)
        self._since_ms, self.cause = now_ms, SERVING
        self.ms: Counter[str] = Counter()

    def note(self, cause: str | None, now_ms: int) -> None:
        """From now on this keeps the machine from serving; None where nothing does."""
        self.ms[self.cause] += self._open_ms(self._since_ms, now_ms)
        self._since_ms, self.cause = now_ms, cause or SERVING

    def _open_ms(self, begins_ms: int, ends_ms: int) -> int:
        return self._open_before(ends_ms) - self._open_before(begins_ms)

    def _open_before(self, at_ms: int) -> int:
        """Open time from the beginning of all time to a moment."""
        days, within_ms = divmod(at_ms + LOCAL_MS, DAY_MS)
        today_ms = min(max(within_ms, self._opens_ms), self._closes_ms) - self._opens_ms
        return days * (self._closes_ms - self._opens_ms) + today_ms


def availability(machines: "list[Access]") -> float:
    """The share of open time in which a condom could be had; 1 where no time has passed."""
    total = sum(sum(access.ms.values()) for access in machines)
    return sum(access.ms[SERVING] for access in machines) / total if total else 1.0


def lost_hours(machines: "list[Access]") -> dict[str, float]:
    """Lost-access hours by cause."""
    lost: Counter[str] = Counter()
    for access in machines:
        lost.update(access.ms)
    return {cause: ms / HOUR_MS for cause, ms in sorted(lost.items()) if cause != SERVING and ms}
