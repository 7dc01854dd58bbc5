"""The min-max rule, per product of one machine. Pure.

Slots of one product back each other up (a visitor gets a pack from whichever has one), so they are one stock to refill.
"""

import math
from dataclasses import dataclass
from typing import Final

REVIEW_DAYS: Final = 7.0
LEAD_DAYS: Final = 2.0
SERVICE_Z: Final = 1.65
DISPERSION_K: Final = 3.0
EMERGENCY_DAYS: Final = 7.0


@dataclass(frozen=True, slots=True)
class Level:
    """Where the stock of a product should be, in packs."""

    minimum: float
    maximum: int
    days_of_supply: float | None
    """None where nothing is asked for."""

    @property
    def is_emergency(self) -> bool:
        """Tell whether the stock is at the emergency point."""
        return self.days_of_supply is not None and self.days_of_supply <= EMERGENCY_DAYS


def level(rate: float, stock: int, capacity: int, cover_days: float = REVIEW_DAYS + LEAD_DAYS) -> Level:
    """Return minimum (demand over the cover time and its uncertainty), maximum (capacity) and days of supply."""
    spread = math.sqrt(cover_days * rate * (1 + rate / DISPERSION_K))
    minimum = rate * cover_days + SERVICE_Z * spread
    days = None if rate <= 0 else max(0, stock) / rate
    return Level(min(minimum, float(capacity)), capacity, days)


def top_up(capacity: int, unexpired: int, in_transit: int = 0) -> int:
    """Return how many packs fill a slot: never below zero, never more than its capacity."""
    return max(0, min(capacity, capacity - max(0, unexpired) - max(0, in_transit)))
