"""A server of another project as a child process: its directory, port, log, start and end."""

import ctypes
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar

LOOPBACK = "127.0.0.1"
START_DELAY_S_MAX = 60.0
LEFTOVER_DELAY_S_MAX = 20.0
LOG_BYTES_MAX = 5_000_000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class EmbeddedError(Exception):
    """What could not be started, the value that stood in the way, and what was expected of it."""

    def __init__(self, what: str, value: object, expected: str) -> None:
        super().__init__(f"{what}: {value}; expected {expected}")
        self.what = what
        self.value = value
        self.expected = expected


AddressT = TypeVar("AddressT")


class EmbeddedServer(ABC, Generic[AddressT]):
    """One child process, its directory, its port and its log; subclasses say what is run and when it is ready."""

    name: ClassVar[str]
    stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]]

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self._directory = directory.absolute()
        self._log = self._directory / f"{self.name}.log"
        self._wanted_port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def ended(self) -> bool:
        """Whether it was started and has ended without being asked to."""
        return self._process is not None and self._process.poll() is not None

    def __enter__(self) -> AddressT:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> AddressT: ...

    def stop(self) -> None:
        """Stop cleanly, then less so; return when no process is left."""
        if self._process:
            for number, delay_s in self.stop_signals:
                self._process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(delay_s)
                    break
            else:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Stop, and delete all data."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Hold the directory; whatever fails in here leaves nothing running and says what it was."""
        if self._process:
            raise EmbeddedError(self.name, f"already running as process {self.pid}", "one start() per stop()")
        try:
            self._prepare_directory()
            yield
        except (OSError, subprocess.SubprocessError) as error:
            self.stop()
            raise EmbeddedError(f"{self.name} in {self._directory}", error, "a place with room and rights") from error
        except BaseException:
            self.stop()
            raise

    def _prepare_directory(self) -> None:
        try:
            # Others may pass through to what is theirs; every secret in here is 0600 by itself.
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._lock = (self._directory / "lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmbeddedError(f"{self.name} directory", self._directory, "one that no other process uses") from error
        except OSError as error:
            raise EmbeddedError(
                f"{self.name} directory", f"{self._directory} ({error.strerror})", "a writable place"
            ) from error
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.replace(self._log.with_suffix(".log.1"))

    def _choose_port(self) -> int:
        """The wanted port, or the one of last time if it is free, or a new one."""
        if self._wanted_port is not None:
            if not _is_free(self._wanted_port):
                raise EmbeddedError(
                    f"{self.name} port", f"{self._wanted_port} is in use", f"a free TCP port on {LOOPBACK}"
                )
            return self._wanted_port
        memory = self._directory / "port"
        remembered = memory.read_text().strip() if memory.exists() else ""
        if remembered.isdecimal() and 0 < int(remembered) < 2**16 and _is_free(int(remembered)):
            return int(remembered)
        port = _free_port()
        memory.write_text(f"{port}\n")
        return port

    def _spawn(self, command: Sequence[str | Path], *, user: str | None = None, cwd: Path | None = None) -> None:
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own binaries, our own arguments
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd or self._directory,
                start_new_session=True, preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509 - it calls the kernel only
                **as_user(user),
            )  # fmt: skip

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_DELAY_S_MAX
        while not self._is_ready():
            assert self._process  # noqa: S101 - spawned by the caller
            if self._process.poll() is not None:
                raise self._explained(f"ended with code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._explained("not ready in time")
            time.sleep(0.01)

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def _explained(self, outcome: str) -> EmbeddedError:
        """What went wrong, from the lines that this start has added to the log."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read(LOG_BYTES_MAX).decode(errors="replace")
        if "No space left on device" in text:
            return EmbeddedError(f"{self.name} disk", f"{self._directory} is full", "free space")
        if "ddress already in use" in text:
            return EmbeddedError(f"{self.name} port", "in use", f"a free TCP port on {LOOPBACK}")
        lines = [
            line for line in text.splitlines() if any(word in line for word in ("FATAL", "PANIC", "[FTL]", "error"))
        ]
        reason = " / ".join((lines or text.splitlines())[-3:]) or outcome
        return EmbeddedError(f"{self.name} in {self._directory}", f"{outcome}: {reason}", f"a start; see {self._log}")


def _dies_with(parent: int) -> Callable[[], None]:
    """Run in the child before exec: the kernel interrupts it when the thread that started it ends, kill -9 included."""

    def ask_kernel() -> None:
        if sys.platform == "linux":
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:
                os._exit(1)

    return ask_kernel


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that drop root's rights, all groups included."""
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def end_leftovers(directory: Path) -> None:
    """End servers of an earlier launcher that still work in this directory. The lock is ours, so nobody else wants them.

    Both servers keep their data directory as working directory, which tells them from a stranger with a reused process id.
    """
    deadline = time.monotonic() + LEFTOVER_DELAY_S_MAX
    asked: set[int] = set()
    while leftovers := _processes_in(directory):
        if time.monotonic() > deadline:
            raise EmbeddedError("directory", f"{directory} is used by processes {leftovers}", "these to end")
        for pid in set(leftovers) - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        asked.update(leftovers)
        time.sleep(0.02)


def _processes_in(directory: Path) -> list[int]:
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            executable = link.with_name("exe").readlink().name
            if link.readlink() == directory and executable.startswith(("postgres", "nats-server")):
                found.append(int(link.parent.name))
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a connection of the last run that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def kept_secret(path: Path) -> str:
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(24))
    return path.read_text()


def write_secret(path: Path, text: str) -> None:
    """Complete or absent, and never readable for others in between."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)
