"""Child processes that run the agent's own code, and strace attached to them: kills and failures at a chosen system call."""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

PATIENCE_S = 60
T = TypeVar("T")


def needs_strace() -> None:
    """Skip where no process may be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip(f"no process may be traced here: {probe.stderr.decode()[:100]}")


class Child:
    """A forked process: it starts without importing anything anew, and is as mortal as any other."""

    def __init__(self, run: Callable[[], object], log: Path) -> None:
        sys.stdout.flush()
        gate, self._gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.close(self._gate)
                os.read(gate, 1)
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                code = int(run() or 0)  # type: ignore[call-overload]
            except BaseException:  # noqa: BLE001 - whatever it was, this process ends here
                traceback.print_exc()
            finally:
                with suppress(OSError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        os.close(gate)
        self._code: int | None = None

    def go(self) -> "Child":
        """Let it run."""
        os.close(self._gate)
        return self

    def ended(self) -> int | None:
        """Return -signal or its exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self) -> int:
        return int(until(lambda: None if self.ended() is None else (self.ended(),), "the child ends")[0] or 0)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.ended() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def until(holds: Callable[[], T | None], what: str, seconds: float = PATIENCE_S) -> T:
    """Wait for something; the limit only catches hangs."""
    ends_s = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends_s, f"waited {seconds:.0f} s until {what}"
        time.sleep(0.005)
    return found


@contextmanager
def traced(pid: int, *options: str, output: Path = Path(os.devnull)) -> Iterator[None]:
    """Attach strace, and wait until it has; it goes with the block or with the process."""
    command = ["strace", "-qq", "-f", "-o", str(output), *options, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _tracer_of(pid) or tracer.poll() is not None, "strace is attached")
        yield
    finally:
        tracer.terminate()
        tracer.wait(PATIENCE_S)


def _tracer_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 1
    return int(status.split("TracerPid:")[1].split()[0])
