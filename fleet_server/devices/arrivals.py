"""Writes what arrives from machines: facts and cursors, forks, dead letters, readings."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from fleet_server.bulk import Insert, insert_together, unnest_insert
from fleet_server.database import Connection
from fleet_server.devices.machines import Cursor, FactRow
from fleet_server.devices.store import LAST_MS
from protocol.messages import Vitals

AHEAD_MAX: Final = timedelta(days=1)
"""A reading's own time counts up to so far ahead of its arrival."""


FACT_COLUMNS: Final = {
    "dispenser_id": "text", "stream_no": "int4", "seq": "int8", "line": "bytea", "kind": "text",
    "at": "timestamptz", "corrected_at": "timestamptz", "received_at": "timestamptz", "quarantine_reason": "text",
}  # fmt: skip
CURSOR_COLUMNS: Final = {
    "dispenser_id": "text", "stream_no": "int4", "stream_id": "text", "through_seq": "int8", "digest": "bytea",
    "last_at": "timestamptz", "last_boot_id": "text", "last_mono_ms": "int8",
    "began_at": "timestamptz", "received_at": "timestamptz",
}  # fmt: skip
MOVED: Final = ("through_seq", "digest", "last_at", "last_boot_id", "last_mono_ms", "received_at")


def write_facts(
    connection: Connection, facts: Sequence[FactRow], cursors: Sequence[tuple[Cursor, datetime, datetime]]
) -> None:
    """Store facts and move cursors, making those that are new: (cursor, began_at if it is new, received_at).

    A number that exists already is a defect and raises.
    """
    moved = ", ".join(f"{name} = excluded.{name}" for name in MOVED)
    rows = [(*cursor, began_at, received_at) for cursor, began_at, received_at in cursors]
    conflict = f"ON CONFLICT (dispenser_id, stream_no) DO UPDATE SET {moved}"
    insert_together(
        connection,
        [
            Insert("facts", FACT_COLUMNS, facts, can_copy=True),
            Insert("streams", CURSOR_COLUMNS, rows, conflict),
        ],
    )


def keep_forked(
    connection: Connection, dispenser_id: str, stream_no: int, first_seq: int, lines: Sequence[bytes], at: datetime
) -> None:
    """Keep facts of a forked stream aside; the same bytes again are kept once."""
    columns = {
        "dispenser_id": "text", "stream_no": "int4", "seq": "int8", "line_digest": "bytea", "line": "bytea",
        "received_at": "timestamptz",
    }  # fmt: skip
    rows = [
        (dispenser_id, stream_no, first_seq + n, hashlib.sha256(line).digest(), line, at)
        for n, line in enumerate(lines)
    ]
    unnest_insert(connection, "forked_facts", columns, rows, on_conflict="ON CONFLICT DO NOTHING")


def keep_dead_letters(connection: Connection, letters: Sequence[tuple[str, bytes, str, datetime]]) -> None:
    """Keep messages that could not be read: (topic, payload, reason, received_at)."""
    columns = {"topic": "text", "payload": "bytea", "reason": "text", "received_at": "timestamptz"}
    # PostgreSQL keeps no NUL in a text, and a topic that is none of ours may have one.
    unnest_insert(connection, "dead_letters", columns, [(row[0].replace("\0", "?"), *row[1:]) for row in letters])


def record_vitals(connection: Connection, readings: Sequence[tuple[str, Vitals, datetime]]) -> None:
    """Keep the latest reading of each machine, and the last of each hour: (dispenser_id, reading, received_at)."""
    latest: dict[str, tuple[datetime, str]] = {}
    hours: dict[tuple[str, datetime], str] = {}
    for dispenser_id, vitals, received_at in readings:
        at = min(datetime.fromtimestamp(min(vitals.at_ms, LAST_MS) / 1000, UTC), received_at + AHEAD_MAX)
        reading = vitals.model_dump_json(exclude={"v", "at_ms"}, exclude_none=True)
        latest[dispenser_id] = at, reading
        hours[dispenser_id, at.replace(minute=0, second=0, microsecond=0)] = reading
    insert_together(
        connection,
        [
            Insert(
                "vitals",
                {"dispenser_id": "text", "at": "timestamptz", "reading": "jsonb"},
                [(dispenser_id, *reading) for dispenser_id, reading in sorted(latest.items())],
                "ON CONFLICT (dispenser_id) DO UPDATE SET at = excluded.at, reading = excluded.reading",
            ),
            Insert(
                "vitals_history",
                {"dispenser_id": "text", "hour": "timestamptz", "reading": "jsonb"},
                [(*key, reading) for key, reading in sorted(hours.items())],
                "ON CONFLICT (dispenser_id, hour) DO UPDATE SET reading = excluded.reading",
            ),
        ],
    )
