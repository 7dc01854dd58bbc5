"""Devices on a bench: each in a process that a shell command can restart, driven by shell commands as a caller's would be."""

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from fleet_server.embedded import BrokerAddress
from simulator.boards.file_board import FileBoard, do
from simulator.conformance.checklist import Verdict

ROOT = Path(__file__).parents[2]
FOREIGN = ROOT / "docs" / "examples" / "foreign_device.py"
VEND_MS = 1_200
"""Long enough for the power to be cut while the motor turns."""

AGENT_CONFIG = """
dispenser_id = "{id}"
outbox = "{here}/outbox.sqlite"
[broker]
host = "{host}"
port = {port}
username = "fleet"
password_file = "{here}/password"
tls = false
[board]
driver = "simulator.boards.file_board:open_board"
state = "{here}/board.json"
"""
RESTART = """cd {root}
test -f {here}/pid && kill -9 $(cat {here}/pid)
{command} >{here}/log 2>&1 &
echo $! >{here}/pid
"""


class Device:
    """One device under test, and the commands that reach it."""

    def __init__(self, here: Path, command: list[str], ask: str, door: str) -> None:
        self.here = here
        script = here / "restart"
        script.write_text(RESTART.format(root=shlex.quote(str(ROOT)), here=here, command=shlex.join(command)))
        self.restart = f"/bin/sh {script}"
        self.ask, self.door = ask, door
        os.system(self.restart)

    def end(self) -> None:
        os.kill(int((self.here / "pid").read_text()), signal.SIGKILL)


def shipped_agent(here: Path, broker: BrokerAddress, dispenser_id: str) -> Device:
    """`python -m device_agent` with a board whose coils are full."""
    (here / "password").write_text(broker.users["fleet"])
    config = here / "agent.toml"
    config.write_text(AGENT_CONFIG.format(id=dispenser_id, here=here, host=broker.host, port=broker.port))
    board = FileBoard({"state": str(here / "board.json")})
    for slot in (1, 2, 3, 4):
        do(board, "load", f"{slot}:GOOD-1:50")
    with board.state() as state:
        state["vend_ms"] = VEND_MS
    drive = f"cd {ROOT} && {sys.executable} -m simulator.boards.file_board {here}/board.json"
    command = [sys.executable, "-m", "device_agent", "--config", str(config)]
    return Device(here, command, f"{drive} ask {{slot}}", f"{drive} door {{position}}")


def foreign_device(
    here: Path, broker: BrokerAddress, dispenser_id: str, *flags: str, program: Path = FOREIGN
) -> Device:
    """The example in docs/examples, which shares no code with us, with timeouts short enough to be waited for."""
    url = f"mqtt://fleet:{broker.users['fleet']}@{broker.host}:{broker.port}"
    command = [sys.executable, str(program), "--broker", url, "--dispenser", dispenser_id, "--store", str(here)]
    command += ["--timeout", "2", "--silence", "7", *flags]
    return Device(here, command, f"echo ask {{slot}} >>{here}/input", f"echo door {{position}} >>{here}/input")


def server_url(broker: BrokerAddress) -> str:
    return f"mqtt://server:{broker.users['server']}@{broker.host}:{broker.port}"


@dataclass(frozen=True, slots=True)
class Examined:
    """What the command said of one device."""

    code: int
    checks: dict[str, dict[str, str]]
    unreadable: list[str]
    junit_failures: set[str]
    text: str

    def rules(self, *verdicts: Verdict) -> set[str]:
        return {rule for rule, check in self.checks.items() if check["verdict"] in verdicts}

    @property
    def failed(self) -> set[str]:
        return self.rules(Verdict.FAILED)


def examine(device: Device, broker: BrokerAddress, dispenser_id: str, *, quick: bool) -> Examined:
    """Examine one device with the command, as its maker would, and end it."""
    junit = device.here / "junit.xml"
    command = [
        sys.executable, "-m", "simulator", "conformance", "--broker", "mqtt://by:environment@127.0.0.1",
        "--dispenser", dispenser_id, "--ask-command", device.ask, "--door-command", device.door,
        "--restart-command", device.restart, "--json", "--junit", str(junit), *["--quick"][: int(quick)],
    ]  # fmt: skip
    environment = os.environ | {"SIMULATOR_BROKER_URL": server_url(broker)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    finally:
        device.end()
    assert done.returncode in {0, 1}, done.stderr + (device.here / "log").read_text()[-2000:]
    value = json.loads(done.stdout)
    cases = ET.parse(junit).iter("testcase")
    return Examined(
        done.returncode,
        {check["rule"]: check for check in value["checks"]},
        value["unreadable"],
        {case.attrib["name"] for case in cases if case.find("failure") is not None},
        "\n".join(f"{check['verdict']} {check['rule']}: {check['seen']}" for check in value["checks"]),
    )
