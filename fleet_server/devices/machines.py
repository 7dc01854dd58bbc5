"""What is known of the machines: read by every feature, written by the seed and by ingest."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from protocol.messages import SlotPlan
from protocol.topics import Channel


@dataclass(frozen=True, slots=True)
class Dispenser:
    """A machine at its site; `opens_hour` to `closes_hour` are local hours, 0 to 24 is always open."""

    id: str
    name_zh: str
    name_en: str
    street_zh: str
    street_en: str
    street_code: str
    site_type: str
    placement: str
    latitude: float
    longitude: float
    opens_hour: int
    closes_hour: int
    depot_id: str
    population_estimate: int | None
    migrant_share_estimate: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Product:
    """A product; units are packs, `pieces_per_unit` pieces each."""

    code: str
    name_zh: str
    name_en: str
    unit_zh: str
    unit_en: str
    pieces_per_unit: int
    cyp_divisor_pieces: int | None
    shelf_life_months: int


@dataclass(frozen=True, slots=True)
class Presence:
    """The session a machine last announced, and whether it ended. Offline is unknown, not empty."""

    dispenser_id: str
    stream_id: str
    session: int
    online: bool
    changed_at: datetime


class StoredFact(NamedTuple):
    """A fact as it was committed: its bytes, and what ingest made of its time. `kind` is None when quarantined."""

    dispenser_id: str
    stream_no: int
    seq: int
    line: bytes
    kind: str | None
    at: datetime | None
    corrected_at: datetime
    received_at: datetime
    quarantine_reason: str | None


FactRow = tuple[str, int, int, bytes, str | None, datetime | None, datetime, datetime, str | None]
"""The fields of a StoredFact without their names, which cost ingest as much as reading the line's digest."""


class Cursor(NamedTuple):
    """Where the server stands in one stream of a machine."""

    dispenser_id: str
    stream_no: int
    stream_id: str
    through_seq: int
    digest: bytes
    last_at: datetime | None = None
    last_boot_id: str | None = None
    last_mono_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way. `key` is what the answer names: an order id, or a version."""

    id: int
    dispenser_id: str
    channel: Channel
    key: str
    payload: dict[str, Any]
    created_at: datetime
    expires_at: datetime | None
    sent_at: datetime | None
    answered_at: datetime | None
    answer: str | None
    answer_detail: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A machine's answer to something that was sent to it."""

    dispenser_id: str
    channel: Channel
    key: str
    outcome: str
    detail: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Announcement:
    """A machine's word that a session began or ended."""

    dispenser_id: str
    stream_id: str
    session: int
    online: bool
    received_at: datetime


Planogram = dict[str, list[SlotPlan]]
