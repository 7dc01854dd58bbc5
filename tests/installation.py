"""A whole installation in processes of its own: database, broker, server and simulator, each of which a test may kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from fleet_server.auth import service as auth
from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.embedded import BrokerAddress, EmbeddedBroker, EmbeddedPostgres
from fleet_server.ledger.audit import AuditReport, audit
from fleet_server.schema import migrate
from fleet_server.seed import DEPOT, seed
from tests.conftest import free_port

PEOPLE: Final = {"administrator": None, "dispatcher": None, "restocker": DEPOT}
PASSWORD: Final = "a-long-enough-password"
BEGINS: Final = datetime(2026, 9, 20, 16, tzinfo=UTC)
"""A local midnight."""


class BrokerProcess(Protocol):
    """A broker that can be started, stopped and killed."""

    @property
    def pid(self) -> int | None: ...

    def start(self) -> BrokerAddress: ...

    def stop(self) -> None: ...


class Installation:
    """Everything that `serve` and the simulator need, over one directory; `broker` in place of the embedded one.

    With `lasting` false nothing waits for the disk, and machines are kept in memory: for histories that nobody kills.
    """

    def __init__(self, directory: Path, broker: BrokerProcess | None = None, *, lasting: bool = True) -> None:
        self.directory, self._lasting = directory, lasting
        self.postgres = EmbeddedPostgres(directory / "postgres", durable=lasting)
        self.broker: BrokerProcess = broker or EmbeddedBroker(directory / "broker")
        self.port = free_port()
        postgres = self.postgres.start()
        # The owner's is for whoever tampers; the server and the audit run with the other.
        self.owner_url, self.database_url = postgres.url, postgres.application_url
        migrate(self.owner_url)
        database = Database(self.database_url)
        with database.begin() as connection:
            seed(connection, BEGINS)
            for name, depot in PEOPLE.items():
                auth.add_user(connection, name, name, PASSWORD, system_now(), depot)
        database.close()
        (directory / "passwords.json").write_text(json.dumps(dict.fromkeys(PEOPLE, PASSWORD)))
        self.address = self.broker.start()
        (directory / "broker-password").write_text(self.address.users.get("server", ""))
        self._log = (directory / "server.log").open("ab")
        self.server = self.start_server()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        settings = {
            "DATABASE_URL": self.database_url, "BROKER_URL": f"mqtt://{self.address.host}:{self.address.port}",
            "BROKER_USERNAME": "server", "BROKER_PASSWORD_FILE": str(self.directory / "broker-password"),
            "PORT": str(self.port), "PRODUCTION": "false", "COOKIE_SECURE": "false",
        }  # fmt: skip
        return (
            os.environ
            | {"PYTHONFAULTHANDLER": "1"}
            | {f"DISPENSER_FLEET_{name}": value for name, value in settings.items()}
        )

    def start_server(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "fleet_server", "serve"]
        return subprocess.Popen(command, env=self.environment(), stderr=self._log, start_new_session=True)

    def await_ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while True:
            if self.server.poll() is not None:
                # As its supervisor would: it ends when it finds the database still busy with its own start.
                self.server = self.start_server()
            try:
                urllib.request.urlopen(f"{self.url}/readyz", timeout=2).close()
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, (self.directory / "server.log").read_text()[-2000:]
                time.sleep(0.05)
            else:
                return

    # ------------------------------------------------------------ kill -9

    def kill(self, part: str) -> None:
        """Kill -9 one of server, broker, postgres."""
        pid = self.server.pid if part == "server" else getattr(self, part).pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        if part == "server":
            self.server.wait()

    def restart(self, part: str) -> None:
        """Start what was killed again, where it was."""
        if part == "server":
            self.server = self.start_server()
        else:
            getattr(self, part).stop()
            getattr(self, part).start()

    # ------------------------------------------------------------ the simulator

    def simulate(self, days: float, seed_: int) -> "subprocess.Popen[str]":
        self.await_ready()
        command = [
            sys.executable, "-m", "simulator", "run", "--json", "--broker", "mqtt://by:environment@127.0.0.1",
            "--server", self.url, "--password-file", str(self.directory / "passwords.json"),
            "--seed", str(seed_), "--days", str(days), "--start", BEGINS.isoformat(),
            *(("--data-dir", str(self.directory / "machines")) if self._lasting else ()),
        ]  # fmt: skip
        address = f"mqtt://fleet:{self.address.users['fleet']}@{self.address.host}:{self.address.port}"
        environment = os.environ | {"SIMULATOR_BROKER_URL": address}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def played(self, days: float, seed_: int, timeout_s: float = 300) -> dict[str, Any]:
        """Play undisturbed; returns the simulator's summary."""
        return self.finished(self.simulate(days, seed_), timeout_s)

    @staticmethod
    def finished(simulator: "subprocess.Popen[str]", timeout_s: float = 300) -> dict[str, Any]:
        out, err = simulator.communicate(timeout=timeout_s)
        assert simulator.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        return summary

    def audited(self) -> AuditReport:
        database = Database(self.database_url)
        with database.begin() as connection:
            report = audit(connection)
        database.close()
        return report

    def close(self) -> None:
        if self.server.poll() is None:
            self.server.terminate()
            self.server.wait(20)
        self._log.close()
        self.broker.stop()
        self.postgres.remove()


def kill_again_and_again(
    installation: Installation, parts: list[str], throw: random.Random, simulator: "subprocess.Popen[str]"
) -> list[str]:
    """Kill one part with -9 some seconds after all of them work again, while the simulator runs; returns what was killed."""
    killed: list[str] = []
    while simulator.poll() is None:
        installation.await_ready()
        try:
            simulator.wait(throw.uniform(2, 4.5))
        except subprocess.TimeoutExpired:
            part = throw.choice(parts)
            installation.kill(part)
            killed.append(part)
            time.sleep(throw.uniform(0.0, 0.5))
            installation.restart(part)
    return killed
