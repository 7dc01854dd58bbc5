"""Rates per machine and product: what was delivered in the last weeks, shrunk towards what its site type gives. Pure."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Final

WINDOW_DAYS: Final = 28
PRIOR_DAYS: Final = 10.0
"""The prior weighs as much as so many days of observation."""

# Boxes a day by site type, and the share of each product (demand model of the simulator: partly seen, partly assumption).
TYPE_RATE: Final = {
    "community": 2.0, "market": 2.4, "dormitory": 4.5, "campus": 6.0, "health": 1.6, "transport": 3.2,
}  # fmt: skip
PRODUCT_SHARE: Final = {
    "CONDOM-M": 0.72, "CONDOM-L": 0.13, "CONDOM-S": 0.05, "N9-GEL": 0.04, "N9-FILM": 0.03, "N9-SUPP": 0.03,
}  # fmt: skip


def observed(rows: Iterable[tuple[str, int, str, date, int]]) -> dict[tuple[str, str], int]:
    """Sum deliveries per slot and day to packs per machine and product."""
    packs: dict[tuple[str, str], int] = {}
    for dispenser_id, _slot, product, _day, units in rows:
        packs[dispenser_id, product] = packs.get((dispenser_id, product), 0) + units
    return packs


def rate(site_type: str, product: str, packs: int, days: float) -> float:
    """Packs a day: observed over `days`, shrunk towards the site type's prior."""
    prior = TYPE_RATE.get(site_type, 2.0) * PRODUCT_SHARE.get(product, 0.03)
    return (max(0, packs) + prior * PRIOR_DAYS) / (max(0.0, days) + PRIOR_DAYS)


def rates(
    site_types: Mapping[str, str],
    products: Mapping[str, Iterable[str]],
    packs: Mapping[tuple[str, str], int],
    days: Mapping[str, float],
) -> dict[tuple[str, str], float]:
    """Return packs a day of each machine and product; `days` is how long each machine has been observed."""
    return {
        (dispenser_id, product): rate(
            site_types[dispenser_id],
            product,
            packs.get((dispenser_id, product), 0),
            min(WINDOW_DAYS, days.get(dispenser_id, 0.0)),
        )
        for dispenser_id, names in products.items()
        for product in set(names)
    }
