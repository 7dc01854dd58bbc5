"""What a new server begins with: products, the 42 illustrative sites with their planogram, and a stocked depot."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from importlib.resources import files
from typing import Final

from fleet_server.clock import LOCAL
from fleet_server.database import Connection
from fleet_server.devices import fleet
from fleet_server.ledger import depot, lots
from fleet_server.ledger.telling import tell_desired
from protocol.messages import SlotPlan

DEPOT: Final = "HUANGDAO"

NOT_ON_MACHINES: Final = frozenset({"COC", "EC", "LUBE", "HIVST"})

SITE_NOTE: Final = "illustrative demo site; population synthetic; no claim that a real machine stands here"

# Local opening hours by site type (assumption).
OPENING: Final = {
    "community": (8, 18),
    "market": (5, 19),
    "dormitory": (0, 24),
    "campus": (6, 23),
    "health": (8, 20),
    "transport": (5, 22),
}

SLOT_CAPACITY: Final = 18
PLANOGRAM: Final = {
    "busy": ["CONDOM-M"] * 5 + ["CONDOM-L", "CONDOM-L", "CONDOM-S", "N9-GEL", "N9-FILM"],
    "usual": ["CONDOM-M"] * 3 + ["CONDOM-L", "CONDOM-S", "N9-GEL", "N9-FILM", "N9-SUPP"],
}

# Months until expiry of the opening receipts, and packs of each: a year of the fleet, in several lots.
OPENING_LOTS: Final = {
    "CONDOM-M": ((14, 9_000), (30, 16_000), (44, 16_000)),
    "CONDOM-L": ((20, 3_000), (40, 6_000)),
    "CONDOM-S": ((20, 1_500), (40, 3_000)),
    "N9-GEL": ((9, 1_500), (18, 2_500)),
    "N9-FILM": ((8, 1_200), (17, 2_500)),
    "N9-SUPP": ((10, 1_200), (19, 2_500)),
}

# What a demo has besides: lots that go out first, and come near their expiry while its 60 days are played.
DEMO_LOTS: Final = {"CONDOM-M": (2.5, 900), "N9-GEL": (2.5, 200)}


def seed(
    connection: Connection, now: datetime, *, demo: bool = False, site_rows: Iterable[Mapping[str, str]] | None = None
) -> None:
    """Register everything; what exists already stays as it is, so that a second seed changes nothing.

    `site_rows` with the columns of sites.csv take the place of the 42 sites.
    """
    fleet.add_products(connection, list(_products()))
    for row in site_rows or _rows("sites.csv"):
        dispenser = _dispenser(row)
        fleet.add_dispensers(connection, [dispenser])
        busy = dispenser.site_type in {"campus", "dormitory", "transport"}
        products = PLANOGRAM["busy" if busy else "usual"]
        slots = [SlotPlan(slot=n, product=product, capacity=SLOT_CAPACITY) for n, product in enumerate(products, 1)]
        fleet.add_slots(connection, dispenser.id, slots)
    _stock_depot(connection, now, demo=demo)
    tell_desired(connection, None, now)


def rows_of(dispenser_ids: Sequence[str]) -> list[dict[str, str]]:
    """Return a row for each of these machines, for `seed`; whoever is none of the 42 stands where one of them does."""
    rows = list(_rows("sites.csv"))
    known = {row["id"]: row for row in rows}
    return [known.get(it) or {**rows[place % len(rows)], "id": it} for place, it in enumerate(dispenser_ids)]


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = (files("fleet_server") / "data" / name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())


def _products() -> Iterator[fleet.Product]:
    for row in _rows("products.csv"):
        if row["code"] in NOT_ON_MACHINES:
            continue
        unit_zh, _, unit_en = row["unit"].partition(" ")
        divisor = int(row["cyp_divisor_pieces"]) if row["cyp_divisor_pieces"] else None
        yield fleet.Product(
            row["code"], row["name_zh"], row["name_en"], unit_zh, unit_en,
            int(row["pieces_per_unit"]), divisor, int(row["shelf_life_months"]),
        )  # fmt: skip


def _dispenser(row: Mapping[str, str]) -> fleet.Dispenser:
    opens, closes = OPENING[row["type"]]
    return fleet.Dispenser(
        row["id"], row["name_zh"], row["name_en"], row["street_zh"], row["street_en"], row["street_code"], row["type"],
        row["placement"], float(row["lat"]), float(row["lon"]), opens, closes, DEPOT,
        int(row["population_estimate"]), float(row["migrant_share_estimate"]), SITE_NOTE,
    )  # fmt: skip


def _stock_depot(connection: Connection, now: datetime, *, demo: bool) -> None:
    known = {lot.product for lot in lots.list_lots(connection)}
    for product, opening in OPENING_LOTS.items():
        if product in known:
            continue
        receipts = [*([DEMO_LOTS[product]] if demo and product in DEMO_LOTS else []), *opening]
        lines = []
        for number, (months, packs) in enumerate(receipts, 1):
            expires_on = _month_end(now.astimezone(LOCAL).date() + timedelta(days=30 * months))
            code = f"{product.replace('CONDOM-', 'C').replace('N9-', 'N')}{expires_on:%y%m}{number}"
            lots.record_lot(connection, product, code, expires_on, now)
            lines.append(depot.StockLine(product, code, packs))
        depot.receive(connection, f"opening-{product}", DEPOT, lines, "system:seed", now)


def _month_end(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
