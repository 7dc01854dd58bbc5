"""The memory card of a simulated machine: it can be copied, lost and put back, as real ones are."""

import random
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from device_agent.outbox import Outbox

PAGE_BYTES: Final = 1024
"""Of a card in memory."""


class Card(Outbox):
    """An outbox in a file or in memory, written without waiting for a disk."""

    def __init__(
        self, path: Path | None, dispenser_id: str, randomness: random.Random, image: bytes | None = None
    ) -> None:
        """Open the card at `path`, or one in memory; `image` takes the place of what is there, an empty one too."""
        if path is not None and image is not None:
            erase(path)
            path.write_bytes(image)
        super().__init__(path or ":memory:", dispenser_id, durable=False, randomness=randomness)
        if path is None and image:
            self._db.deserialize(image)
            self._load()

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        if str(self._path) == ":memory:":
            # SQLite sets room for twenty pages aside at once: with thousands of cards, most of what they take.
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        return connection

    def image(self) -> bytes:
        """Copy the whole card."""
        return self._db.serialize()


def erase(path: Path) -> None:
    """Throw a card away."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").unlink()
