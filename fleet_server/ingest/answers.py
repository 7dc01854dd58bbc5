"""The answers to what one transaction took: of several to one stream the last of each kind, as each says where the server stands."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fleet_server.devices.machines import Cursor
from protocol.messages import Ack, AckMessage, Fork, Gap, Nack

QUARANTINED_MAX = 100
"""Numbers that one `ack` may name."""

Kind = type[Ack] | type[Gap] | type[Nack] | type[Fork]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a machine, to be sent after the commit."""

    dispenser_id: str
    message: AckMessage


class Answers:
    """Gathers answers; a machine that sent a hundred batches is told once how far it got."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, Kind], tuple[Cursor, int | None, str | None]] = {}
        self._quarantined: dict[tuple[str, str, Kind], list[int]] = {}

    def add(self, kind: Kind, cursor: Cursor, sent_at_ms: int | None, reason: str | None = None) -> None:
        """Answer a batch that was sent at `sent_at_ms`; a Nack has its reason."""
        key = (cursor.dispenser_id, cursor.stream_id, kind)
        self._last.pop(key, None)  # the order is that of the last ones
        self._last[key] = cursor, sent_at_ms, reason

    def quarantined(self, cursor: Cursor, seqs: list[int]) -> None:
        """Name facts in the stream's `ack`."""
        self._quarantined.setdefault((cursor.dispenser_id, cursor.stream_id, Ack), []).extend(seqs)

    def replies(self, epoch: int, now: datetime) -> list[Reply]:
        """Return the messages, in the order in which the streams were last answered."""
        found: list[Reply] = []
        for key, (cursor, sent_at_ms, reason) in self._last.items():
            stand: dict[str, Any] = {
                "server_epoch": epoch,
                "stream_id": cursor.stream_id,
                "through_seq": cursor.through_seq,
                "digest": cursor.digest.hex(),
                "server_at_ms": int(now.timestamp() * 1000),
                "sent_at_ms": sent_at_ms,
            }
            if reason is not None:
                stand["reason"] = reason
            if key not in self._quarantined:
                found.append(Reply(cursor.dispenser_id, key[2](**stand)))
                continue
            seqs = self._quarantined[key]
            for first in range(0, len(seqs), QUARANTINED_MAX):
                named = seqs[first : first + QUARANTINED_MAX]
                found.append(Reply(cursor.dispenser_id, Ack(**stand, quarantined=named)))
        return found
