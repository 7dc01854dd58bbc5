"""Statements on the outgoing table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text, update

from fleet_server.bulk import unnest_insert
from fleet_server.database import Connection
from fleet_server.devices.machines import Answer, Outgoing
from fleet_server.devices.store import outgoing
from protocol.topics import Channel

COLUMNS = [outgoing.c[name] for name in Outgoing.__dataclass_fields__]


def _read(row: Any) -> Outgoing:
    return Outgoing(**{**row, "channel": Channel(row["channel"])})


def write(
    connection: Connection,
    channel: Channel,
    rows: Iterable[tuple[str, str, dict[str, Any]]],
    now: datetime,
    expires_at: datetime | None,
) -> None:
    """Add messages: (dispenser_id, key, payload)."""
    columns = {
        "dispenser_id": "text", "channel": "text", "key": "text", "payload": "jsonb",
        "created_at": "timestamptz", "expires_at": "timestamptz",
    }  # fmt: skip
    values = [(name, str(channel), key, json.dumps(payload), now, expires_at) for name, key, payload in rows]
    unnest_insert(connection, "outgoing", columns, values)


VERSIONS_PER_EPOCH_S = 1_000
"""Each second of epochs has room for so many versions, more than are ever told."""


def count_orders(connection: Connection, dispenser_id: str) -> int:
    """Count the orders a machine was ever given; the caller holds the machine's lock."""
    query = select(func.count()).where(outgoing.c.dispenser_id == dispenser_id, outgoing.c.channel == Channel.ORDERS)
    return int(connection.execute(query).scalar_one())


def next_versions(connection: Connection, dispenser_ids: Sequence[str], channel: Channel) -> dict[str, int]:
    """Return the version after the newest one of each machine; the caller holds their locks.

    In the epoch after a restore, versions begin above all that were told in the seconds before it: the machine may have those.
    """
    query = text("""
        SELECT ids.id, greatest(
            (SELECT max(CAST(key AS bigint)) FROM outgoing
             WHERE dispenser_id = ids.id AND channel = :c AND channel <> 'orders'),
            :room * (SELECT CAST(value AS bigint) FROM server_state WHERE key = 'epoch' AND value <> '1'), 0) + 1
        FROM unnest(CAST(:ids AS text[])) AS ids(id)""")
    values = {"ids": list(dispenser_ids), "c": str(channel), "room": VERSIONS_PER_EPOCH_S}
    return {dispenser_id: int(version) for dispenser_id, version in connection.execute(query, values)}


def supersede(connection: Connection, dispenser_ids: list[str], channel: Channel, now: datetime) -> None:
    """Answer the older versions that still wait: a newer one replaces them."""
    connection.execute(
        update(outgoing)
        .where(
            outgoing.c.dispenser_id == func.any(dispenser_ids),
            outgoing.c.channel == channel,
            outgoing.c.answered_at.is_(None),
        )
        .values(answered_at=now, answer="superseded")
    )


def latest_payloads(
    connection: Connection, dispenser_ids: Sequence[str], channel: Channel
) -> dict[str, dict[str, Any]]:
    """Return the newest payload of a channel of versions of each machine that was ever told one, with its version."""
    query = text("""
        SELECT ids.id, newest.payload FROM unnest(CAST(:ids AS text[])) AS ids(id)
        CROSS JOIN LATERAL (SELECT payload FROM outgoing
                            WHERE dispenser_id = ids.id AND channel = :channel AND channel <> 'orders'
                            ORDER BY CAST(key AS bigint) DESC LIMIT 1) AS newest""")
    rows = connection.execute(query, {"ids": list(dispenser_ids), "channel": str(channel)})
    return {row.id: row.payload for row in rows}


def tell_again(connection: Connection, channel: Channel, known: Mapping[str, int]) -> None:
    """Have the newest version of a channel sent again to machines that know an older one (`known`), though one was answered."""
    if not known:
        return
    connection.execute(
        text("""
        UPDATE outgoing SET answered_at = NULL, answer = NULL, answer_detail = NULL, sent_session = NULL
        FROM (SELECT o.dispenser_id, max(o.key::bigint) AS newest FROM outgoing o
              WHERE o.channel = :channel AND o.dispenser_id = ANY(:ids) GROUP BY o.dispenser_id) AS latest
             JOIN unnest(CAST(:ids AS text[]), CAST(:versions AS bigint[])) AS k(dispenser_id, known) USING (dispenser_id)
        WHERE outgoing.dispenser_id = latest.dispenser_id AND outgoing.channel = :channel
          AND outgoing.key = latest.newest::text AND latest.newest > k.known AND outgoing.answered_at IS NOT NULL"""),
        {"channel": str(channel), "ids": list(known), "versions": list(known.values())},
    )


def find(connection: Connection, key: str) -> Outgoing | None:
    """Return an order by its id."""
    query = select(*COLUMNS).where(outgoing.c.channel == Channel.ORDERS, outgoing.c.key == key)
    row = connection.execute(query).mappings().first()
    return _read(row) if row else None


