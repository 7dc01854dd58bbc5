"""The memory card of a simulated machine: it can be copied, lost and put back, as real ones are."""

import random
from contextlib import suppress
from pathlib import Path

from device_agent.outbox import Outbox


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

    def image(self) -> bytes:
        """Copy the whole card."""
        return self._db.serialize()


def erase(path: Path) -> None:
    """Throw a card away."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").unlink()
