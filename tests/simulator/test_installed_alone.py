"""The wheel with the extra `simulator` in an environment of its own: what a firmware engineer installs."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
UV: Final = Path(sys.executable).with_name("uv")
AGENT_TEST = """
import importlib.util, pytest

@pytest.mark.fleet(dispensers=1, quiet=True)
def test_a_pack_falls(fleet, virtual_clock):
    (one,) = fleet.ids
    fleet.ask(one)
    virtual_clock.advance("1 min")
    assert [vend.outcome for vend in fleet.facts(one, "vend")] == ["delivered"]

def test_a_shipped_scenario_meets_the_stand_in(scenario):
    outcome = scenario("stand-in.yaml")
    assert {one.held for one in outcome.judged} == {True, None}

def test_no_server_came_with_it():
    for name in ("sqlalchemy", "fastapi", "psycopg", "alembic", "uvicorn"):
        assert importlib.util.find_spec(name) is None, name
"""
SCENARIO = """
name: stand-in
description: One machine for a day.
start: 2026-06-01
days: 1
fleet: {sites: 1}
restock: {policy: rounds, every: 1 d}
expect: [audit clean, facts >= 5, visits == 1]
"""


def ran(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.soak
@pytest.mark.timeout(2_000)
def test_the_plugin_and_the_simulator_need_no_server(tmp_path: Path) -> None:
    ran(UV, "build", "--wheel", "--out-dir", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    ran(UV, "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    ran(UV, "pip", "install", "--python", python, f"{wheel}[simulator]", cwd=tmp_path)
    (tmp_path / "stand-in.yaml").write_text(SCENARIO)
    simulate = ("-m", "simulator", "scenario", "stand-in.yaml", "--in-process", "simulator.stand_in:connect")
    assert "needs a server" in ran(python, *simulate, cwd=tmp_path)
    assert "four-day-outage" in ran(python, "-m", "simulator", "list", cwd=tmp_path)
    ran(UV, "pip", "install", "--python", python, "pytest", cwd=tmp_path)
    (tmp_path / "test_agent.py").write_text(AGENT_TEST)
    assert "5 passed" in ran(python, "-m", "pytest", "-q", "--fleet-seeds", "2", "test_agent.py", cwd=tmp_path)
