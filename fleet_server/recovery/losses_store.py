"""What the report on losses reads: traces of things that this server does not know, or knows only by half."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import text

from fleet_server.database import Connection

RESTORED = "WITH restored AS (SELECT value -> 'cursors' AS cursors FROM server_state WHERE key = 'restored') "
"""The cursors at the restore, by `dispenser/stream_no`: what lies beyond them came back since."""

BEYOND = "coalesce(CAST(cursors ->> (t.dispenser_id || '/' || t.stream_no) AS bigint), 0)"


def facts_beyond(connection: Connection, kind: str) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield facts of a kind that came since the restore: (dispenser_id, stream_no, seq, line)."""
    query = text(f"""{RESTORED}
        SELECT t.dispenser_id, t.stream_no, t.seq, t.line FROM facts t, restored
        WHERE t.kind = :kind AND t.seq > {BEYOND} ORDER BY 1, 2, 3""")  # noqa: S608 - constants of ours
    for row in connection.execute(query, {"kind": kind}):
        yield row.dispenser_id, row.stream_no, row.seq, bytes(row.line)


def doors_without_entries(connection: Connection, restored_at: datetime) -> list[Any]:
    """Return door sessions of before the restore, told since, for which nobody has entered anything."""
    query = text(f"""{RESTORED}
        SELECT t.dispenser_id, t.session, t.opened_at FROM door_sessions t, restored
        WHERE t.opened_seq > {BEYOND} AND t.opened_at <= :at AND NOT EXISTS (
            SELECT 1 FROM operations o WHERE o.dispenser_id = t.dispenser_id
              AND (o.session = t.session OR (o.stream_no, o.seq) = (t.stream_no, t.opened_seq)))
        ORDER BY t.opened_at""")  # noqa: S608 - constants of ours
    return list(connection.execute(query, {"at": restored_at}))


def streams_at_rest(connection: Connection) -> list[Any]:
    """Return streams that stand where they stood at the restore, and whether a newer one began since."""
    query = text(f"""{RESTORED}
        SELECT t.dispenser_id, t.stream_no, t.through_seq, EXISTS (
            SELECT 1 FROM streams n WHERE n.dispenser_id = t.dispenser_id AND n.stream_no > t.stream_no
              AND NOT cursors ? (n.dispenser_id || '/' || n.stream_no)) AS replaced
        FROM streams t, restored
        WHERE t.through_seq = {BEYOND} AND NOT EXISTS (
            SELECT 1 FROM streams n WHERE n.dispenser_id = t.dispenser_id AND n.stream_no > t.stream_no
              AND cursors ? (n.dispenser_id || '/' || n.stream_no))
        ORDER BY 1, 2""")  # noqa: S608 - constants of ours
    return list(connection.execute(query))


def heard_since(connection: Connection, at: datetime) -> set[str]:
    """Return machines that announced a session since: what they have, they have sent or are sending."""
    return set(
        connection.execute(text("SELECT dispenser_id FROM presence WHERE changed_at >= :at"), {"at": at}).scalars()
    )


def known_keys(connection: Connection, channel: str) -> set[tuple[str, str]]:
    """Return what was sent on a channel: (dispenser_id, key)."""
    rows = connection.execute(
        text("SELECT dispenser_id, key FROM outgoing WHERE channel = :channel"), {"channel": channel}
    )
    return {(row.dispenser_id, row.key) for row in rows}


def orders_still_unknown(connection: Connection) -> list[Any]:
    """Return orders of which no answer has come."""
    query = text("""
        SELECT dispenser_id, key, payload ->> 'kind' AS kind FROM outgoing
        WHERE channel = 'orders' AND answer = 'unknown' ORDER BY id""")
    return list(connection.execute(query))


def waiting(connection: Connection) -> list[Any]:
    """Return entries that wait for a door session which no machine has told."""
    query = text("""
        SELECT operation_id, dispenser_id, slot, kind, session FROM operations WHERE state = 'waiting'
        ORDER BY dispenser_id, session, step""")
    return list(connection.execute(query))


def visits_without_plan(connection: Connection) -> list[Any]:
    """Return visits that only their entries tell of."""
    query = text("""
        SELECT o.visit_id, o.dispenser_id, o.van, count(*) AS entries FROM operations o
        WHERE o.visit_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM stops s WHERE s.visit_id = o.visit_id)
        GROUP BY 1, 2, 3 ORDER BY 1""")
    return list(connection.execute(query))


def overdrawn(connection: Connection) -> list[Any]:
    """Return depots that gave more than they ever got, and vans that nobody picked for; who loads a van may err a little."""
    query = text("""
        SELECT account, product, lot, units FROM balances
        WHERE units < 0 AND (account LIKE 'depot/%' OR account LIKE 'van/%' AND NOT EXISTS (
            SELECT 1 FROM operations o WHERE o.kind = 'pick' AND o.van = account))
        ORDER BY 1, 2, 3""")
    return list(connection.execute(query))
