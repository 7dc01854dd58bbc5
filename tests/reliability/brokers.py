"""The brokers of the fault matrix: the embedded one at an address that machines in a namespace reach, and Debian's Mosquitto."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet_server.embedded import BrokerAddress, EmbeddedBroker
from tests.conftest import free_port


class ReachableBroker(EmbeddedBroker):
    """The embedded broker, listening at `host` in place of the loopback, on a small disk of its own where it may mount one."""

    def __init__(self, directory: Path, host: str, *, disk_bytes: int = 0, **more: Any) -> None:
        super().__init__(directory, **more)
        self._host = host
        self._store = directory / "jetstream"
        self.has_own_disk = bool(disk_bytes) and self._mount(disk_bytes)

    def _mount(self, size: int) -> bool:
        self._store.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self._store)]
        return os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def start(self, *, clean: bool = False) -> BrokerAddress:
        if clean:
            for kept in self._store.iterdir():
                shutil.rmtree(kept)
        return replace(super().start(), host=self._host)

    def fill_disk(self) -> Path:
        """Leave no byte free; returns the file to delete."""
        ballast = self._store / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 65_536)
        return ballast

    def remove(self) -> None:
        """Stop, and give the disk back."""
        self.stop()
        if self.has_own_disk:
            subprocess.run(["umount", "-l", str(self._store)], check=False, capture_output=True)

    def _configuration(self, passwords: Any) -> dict[str, Any]:
        configuration = super()._configuration(passwords)
        configuration["mqtt"]["listen"] = f"{self._host}:{self._port}"
        return configuration

    def _is_ready(self) -> bool:
        return listens(self._host, self._port)


class MosquittoBroker:
    """The distribution's Mosquitto as it comes, plus a listener for anonymous clients, and `more` lines of configuration."""

    def __init__(self, directory: Path, host: str, more: str = "") -> None:
        self._directory, self._host, self._more = directory, host, more
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> BrokerAddress:
        binary = mosquitto_binary()
        assert binary
        self._directory.mkdir(exist_ok=True)
        self._directory.chmod(0o755)
        configuration = self._directory / "mosquitto.conf"
        anonymous = "" if "allow_anonymous" in self._more else "allow_anonymous true\n"
        configuration.write_text(f"listener {self._port} {self._host}\n{anonymous}{self._more}")
        with (self._directory / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-c", configuration], stdout=log, stderr=log, start_new_session=True
            )
        ends_s = time.monotonic() + 20
        while not listens(self._host, self._port):
            if self._process.poll() is not None or time.monotonic() > ends_s:
                raise AssertionError((self._directory / "mosquitto.log").read_text())
            time.sleep(0.02)
        return BrokerAddress(self._host, self._port, {})

    def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait(10)
            self._process = None


def mosquitto_binary() -> str | None:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
