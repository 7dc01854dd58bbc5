"""A serial port that never blocks: raw bytes in, raw bytes out, and BoardError for everything that can go wrong."""

import contextlib
import errno
import fcntl
import os
import select
import termios
from typing import Any, Final

from device_agent.hal.ports import BoardError

READ_MAX: Final = 4096
BAUD_RATES: Final = {
    9_600: termios.B9600,
    19_200: termios.B19200,
    38_400: termios.B38400,
    57_600: termios.B57600,
    115_200: termios.B115200,
}
PARITIES: Final = {"none": 0, "even": termios.PARENB, "odd": termios.PARENB | termios.PARODD}
# What the kernel says of an adapter that was pulled out.
GONE: Final = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBADF, errno.EPIPE}


class SerialPort:
    """One port, 8 data bits and one stop bit; it may vanish (a pulled adapter) and be opened again."""

    def __init__(self, path: str, baud_rate: int, parity: str = "none") -> None:
        if baud_rate not in BAUD_RATES:
            raise BoardError(f"board.baud_rate = {baud_rate!r}: expected one of {', '.join(map(str, BAUD_RATES))}")
        if parity not in PARITIES:
            raise BoardError(f"board.parity = {parity!r}: expected one of {', '.join(PARITIES)}")
        self.path, self._speed, self._parity = path, BAUD_RATES[baud_rate], PARITIES[parity]
        self._descriptor: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the port was there when it was last used."""
        return self._descriptor is not None

    def open(self) -> None:
        """Open the port and forget what arrived before; raises BoardError, also where another process holds it."""
        self.close()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise BoardError(f"port {self.path}: {_words(error)}") from None
        try:
            # Two agents on one wire would each read half of the answers.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._make_raw(descriptor)
            termios.tcflush(descriptor, termios.TCIOFLUSH)
        except (OSError, termios.error) as error:
            os.close(descriptor)
            raise BoardError(f"port {self.path}: {_words(error)}") from None
        self._descriptor = descriptor

    def _make_raw(self, descriptor: int) -> None:
        attributes: list[Any] = termios.tcgetattr(descriptor)
        control = list(attributes[6])
        # VMIN 1 keeps "nothing yet" (EAGAIN) apart from "hung up" (no bytes).
        control[termios.VMIN], control[termios.VTIME] = 1, 0
        flags = termios.CS8 | termios.CREAD | termios.CLOCAL | self._parity
        checks = termios.INPCK if self._parity else 0
        raw: list[Any] = [checks, 0, flags, 0, self._speed, self._speed, control]
        termios.tcsetattr(descriptor, termios.TCSANOW, raw)

    def read(self) -> bytes:
        """Return what has arrived, perhaps nothing; raises BoardError where the port is gone."""
        if self._descriptor is None:
            raise BoardError(f"port {self.path}: not open")
        try:
            data = os.read(self._descriptor, READ_MAX)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._lost(error) from None
        if not data:
            self.close()
            raise BoardError(f"port {self.path}: hung up")
        return data

    def write(self, data: bytes) -> None:
        """Send bytes; what the kernel does not take is lost, as on a wire, and left to the resends."""
        if self._descriptor is None:
            raise BoardError(f"port {self.path}: not open")
        try:
            os.write(self._descriptor, data)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> BoardError:
        if error.errno in GONE:
            self.close()
        return BoardError(f"port {self.path}: {_words(error)}")

    def wait(self, seconds: float) -> None:
        """Return when bytes have arrived, or after some seconds."""
        waiter = select.poll()
        if self._descriptor is not None:
            waiter.register(self._descriptor, select.POLLIN)
        try:
            waiter.poll(max(0.0, seconds) * 1000)
        except OSError as error:
            raise self._lost(error) from None

    def discard(self) -> None:
        """Forget what has arrived."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcflush(self._descriptor, termios.TCIFLUSH)

    def close(self) -> None:
        """Give the port back; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _words(error: Exception) -> str:
    """Name an error without its number, which termios puts first."""
    return str(getattr(error, "strerror", None) or error.args[-1])
