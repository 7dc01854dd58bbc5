"""What shows that an outbox is whole: a seal over everything that decisions rest on, and a mark of the last commit beside the file.

The chain of digests covers the facts only. The seal covers the books, intents, orders and settings as well, and is committed
with every change of them. What neither can show is the loss of the last commits whole, as a flipped byte in SQLite's write-ahead
log brings it about: the log is then read up to that place, in silence. For that there is the mark.
"""

import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from device_agent.storage_errors import OutboxDamagedError, OutboxError

SUM_MODULUS: Final = 2**128
RESERVE_BYTES: Final = 256 * 1024
"""A file given up when the disk is full: on a full disk SQLite cannot even delete."""


def row_sum(kind: str, name: str, value: str) -> int:
    """One row's part of the sum over all rows; the order of rows does not matter."""
    return int.from_bytes(hashlib.sha256(f"{kind}\0{name}\0{value}".encode()).digest()[:16])


class Seal(NamedTuple):
    """The number of a commit, and the digest of all that stands after it."""

    number: int
    digest: bytes

    @classmethod
    def of(cls, number: int, rows_sum: int, last_seq: int, last_digest: bytes) -> "Seal":
        """Seal the rows and the end of the chain."""
        text = f"{number}/{rows_sum % SUM_MODULUS}/{last_seq}/".encode()
        return cls(number, hashlib.sha256(text + last_digest).digest())


class Mark:
    """The last seal, written beside the outbox after its commit and not waited for.

    It may be older than the outbox, never newer: an outbox behind its mark has lost what was committed.
    """

    _FORM: Final = struct.Struct(">Q32s8s")

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None

    def write(self, seal: Seal) -> None:
        """Note the seal; where that fails, the mark is an older one."""
        if self._path is None:
            return
        check = hashlib.sha256(struct.pack(">Q", seal.number) + seal.digest).digest()[:8]
        with suppress(OSError):
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, self._FORM.pack(seal.number, seal.digest, check), 0)

    def compare(self, seal: Seal) -> None:
        """Raise OutboxDamagedError where the outbox is not what was committed last. A mark that cannot be read says nothing."""
        if self._path is None:
            return
        try:
            number, digest, check = self._FORM.unpack(self._path.read_bytes())
        except (OSError, struct.error):
            return
        if hashlib.sha256(struct.pack(">Q", number) + digest).digest()[:8] != check:
            return
        if number > seal.number or (number == seal.number and digest != seal.digest):
            raise OutboxDamagedError(f"commit {number} is not there any more: the last one is {seal.number}")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Reserve:
    """Room set aside on the disk."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def keep(self) -> None:
        """Set the room aside; raises OutboxError where there is none."""
        if self._path is None:
            return
        try:
            if self._path.exists() and self._path.stat().st_size == RESERVE_BYTES:
                return
            disk = os.statvfs(self._path.parent)
            has_room = disk.f_bavail * disk.f_frsize >= RESERVE_BYTES  # found out without wearing the card
            if has_room:
                self._path.write_bytes(b"\0" * RESERVE_BYTES)
        except OSError as error:
            self.give_up()
            raise OutboxError(f"reserve of the outbox: {error.strerror}") from error
        if not has_room:
            self.give_up()
            raise OutboxError("reserve of the outbox: no room on the disk")

    def give_up(self) -> bool:
        """Make room on a full disk; returns whether there was any."""
        if self._path is None:
            return False
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
