"""`serve` and a PostgreSQL that is killed: it waits while that recovers, and says once that it is away and once that it is back."""

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


def serve(url: str, role: str) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "DISPENSER_FLEET_DATABASE_URL": url,
        "DISPENSER_FLEET_PORT": str(free_port()),
        "DISPENSER_FLEET_ROLES": json.dumps([role]),
    }
    command = [sys.executable, "-m", "fleet_server", "serve"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


class Serving(threading.Thread):
    """Starts `serve` as soon as PostgreSQL lets nobody in, and reads what it logs until it serves."""

    def __init__(self, url: str, recovered: Path) -> None:
        super().__init__(daemon=True)
        self._url, self._recovered = url, recovered
        self.events: list[dict[str, Any]] = []

    def run(self) -> None:
        while not is_starting(self._url):
            time.sleep(0.02)
        with serve(self._url, "web") as server:
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


def test_what_serve_logs_of_a_killed_database_is_two_lines_of_json(directory: Path) -> None:
    postgres = EmbeddedPostgres(directory / "postgres")
    address = postgres.start()
    try:
        migrate(address.url)
        with serve(address.application_url, "jobs") as server:
            assert server.stderr
            lines = map(json.loads, server.stderr)
            assert next(lines)["event"] == "serving"
            for _ in range(2):
                assert postgres.pid
                os.kill(postgres.pid, signal.SIGKILL)
                assert next(lines)["event"] == "database is away; waiting"
                time.sleep(2)  # it looks again each second
                postgres.stop()
                postgres.start()
                assert next(lines)["event"] == "database is back"
            server.terminate()
    finally:
        postgres.remove()
