"""`python -m simulator scenario|check|list|schema` and `dispenser-fleet simulate`: exit codes, reports, replays."""

import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from simulator.__main__ import main

STAND_IN = ["--in-process", "simulator.stand_in:connect"]
GOOD = """\
name: two-days
description: Two machines, two days, a jam and an outage.
start: 2026-06-01
days: 2
seed: 5
fleet: {sites: 2}
faults:
  - {kind: network_fails, at: day 1 20:00, for: 6 h, dispensers: [HD-002]}
expect:
  - audit clean
  - offline[HD-002] >= 6 h
  - facts >= 15
"""
ROUNDS = GOOD.replace("fleet:", "restock: {policy: rounds, every: 1 d}\nfleet:")


@pytest.fixture
def good(tmp_path: Path) -> str:
    (tmp_path / "good.yaml").write_text(ROUNDS)
    return str(tmp_path / "good.yaml")


@pytest.fixture
def failing(tmp_path: Path) -> str:
    (tmp_path / "failing.yaml").write_text(ROUNDS.replace("facts >= 15", "facts >= 2000"))
    return str(tmp_path / "failing.yaml")


def test_it_passes_where_everything_holds(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", good, *STAND_IN]) == 0
    told = capsys.readouterr().out
    assert "two-days: seed 5, 2 days, 2 dispensers" in told
    assert "needs a server" in told


def test_it_fails_with_the_seed_and_a_command_that_fails_alike(
    failing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenario", failing, "--seed", "9", *STAND_IN]) == 1
    told = capsys.readouterr()
    assert "two-days, seed 9: 1 of 3 expectations do not hold" in told.err
    measured = next(line for line in told.err.splitlines() if "facts >= 2000: measured" in line)
    replay = next(line for line in told.err.splitlines() if line.startswith("replay: "))
    words = shlex.split(replay.removeprefix("replay: python -m simulator "))
    assert main(words) == 1
    assert measured in capsys.readouterr().err


def test_every_seed_and_file_has_its_place_in_the_reports(
    good: str, failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.xml"
    assert main(["scenario", good, failing, "--seeds", "2", "--junit", str(report), "--json", *STAND_IN]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(run["seed"], run["passed"]) for run in told["runs"]] == [(5, True), (6, True), (5, False), (6, False)]
    assert told["passed"] is False
    assert len(ET.parse(report).getroot().findall("testsuite/testcase")) == 12


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scenario", "{bad}"], "bad.yaml:4: days: 'two': expected a number"),
        (["check", "{good}", "{bad}"], "bad.yaml:4: days: 'two': expected a number"),
        (["scenario", "nothing-of-that-name"], "expected a .yaml file or the name of a shipped scenario"),
        (["scenario", "{good}", "--days", "0.5", *STAND_IN], "faults[0].at: 'day 1 20:00': expected a moment within the 0.5 days"),
        (["scenario", "{good}", "--days", "-1", *STAND_IN], "days: -1.0: expected more than 0"),
        (["scenario", "{good}", "--seeds", "0", *STAND_IN], "--seeds 0: expected 1 or more"),
        (["scenario", "{good}"], "expected one of them; `dispenser-fleet simulate` starts a server of its own"),
        (["scenario", "{good}", "{good}", "--server", "http://127.0.0.1:1"], "for a server has one history"),
        (["scenario", "{good}", "--in-process", "simulator.nothing:connect"], "--in-process simulator.nothing:connect: expected"),
        (["scenario", "{good}", *STAND_IN, "--in-process-option", "colour=red"], "colour: expected none with the stand-in"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_words_and_ends_with_2(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(GOOD.replace("days: 2", "days: two"))
    assert main([word.format(good=good, bad=bad) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


def test_files_are_checked_listed_and_described(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", good, "sd-card-restored"]) == 0
    assert main(["list"]) == 0
    assert "four-day-outage" in capsys.readouterr().out
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Scenario"
    assert main(["parameters"]) == 0
    assert "faults.SLOT_JAM.rate = 4.0" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_command_plays_it_against_a_server_of_its_own_the_same_in_process_and_over_a_broker(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(GOOD)
    told = {}
    for over in ("process", "broker"):
        command = [
            sys.executable,
            "-m",
            "fleet_server",
            "simulate",
            str(tmp_path / "it.yaml"),
            "--json",
            "--over",
            over,
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
        assert ran.returncode == 0, ran.stderr
        (told[over],) = json.loads(ran.stdout)["runs"]
    assert told["process"]["expectations"][0] == {"text": "audit clean", "measured": "clean", "held": True}
    assert told["process"]["facts"] == told["broker"]["facts"]
    assert told["process"]["expectations"] == told["broker"]["expectations"]


@pytest.mark.soak
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", ["sd-card-restored", "broker-loss", "visit-finished-offline"])
def test_a_shipped_scenario_holds_over_a_real_broker(name: str) -> None:
    command = [sys.executable, "-m", "fleet_server", "simulate", name, "--over", "broker"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1_000)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_simulate_says_what_is_wrong_with_its_input() -> None:
    for words, told in (
        (["--over", "air", "four-day-outage"], "over = 'air': expected process or broker"),
        (["nothing-of-that-name"], "expected a .yaml file or the name of a shipped scenario"),
    ):
        command = [sys.executable, "-m", "fleet_server", "simulate", *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == 2
        assert told in ran.stderr
        assert "Traceback" not in ran.stderr


def test_simulate_leaves_nothing_behind_when_it_is_ended(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(GOOD.replace("days: 2", "days: 60").replace("sites: 2", "sites: 8"))
    command = [sys.executable, "-m", "fleet_server", "simulate", str(tmp_path / "long.yaml")]
    environment = os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(directory.stat().st_mode | 0o011)  # PostgreSQL may run as another user
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stderr is not None
        assert "two-days: " in running.stderr.readline()
        running.terminate()
        assert running.wait(60) == 130
    assert list((tmp_path / "scratch").iterdir()) == []
