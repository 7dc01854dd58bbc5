"""The movements of depots and vans, compared with the receipts, picks and returns that caused them."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from fleet_server.database import Connection
from fleet_server.ledger.movements import Movement
from fleet_server.ledger.store import write_movements
from fleet_server.recovery import rebuild_store as store

Ends = tuple[str, str, str, str]
"""(source, target, product, lot)."""


def rebuild_depots(connection: Connection, now: datetime, *, correct: bool) -> Iterator[tuple[str, str, str, bool]]:
    """Yield (table, place, words, repaired) for every operation whose movements are not what it says."""
    for row in store.depot_operations(connection):
        cause = f"operation:{row['operation_id']}"
        posted = store.movements_of_cause(connection, row["dispenser_id"], cause)
        rest = _rest(row["payload"], posted)
        if not rest:
            continue
        if correct:
            write_movements(
                connection, _corrections(row, cause, rest, max((m.number + 1 for m in posted), default=0), now)
            )
        yield (
            "movements",
            row["dispenser_id"],
            f"the {row['kind']} {row['operation_id']} implies {len(rest)} more",
            correct,
        )


def _rest(payload: dict[str, Any], posted: list[Movement]) -> dict[Ends, int]:
    rest: Counter[Ends] = Counter()
    for line in payload["lines"]:
        rest[payload["source"], payload["target"], line["product"], line["lot"]] += line["packs"]
    for m in posted:
        if m.reason == "rebooked":
            rest[m.target, m.source, m.product, m.lot] += m.units
        else:
            rest[m.source, m.target, m.product, m.lot] -= m.units
    return {ends: units for ends, units in sorted(rest.items()) if units}


def _corrections(row: Any, cause: str, rest: dict[Ends, int], first: int, now: datetime) -> list[Movement]:
    found = []
    for number, ((source, target, product, lot), units) in enumerate(rest.items(), first):
        ends, reason = ((source, target), row["kind"]) if units > 0 else ((target, source), "rebooked")
        identity = (row["dispenser_id"], f"{cause}#{number}")
        found.append(
            Movement(*identity, *ends, product, lot, abs(units), reason, row["actor"], cause, row["entered_at"], now)
        )
    return found
