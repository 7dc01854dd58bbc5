"""What a new server begins with: products, the 42 illustrative sites with their planogram, and a stocked depot; or sites of one's own."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Final

from fleet_server.clock import LOCAL
from fleet_server.database import Connection
from fleet_server.devices import fleet
from fleet_server.errors import InputError
from fleet_server.ledger import depot, lots
from fleet_server.ledger.telling import tell_desired
from protocol.messages import SlotPlan
from protocol.topics import Channel, TopicError, topic

DEPOT: Final = "HUANGDAO"

NOT_ON_MACHINES: Final = frozenset({"COC", "EC", "LUBE", "HIVST"})

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


SITE_COLUMNS: Final = (
    "id", "name_zh", "name_en", "street_zh", "street_en", "street_code", "type", "placement", "lat", "lon",
)  # fmt: skip
"""What a file of sites must have; population_estimate, migrant_share_estimate, opens_hour, closes_hour and note it may have."""
FIGURES: Final[dict[str, tuple[type[int] | type[float], int, int]]] = {
    "lat": (float, -90, 90),
    "lon": (float, -180, 180),
    "opens_hour": (int, 0, 24),
    "closes_hour": (int, 0, 24),
    "population_estimate": (int, 0, 100_000_000),
    "migrant_share_estimate": (float, 0, 1),
}
PLACEMENTS: Final = ("indoor", "outdoor_covered")


def seed(
    connection: Connection,
    now: datetime,
    *,
    demo: bool = False,
    site_rows: Iterable[Mapping[str, str]] | None = None,
    stocked: bool = True,
) -> None:
    """Register everything; what exists already stays as it is, so that a second seed changes nothing.

    `site_rows` with the columns of sites.csv take the place of the 42 sites. Without `stocked` the depot stays as it is.
    """
    fleet.add_products(connection, list(_products()))
    for row in site_rows or _rows("sites.csv"):
        dispenser = _dispenser(row)
        fleet.add_dispensers(connection, [dispenser])
        busy = dispenser.site_type in {"campus", "dormitory", "transport"}
        products = PLANOGRAM["busy" if busy else "usual"]
        slots = [SlotPlan(slot=n, product=product, capacity=SLOT_CAPACITY) for n, product in enumerate(products, 1)]
        fleet.add_slots(connection, dispenser.id, slots)
    if stocked:
        _stock_depot(connection, now, demo=demo)
    tell_desired(connection, None, now)


def read_sites(path: Path) -> list[dict[str, str]]:
    """Read a CSV file of sites, as `seed` takes them; raises InputError naming line, column, value and expectation."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("sites", str(path), f"a CSV file in UTF-8 that can be read ({error})") from None
    missing = [column for column in SITE_COLUMNS if column not in (rows[0] if rows else {})]
    if missing:
        raise InputError("sites", str(path), f"a header, and a line for each site, with {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        _check_site(f"sites, line {number}", row)
    return rows


def _check_site(where: str, row: Mapping[str, str]) -> None:
    empty = [column for column in SITE_COLUMNS if not row[column]]
    if empty:
        raise InputError(f"{where}, {empty[0]}", row[empty[0]], "a value")
    try:
        topic(row["id"], Channel.FACTS)
    except TopicError as error:
        raise InputError(f"{where}, id", row["id"], str(error).partition("expected ")[2]) from None
    for column, known in (("type", list(OPENING)), ("placement", PLACEMENTS)):
        if row[column] not in known:
            raise InputError(f"{where}, {column}", row[column], f"one of {', '.join(known)}")
    for column, (kind, least, most) in FIGURES.items():
        if row.get(column) and not _is_between(row[column], kind, least, most):
            whole = "a whole number" if kind is int else "a number"
            raise InputError(f"{where}, {column}", row[column], f"{whole} from {least} to {most}")


def _is_between(text: str, kind: type[int] | type[float], least: int, most: int) -> bool:
    try:
        return least <= kind(text) <= most
    except ValueError:
        return False


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
    usual = OPENING[row["type"]]
    opens, closes = (
        int(row.get(name) or hour) for name, hour in zip(("opens_hour", "closes_hour"), usual, strict=True)
    )
    population, share = row.get("population_estimate"), row.get("migrant_share_estimate")
    return fleet.Dispenser(
        row["id"], row["name_zh"], row["name_en"], row["street_zh"], row["street_en"], row["street_code"], row["type"],
        row["placement"], float(row["lat"]), float(row["lon"]), opens, closes, DEPOT,
        int(population) if population else None, float(share) if share else None, row.get("note") or "",
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
