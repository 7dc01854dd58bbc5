"""`dispenser-fleet serve` as a process of its own, for the demo and for simulations."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from fleet_server.embedded import BrokerAddress
from fleet_server.errors import InputError

START_DELAY_S_MAX: Final = 30
STOP_DELAY_S_MAX: Final = 20


class ServerProcess:
    """One server on a port of the loopback; its log and its broker's password are kept in a directory."""

    def __init__(self, directory: Path, database_url: str, broker: BrokerAddress, port: int) -> None:
        self._log, self._port = directory / "server.log", port
        password_file = directory / "broker-password"
        password_file.touch(mode=0o600)
        password_file.write_text(broker.users["server"])
        settings = {
            "DATABASE_URL": database_url,
            "BROKER_URL": f"mqtt://{broker.host}:{broker.port}",
            "BROKER_USERNAME": "server",
            "BROKER_PASSWORD_FILE": str(password_file),
            "PORT": str(port),
            "PRODUCTION": "false",
            "COOKIE_SECURE": "false",
        }
        self._environment = os.environ | {f"DISPENSER_FLEET_{name}": value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def ended(self) -> bool:
        """Whether it was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Start it, or start it again."""
        command = [sys.executable, "-m", "fleet_server", "serve"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stderr=log, start_new_session=True)

    def await_ready(self) -> None:
        """Wait until it answers; raises InputError when it ends instead, or takes too long."""
        deadline = time.monotonic() + START_DELAY_S_MAX
        while time.monotonic() < deadline:
            if self.ended:
                lines = self._log.read_text().strip().splitlines()
                raise InputError("port", self._port, f"a server that starts; it said: {lines[-1] if lines else ''}")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2):  # noqa: S310 - our own address
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise InputError("server", self.url, f"ready within {START_DELAY_S_MAX} s; see {self._log}")

    def stop(self) -> None:
        """End it."""
        stop(self._process)


def stop(process: "subprocess.Popen[bytes] | None") -> None:
    """Ask, wait, and then insist."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_DELAY_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