def unanswered(connection: Connection, dispenser_id: str) -> list[Outgoing]:
    """List one machine's unanswered messages, oldest first."""
    query = select(*COLUMNS).where(outgoing.c.dispenser_id == dispenser_id, outgoing.c.answered_at.is_(None))
    return [_read(row) for row in connection.execute(query.order_by(outgoing.c.id)).mappings()]


def due(connection: Connection, now: datetime) -> list[tuple[Outgoing, str, int, datetime]]:
    """List what is to be sent now: unanswered, its machine online, not yet sent in that session.

    Returns with each message the session's stream id, number and start.
    """
    query = text("""
        SELECT o.id, o.dispenser_id, o.channel, o.key, o.payload, o.created_at, o.expires_at, o.sent_at, o.answered_at,
               o.answer, o.answer_detail, p.stream_id AS p_stream, p.session AS p_session, p.changed_at AS p_at
        FROM outgoing o JOIN presence p ON p.dispenser_id = o.dispenser_id
        WHERE o.answered_at IS NULL
          -- Who forked is there, whatever it announced: an old card may count its sessions from a number that is long past.
          AND (p.online OR o.channel = 'orders' AND o.payload->>'kind' = 'new_stream')
          AND (o.sent_session IS DISTINCT FROM p.session OR o.sent_stream_id IS DISTINCT FROM p.stream_id)
          AND (o.expires_at IS NULL OR o.expires_at > :now)
          -- An order that was sent in another stream may have run there: it is not sent again.
          AND (o.channel <> 'orders' OR o.sent_stream_id IS NULL OR o.sent_stream_id = p.stream_id)
          AND (o.channel <> 'orders' OR coalesce(o.payload->>'stream_id', p.stream_id) = p.stream_id)
        -- What a transaction of ingest is about to answer needs no sending; waiting for it could end in a deadlock.
        ORDER BY o.id FOR UPDATE OF o SKIP LOCKED""")
    found = []
    for row in connection.execute(query, {"now": now}).mappings():
        fields = {name: row[name] for name in Outgoing.__dataclass_fields__}
        found.append((_read(fields), row["p_stream"], row["p_session"], row["p_at"]))
    return found


def mark_sent(connection: Connection, rows: Sequence[tuple[int, str, int]], now: datetime) -> None:
    """Note in which session messages were sent: (id, stream_id, session)."""
    if not rows:
        return
    connection.execute(
        text("""
        UPDATE outgoing SET sent_stream_id = s.stream_id, sent_session = s.session, sent_at = :now
        FROM unnest(CAST(:ids AS bigint[]), CAST(:streams AS text[]), CAST(:sessions AS bigint[]))
             AS s(id, stream_id, session) WHERE outgoing.id = s.id"""),
        {"now": now, "ids": [r[0] for r in rows], "streams": [r[1] for r in rows], "sessions": [r[2] for r in rows]},
    )


def forget_sent(connection: Connection) -> None:
    """Have everything unanswered sent again; what is remembered is the stream, in which an order may have run."""
    connection.execute(update(outgoing).where(outgoing.c.answered_at.is_(None)).values(sent_session=None))


def answer(connection: Connection, answers: Sequence[Answer]) -> None:
    """Note machines' answers; a second answer changes nothing, but any is better than `unknown`."""
    first: dict[tuple[str, str, str], Answer] = {}
    for given in answers:
        first.setdefault((given.dispenser_id, given.channel, given.key), given)
    if not first:
        return
    rows = [(*key, given.outcome, given.detail, given.received_at) for key, given in sorted(first.items())]
    statement = """
        UPDATE outgoing SET answered_at = a.at, answer = a.outcome, answer_detail = a.detail
        FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::timestamptz[])
             AS a(dispenser_id, channel, key, outcome, detail, at)
        WHERE outgoing.dispenser_id = a.dispenser_id AND outgoing.channel = a.channel AND outgoing.key = a.key
          AND (answered_at IS NULL OR outgoing.answer = 'unknown')"""
    connection.exec_driver_sql(statement, tuple(list(column) for column in zip(*rows, strict=True)))


def orders_unknown(connection: Connection, dispenser_id: str, stream_id: str, now: datetime) -> None:
    """Answer orders that were sent in another stream than this new one as `unknown`: nobody can say whether they ran."""
    connection.execute(
        update(outgoing)
        .where(
            outgoing.c.dispenser_id == dispenser_id,
            outgoing.c.channel == Channel.ORDERS,
            outgoing.c.answered_at.is_(None),
            outgoing.c.sent_stream_id.is_not(None),
            outgoing.c.sent_stream_id != stream_id,
        )
        .values(answered_at=now, answer="unknown")
    )


def expire(connection: Connection, now: datetime) -> int:
    """Answer orders past their life as `expired`."""
    return connection.execute(
        update(outgoing)
        .where(outgoing.c.answered_at.is_(None), outgoing.c.expires_at < now)
        .values(answered_at=now, answer="expired")
    ).rowcount
