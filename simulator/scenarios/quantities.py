"""The small notations of a scenario: `4 d`, `day 3 04:00`, `5 per 1000 vends`. Each refusal says what was expected."""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from simulator.world import DAY_MS, LOCAL

UNIT_MS: Final = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": DAY_MS}
PER: Final = ("vends", "visits", "refills", "machine-days", "machine-months")

_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>s|min|h|d)")
_DAY: Final = re.compile(r"day (?P<day>[1-9]\d{0,3})(?: (?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d))?")
_DATED: Final = re.compile(r"(?P<date>\d{4}-\d\d-\d\d)(?:[T ](?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d))?")
_RATE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) per (?:(?P<many>[1-9]\d*) )?(?P<what>[a-z-]+)")

A_DURATION: Final = "a duration such as 30 s, 90 min, 4 h or 2.5 d"
A_MOMENT: Final = "a local moment such as day 3, day 3 04:00 or 2026-06-03 04:00"
A_RATE: Final = f"a rate such as 5 per 1000 vends or 0.3 per machine-month (per {', '.join(PER)})"


@dataclass(frozen=True, slots=True)
class Moment:
    """A local moment: of a numbered day of the run (the first is day 1), or of a date."""

    minute: int
    day: int = 0
    dated: date | None = None

    def at_ms(self, start_ms: int) -> int:
        """Return it as ms since 1970 UTC, for a run that starts then."""
        begins = datetime.fromtimestamp(start_ms / 1000, LOCAL).date()
        day = self.dated or begins + timedelta(days=self.day - 1)
        moment = datetime(day.year, day.month, day.day, tzinfo=LOCAL) + timedelta(minutes=self.minute)
        return int(moment.timestamp() * 1000)

    def __str__(self) -> str:
        day = f"day {self.day}" if self.dated is None else self.dated.isoformat()
        return f"{day} {self.minute // 60:02}:{self.minute % 60:02}"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a vend, a visit, a refill, a machine's day or month (30 days)."""

    number: float
    per: str

    @property
    def a_machine_day(self) -> float | None:
        """The same in a machine's days; None where it is not counted in time."""
        return {"machine-days": self.number, "machine-months": self.number / 30}.get(self.per)


def duration_ms(value: object) -> int:
    """Read a duration; raises ValueError."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise ValueError(A_DURATION)
    return round(float(found["number"]) * UNIT_MS[found["unit"]])


def signed_duration_ms(value: object) -> int:
    """Read a duration with or without a sign; raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{A_DURATION}, - or + before it")  # noqa: TRY004 - pydantic wants ValueError
    sign = -1 if value.startswith("-") else 1
    try:
        return sign * duration_ms(value.removeprefix("-").removeprefix("+").strip())
    except ValueError:
        raise ValueError(f"{A_DURATION}, - or + before it") from None


def moment(value: object) -> Moment:
    """Read a moment; raises ValueError."""
    if isinstance(value, str):
        for pattern in (_DAY, _DATED):
            if found := pattern.fullmatch(value):
                minute = int(found["hour"] or 0) * 60 + int(found["minute"] or 0)
                if pattern is _DAY:
                    return Moment(minute, day=int(found["day"]))
                try:
                    return Moment(minute, dated=date.fromisoformat(found["date"]))
                except ValueError:
                    break
    raise ValueError(A_MOMENT)


def rate(value: object) -> Rate:
    """Read a rate; raises ValueError."""
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    # One may say `per vend` and `per 1000 vends`.
    what = next((name for name in PER if found and found["what"] in {name, name.removesuffix("s")}), None)
    if not found or what is None:
        raise ValueError(A_RATE)
    return Rate(float(found["number"]) / int(found["many"] or 1), what)
