"""The wire between a simulated board and whatever drives it: a pty pair served by a thread, with faults that can be planted."""

import contextlib
import heapq
import itertools
import os
import random
import select
import threading
import time
import tty
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, Self

READ_MAX: Final = 4096
STEP_S: Final = 0.01
DELAY_S: Final = 0.25
NOISE_BYTES: Final = 7


class LineFault(StrEnum):
    """What can happen to one message on the wire."""

    LOSE = "lose"
    DROP_BYTE = "drop_byte"
    FLIP_BIT = "flip_bit"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    NOISE = "noise"


class Wire(Protocol):
    """A board's end of the wire, without I/O: bytes in, messages out, at a monotonic time."""

    heard: int
    """Good frames that came."""

    def advance(self, now_s: float, received: bytes) -> list[bytes]:
        """Take what arrived and return the messages that are due."""
        ...


@dataclass
class Noise:
    """Spoils messages: the next ones that begin with a prefix, and a share of all, by seeded chance."""

    randomness: random.Random
    share: float = 0.0
    kinds: tuple[LineFault, ...] = tuple(LineFault)
    delay_s: float = DELAY_S
    planted: list[tuple[LineFault, bytes]] = field(default_factory=list)
    spoilt: int = 0

    def plant(self, *kinds: LineFault, begins_with: bytes = b"") -> None:
        """Spoil the next messages, one for each kind, that begin with these bytes."""
        self.planted += [(kind, begins_with) for kind in kinds]

    def spoil(self, message: bytes) -> list[tuple[float, bytes]]:
        """Return what becomes of a message: delays in seconds, and bytes."""
        found = next((plan for plan in self.planted if message.startswith(plan[1])), None)
        if found is not None:
            self.planted.remove(found)
            kind = found[0]
        elif self.share and self.randomness.random() < self.share:
            kind = self.randomness.choice(self.kinds)
        else:
            return [(0.0, message)]
        self.spoilt += 1
        return self._after(kind, message)

    def _after(self, kind: LineFault, message: bytes) -> list[tuple[float, bytes]]:
        place = self.randomness.randrange(len(message))
        match kind:
            case LineFault.LOSE:
                return []
            case LineFault.DROP_BYTE:
                return [(0.0, message[:place] + message[place + 1 :])]
            case LineFault.FLIP_BIT:
                flipped = message[place] ^ 1 << self.randomness.randrange(8)
                return [(0.0, message[:place] + bytes((flipped,)) + message[place + 1 :])]
            case LineFault.DELAY:
                return [(self.delay_s, message)]
            case LineFault.DUPLICATE:
                return [(0.0, message), (STEP_S, message)]
            case LineFault.NOISE:
                return [(0.0, self.randomness.randbytes(NOISE_BYTES) + message)]


class PtyLine:
    """Serves a wire on a pty; `path` is what a driver opens. All changes to the board are made under `lock`."""

    def __init__(self, wire: Wire, link: Path | None = None, seed: str = "line") -> None:
        self.wire, self._link = wire, link
        self.to_driver = Noise(random.Random(f"{seed}/to_driver"))  # noqa: S311 - simulation
        self.to_board = Noise(random.Random(f"{seed}/to_board"))  # noqa: S311 - simulation
        self.lock = threading.RLock()
        self.silent = False
        """A board without power on a wire that is still there."""
        self._order = itertools.count()
        self._due: list[tuple[float, int, bool, bytes]] = []
        self._ends: tuple[int, int] | None = None
        self._stopping = threading.Event()
        self.plug_in()
        self._thread = threading.Thread(target=self._serve, name="pty line", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """The port to open: the link where there is one, because the name behind it changes."""
        if self._link is not None:
            return str(self._link)
        if self._ends is None:
            raise OSError("the line is unplugged")
        return os.ttyname(self._ends[1])

    def plug_in(self) -> None:
        """Make the port be there."""
        with self.lock:
            if self._ends is not None:
                return
            if self._link is not None and self._link.exists() and not self._link.is_symlink():
                raise FileExistsError(f"{self._link} is there and no link: it is left alone")
            board_end, driver_end = os.openpty()
            # Held open on this side too, raw: no echo, and no hang-up whenever a driver closes.
            tty.setraw(driver_end)
            os.set_blocking(board_end, False)
            self._ends = board_end, driver_end
            if self._link is not None:
                temporary = self._link.with_name(self._link.name + ".new")
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(os.ttyname(driver_end))
                temporary.replace(self._link)

    def unplug(self) -> None:
        """Pull the adapter out: the port is gone until `plug_in`."""
        with self.lock:
            ends, self._ends = self._ends, None
            self._due.clear()
            if self._link is not None:
                self._link.unlink(missing_ok=True)
            for end in ends or ():
                os.close(end)

    def send(self, data: bytes) -> None:
        """Put bytes on the wire to the driver, as a disturbance would."""
        with self.lock:
            self._write(data)

    def close(self) -> None:
        """Stop serving."""
        self._stopping.set()
        self._thread.join(5)
        self.unplug()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            with self.lock:
                self._step(time.monotonic())
                end = self._ends[0] if self._ends else None
            if end is None:
                self._stopping.wait(STEP_S)
                continue
            with contextlib.suppress(OSError, ValueError):
                select.select([end], [], [], STEP_S)

    def _step(self, now_s: float) -> None:
        arrived = self._read()
        if self.silent:
            self._due.clear()
            return
        if arrived:
            self._plan(self.to_board, arrived, now_s, to_board=True)
        received = b""
        while self._due and self._due[0][0] <= now_s:
            _, _, to_board, data = heapq.heappop(self._due)
            if to_board:
                received += data
            else:
                self._write(data)
        for message in self.wire.advance(now_s, received):
            self._plan(self.to_driver, message, now_s, to_board=False)
        while self._due and self._due[0][0] <= now_s and not self._due[0][2]:
            self._write(heapq.heappop(self._due)[3])

    def _plan(self, noise: Noise, message: bytes, now_s: float, *, to_board: bool) -> None:
        for delay_s, data in noise.spoil(message):
            heapq.heappush(self._due, (now_s + delay_s, next(self._order), to_board, data))

    def _read(self) -> bytes:
        try:
            return os.read(self._ends[0], READ_MAX) if self._ends else b""
        except OSError:
            return b""

    def _write(self, data: bytes) -> None:
        if self._ends is not None and data:
            with contextlib.suppress(OSError):  # Nobody reads: the bytes are gone, as on a wire.
                os.write(self._ends[0], data)
