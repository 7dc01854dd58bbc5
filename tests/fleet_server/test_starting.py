"""`serve` meets a PostgreSQL that was killed and still recovers: it waits, says for what, and serves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_server.database import is_starting
from fleet_server.embedded import EmbeddedPostgres
from fleet_server.schema import migrate
from tests.conftest import free_port, scratch_directory

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def directory() -> Iterator[Path]:
    with scratch_directory() as path:
        yield path


class Serving(threading.Thread):
    """Starts `serve` as soon as PostgreSQL lets nobody in, and reads what it logs until it serves."""

    def __init__(self, url: str, recovered: Path) -> None:
        super().__init__(daemon=True)
        self._url, self._recovered = url, recovered
        self.events: list[dict[str, Any]] = []

    def run(self) -> None:
        while not is_starting(self._url):
            time.sleep(0.02)
        environment = os.environ | {
            "DISPENSER_FLEET_DATABASE_URL": self._url,
            "DISPENSER_FLEET_PORT": str(free_port()),
            "DISPENSER_FLEET_ROLES": '["web"]',
        }
        command = [sys.executable, "-m", "fleet_server", "serve"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr
            for line in server.stderr:
                self.events.append(json.loads(line) if line.startswith("{") else {"event": line})
                if "waiting for PostgreSQL" in line:
                    self._recovered.touch()
                if self.events[-1]["event"] == "serving":
                    server.terminate()


def keep_recovering(postgres: EmbeddedPostgres, data: Path, until: Path) -> None:
    """Let the next start recover from the crash, and then ask for more of the log until a file is there."""
    wanted = f"while [ ! -e {until} ]; do sleep 0.05; done; exit 1"
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"restore_command = '{wanted}'\n")
    (data / "recovery.signal").touch()
    shutil.chown(data / "recovery.signal", data.stat().st_uid, data.stat().st_gid)
    assert postgres.pid
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.stop()


def test_serve_waits_for_a_killed_database_that_recovers(directory: Path) -> None:
    recovered = directory / "recovered"
    postgres = EmbeddedPostgres(directory / "postgres")
    address = postgres.start()
    try:
        migrate(address.url)
        keep_recovering(postgres, (directory / "postgres" / "cluster").resolve() / "data", recovered)
        server = Serving(address.application_url, recovered)
        server.start()
        postgres.start()
        server.join(60)
    finally:
        postgres.remove()
    said = [event["event"] for event in server.events]
    assert said[0].startswith("waiting for PostgreSQL"), said
    assert said[-1] == "serving", said
