"""The same scenario and seed give the same facts, byte for byte: run to run, process to process, and on every bridge."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import scratch_directory
from tests.installation import Installation
from tests.played import BEGINS, PASSWORD, PEOPLE, plant, played

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SEED, DAYS = 5, 2


def played_in_a_process(database_url: str, passwords: Path, hash_seed: str) -> dict[str, Any]:
    plant(database_url)
    passwords.write_text(json.dumps(dict.fromkeys(PEOPLE, PASSWORD)))
    command = [
        sys.executable, "-m", "simulator", "run", "--json", "--in-process", "fleet_server.in_process:connect",
        "--in-process-option", f"database_url={database_url}", "--password-file", str(passwords),
        "--seed", str(SEED), "--days", str(DAYS), "--start", BEGINS.isoformat(),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_two_processes_with_different_hash_seeds_and_a_real_broker_give_the_same_bytes(
    database_url: str, another_database_url: str, tmp_path: Path
) -> None:
    first = played_in_a_process(database_url, tmp_path / "passwords.json", "1")
    second = played_in_a_process(another_database_url, tmp_path / "passwords.json", "424242")
    assert first["digest"] == second["digest"], f"seed {SEED}"
    with scratch_directory() as directory:
        installation = Installation(directory)
        third = installation.played(days=DAYS, seed_=SEED)
        installation.close()
    assert third["digest"] == first["digest"], f"seed {SEED}: {first} in process, {third} over a broker"
    assert first["facts"] > 400
    assert first["residual"] == third["residual"] == 0


def test_another_seed_gives_other_facts(database_url: str, another_database_url: str) -> None:

    digests = []
    for url, seed in ((database_url, 1), (another_database_url, 2)):
        with played(url, seed, machines=3) as running:
            running.play(1)
            digests.append(running.fleet.digest())
    assert digests[0] != digests[1]
