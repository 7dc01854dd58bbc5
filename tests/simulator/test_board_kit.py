"""The conformance kit for board drivers: ours pass on fast boards, broken ones fail by the name of the rule they break."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from device_agent.events import BoardResult, Event, VendEnded
from device_agent.hal.fafb_board import FafbBoard
from device_agent.hal.fafb_board import open_board as open_fafb
from device_agent.hal.modbus_board import ModbusBoard
from device_agent.hal.modbus_board import open_board as open_hdb1
from device_agent.hal.ports import BoardDriver
from simulator.board_checks import CHECKS
from simulator.board_kit import OVER_ALL, Result, Verdict, main, run_kit, table
from simulator.board_rig import Rig, SimulatedRig
from simulator.boards.fafb_wire import FafbWire
from simulator.boards.hdb1_wire import hdb1_wire
from tests.device_agent.lines import Polled

POLL_S, VEND_S = 0.03, (0.1, 0.15)
FAFB: dict[str, Any] = {"memory": "{here}/note.json", "offline_after_s": 0.4, "vend_s_max": 1.0, "status_every_s": 0.1}
HDB1: dict[str, Any] = {"offline_after_s": 0.4, "vend_s_max": 1.0, "answer_s": 0.05}


def fafb_rig(here: Path) -> Rig:
    rig = SimulatedRig(lambda board: FafbWire(board, POLL_S), here, VEND_S)
    rig.line.to_driver.delay_s = rig.line.to_board.delay_s = 1.25 * POLL_S
    return rig


def hdb1_rig(here: Path) -> Rig:
    rig = SimulatedRig(hdb1_wire, here, VEND_S)
    rig.line.to_driver.delay_s = rig.line.to_board.delay_s = 0.06
    return rig


@pytest.mark.parametrize(
    ("factory", "rig_of", "config", "unseen"),
    [(open_fafb, fafb_rig, FAFB, {"LIFE-GROWS"}), (open_hdb1, hdb1_rig, HDB1, set())],
    ids=["fafb", "hdb1"],
)
def test_our_drivers_pass(factory: Any, rig_of: Any, config: dict[str, Any], unseen: set[str]) -> None:
    results = run_kit(factory, rig_of, config, jobs=12)
    if {result.rule for result in results if result.verdict is Verdict.BROKEN} == {"NEVER-BLOCKS"}:
        # By the clock on the wall, and others use this machine too: who really blocks does so again.
        results = run_kit(factory, rig_of, config, jobs=12)
    assert [result for result in results if result.verdict is Verdict.BROKEN] == []
    assert {result.rule for result in results if result.verdict is Verdict.UNSEEN} == unseen
    assert {result.rule for result in results} == CHECKS.keys() | OVER_ALL.keys()
    assert f"{len(results) - len(unseen)} passed" in table(results)


# ---------------------------------------------------------------- broken drivers


class RunsTwice(FafbBoard):
    """Forgets what it ran, and claims not to."""

    def start_vend(self, slot: int, board_sequence: int, *, drop_sensor: bool) -> None:
        if self._vend is None:
            self._memory.note = None
        super().start_vend(slot, board_sequence, drop_sensor=drop_sensor)


class SaysNotRun(FafbBoard):
    """Does not know its own stored results."""

    def stored_result(self, board_sequence: int) -> BoardResult | None:
        del board_sequence
        return None


class TellsTwice(ModbusBoard):
    """Says every end twice."""

    def poll(self) -> list[Event]:
        return [event for event in super().poll() for _ in range(1 + isinstance(event, VendEnded))]


class SeesDrops(ModbusBoard):
    """Calls everything dropped."""

    def poll(self) -> list[Event]:
        events = super().poll()
        return [
            VendEnded(e.board_sequence, BoardResult.DROPPED, 1, e.life_count) if isinstance(e, VendEnded) else e
            for e in events
        ]


class Blocks(ModbusBoard):
    """Sleeps in poll."""

    def poll(self) -> list[Event]:
        time.sleep(0.3)
        return super().poll()


class Raises(ModbusBoard):
    """Lets its own errors out."""

    def clear_jam(self, slot: int) -> bool:
        raise KeyError(slot)


BROKEN: dict[Any, tuple[str, str]] = {
    RunsTwice: ("RUNS-ONCE", "turns"),
    SaysNotRun: ("POWER-CUT-KIOSK", "the motor turned and a pack fell; stored_result() says None"),
    TellsTwice: ("VEND-ENDS", "6 VendEnded of 3 vends"),
    SeesDrops: ("RESULTS", "did_not_fall was told as dropped"),
    Blocks: ("NEVER-BLOCKS", "UNKNOWN-SLOT: poll took 0.3"),
    Raises: ("ONLY-BOARD-ERROR", "JAM-CLEARED: clear_jam raised KeyError(3)"),
}


def found_of(driver: Any, rule: str) -> Result:
    """What the kit says of one rule."""

    def factory(config: dict[str, Any]) -> BoardDriver:
        board: FafbBoard | ModbusBoard = driver(config)
        board.open()
        return board

    rig_of, config = (fafb_rig, FAFB) if issubclass(driver, FafbBoard) else (hdb1_rig, HDB1)
    checked = {"NEVER-BLOCKS": "UNKNOWN-SLOT", "ONLY-BOARD-ERROR": "JAM-CLEARED"}.get(rule, rule)
    return next(result for result in run_kit(factory, rig_of, config, [checked]) if result.rule == rule)


@pytest.fixture(scope="module")
def found() -> dict[Any, Result]:
    """All at once: a check is mostly waiting."""
    with ThreadPoolExecutor(len(BROKEN)) as pool:
        return dict(zip(BROKEN, pool.map(lambda driver: found_of(driver, BROKEN[driver][0]), BROKEN), strict=True))


@pytest.mark.parametrize("driver", BROKEN)
def test_a_broken_driver_fails_by_the_name_of_the_rule(found: dict[Any, Result], driver: Any) -> None:
    assert found[driver].verdict is Verdict.BROKEN
    assert BROKEN[driver][1] in found[driver].seen


def half_a_driver(config: dict[str, Any]) -> object:
    """A factory of something that is no driver."""
    return object() if config else None


# ---------------------------------------------------------------- command lines


def test_the_command_prints_a_checklist_and_ends_with_0_or_1(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--board", "hdb1", "--rules", "IDENTITY", "CLOSES", "--json"]
    assert main(["device_agent.hal.modbus_board:open_board", *arguments]) == 0
    assert [line["verdict"] for line in json.loads(capsys.readouterr().out)] == ["passed"] * 4
    assert main(["tests.simulator.test_board_kit:half_a_driver", *arguments[:-1]]) == 1
    out = capsys.readouterr().out
    assert "broken        IDENTITY" in out
    assert "AttributeError" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:at_all", "--board", "fafb"], "factory = 'nowhere:at_all': expected module:factory"),
        (["json:loads", "--board", "fafb", "--config", "x"], "--config = 'x': expected name=value"),
        (["json:loads"], "--board --rig"),
        (["json:loads", "--board", "fafb", "--jobs", "0"], "--jobs = 0: expected 1 or more"),
    ],
)
def test_wrong_arguments_end_with_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert words in capsys.readouterr().err


class WireProcess:
    """`python -m simulator.boards.wire`, spoken to as a person does."""

    def __init__(self, here: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "simulator.boards.wire", *arguments]
        command += ["--state", str(here / "board.json"), "--link", str(here / "port"), "--vend-s", "0.3", "0.3"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert str(here / "port") in self.heard()

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def say(self, words: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        return self.heard()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_board_in_a_process_of_its_own_is_driven_and_keeps_its_memory_through_kill_9(tmp_path: Path) -> None:
    wire = WireProcess(tmp_path, "hdb1")
    assert wire.say("load 3 LOT 5") == "done\n"
    assert "foo: expected one of door_open" in wire.say("set foo 1")
    assert "expected -99.0 to 999.0" in wire.say("set temperature_c nan")
    assert "not understood" in wire.say("press 3")
    polled = Polled(open_hdb1({"port": str(tmp_path / "port"), "offline_after_s": 0.3, "answer_s": 0.05}))
    assert polled.vend(3, 8).result is BoardResult.DROPPED
    polled.driver.start_vend(3, 9, drop_sensor=True)
    wire.kill()
    wire = WireProcess(tmp_path, "hdb1")
    polled.until(lambda: polled.ended(9))
    assert polled.ended(9)[0].result is BoardResult.DROPPED
    assert wire.say("state").startswith("3: 3 packs; jammed []; 2 turns, life count 2; door_open False")
    polled.driver.close()
    assert "frames heard" in wire.say("wire")
    wire.process.send_signal(signal.SIGTERM)
    assert wire.process.wait(10) == 0
    assert not os.path.lexists(tmp_path / "port")


def test_a_link_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("mine")
    command = [sys.executable, "-m", "simulator.boards.wire", "fafb", "--link", str(tmp_path / "port")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "is there and no link" in done.stderr
    assert (tmp_path / "port").read_text() == "mine"
