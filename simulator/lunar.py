"""The lunar calendar of the years in which the fleet is played: town fairs and the Double Seventh follow it."""

from datetime import date, timedelta
from typing import Final

FIRST_DAY: Final = date(2023, 1, 22)
YEARS: Final = (0x05B52, 0x04B60, 0x0A6E6, 0x0A4E0, 0x0D260, 0x0EA65, 0x0D530)
"""One lunar year each, from 2023: bits 15 to 4 are its months (1: 30 days, 0: 29), the last digit its leap month, bit 16 that one's length."""


def _months() -> list[tuple[date, int, bool]]:
    """Return the first day of every month, its number, and whether it is a leap month."""
    found, begins = [], FIRST_DAY
    for year in YEARS:
        leap = year & 0xF
        for month in range(1, 13):
            found.append((begins, month, False))
            begins += timedelta(days=30 if year >> (16 - month) & 1 else 29)
            if month == leap:
                found.append((begins, month, True))
                begins += timedelta(days=30 if year >> 16 & 1 else 29)
    found.append((begins, 0, False))
    return found


_DAYS: Final[dict[date, tuple[int, int, bool]]] = {
    begins + timedelta(days=n): (month, n + 1, leap)
    for (begins, month, leap), (ends, _, _) in zip(_months()[:-1], _months()[1:], strict=True)
    for n in range((ends - begins).days)
}


def lunar(day: date) -> tuple[int, int, bool] | None:
    """Return month, day of the month, and whether the month is a leap month; None outside 2023-01-22 to 2030-02-02."""
    return _DAYS.get(day)


def is_fair_day(day: date, every_days: int, offset: int) -> bool:
    """Tell whether a town holds its fair: on every so many days of the lunar month, from its own first day."""
    found = lunar(day)
    return found is not None and every_days > 0 and (found[1] - offset) % every_days == 0


def is_double_seventh(day: date) -> bool:
    """Tell whether it is Qixi, the seventh day of the seventh month."""
    return lunar(day) == (7, 7, False)
