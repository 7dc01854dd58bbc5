"""The real agent process: its configuration, and one machine from motor to ledger through kill -9 of everything."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.ledger import depot
from fleet_server.workorders import service as workorders
from simulator.boards.file_board import FileBoard, do
from tests.conftest import scratch_directory
from tests.installation import BEGINS, PASSWORD, Installation

GOOD = """
dispenser_id = "HD-001"
outbox = "{here}/outbox.sqlite"
[broker]
host = "127.0.0.1"
port = 1
tls = false
[board]
driver = "simulator.boards.file_board:open_board"
state = "{here}/board.json"
"""


def agent(config: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "device_agent", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"HD-001"', '"hd/001"', "dispenser_id 'hd/001'"),
        ('dispenser_id = "HD-001"', "", "dispenser_id = None: expected a text"),
        ("port = 1", "port = 70000", "broker.port = 70000: expected a port from 1 to 65535"),
        ("tls = false", 'tls = "no"', "broker.tls = 'no': expected true or false"),
        ("tls = false", "tsl = false", "broker.tsl = False: expected one of"),
        ("[broker]", "[broker", "expected TOML"),
        ("file_board:open_board", "file_board:open_bord", "board.driver"),
        ("tls = false", 'password_file = "/nowhere/at/all"', "broker.password_file = '/nowhere/at/all'"),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_names_the_field(tmp_path: Path, old: str, new: str, words: str) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(GOOD.format(here=tmp_path).replace(old, new))
    process = agent(config)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert words in err
    assert "Traceback" not in err + out
    assert not (tmp_path / "outbox.sqlite").exists()


def test_the_example_configuration_is_one_that_is_read(tmp_path: Path) -> None:
    from device_agent.runtime import read_config

    example = (Path(__file__).parents[2] / "deploy" / "agent.example.toml").read_text()
    password = tmp_path / "password"
    password.write_text("x")
    config = tmp_path / "agent.toml"
    config.write_text(example.replace("/etc/dispenser-agent/broker-password", str(password)))
    assert read_config(config).broker.tls is True


def test_an_agent_without_a_broker_serves_and_stops_when_told(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(GOOD.format(here=tmp_path))
    process = agent(config)
    board = FileBoard({"state": str(tmp_path / "board.json")})
    deadline = time.monotonic() + 20
    do(board, "door", "open")
    while len(board.state_now().get("screen", [])) < 2 or not board.state_now()["screen"][1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code = board.state_now()["screen"][1]
    assert code.isdecimal()
    assert len(code) == 6
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


# ---------------------------------------------------------------- one machine, everything killed


@pytest.fixture
def installation() -> Iterator[Installation]:
    with scratch_directory() as directory:
        running = Installation(directory)
        yield running
        running.close()


class Kiosk:
    """One machine: its agent process and its board, and a restocker with a phone."""

    LOT_PACKS = 12

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        installation.await_ready()
        self.api = httpx2.Client(base_url=f"{installation.url}/api/v1", timeout=30)
        answer = self.api.post("/sign-in", json={"user": "administrator", "password": PASSWORD})
        self.api.headers["authorization"] = f"Bearer {answer.json()['token']}"
        # One that is open day and night.
        always = [d for d in self.api.get("/dispensers").json()["items"] if d["site_type"] == "dormitory"]
        self.id: str = always[0]["id"]
        here = installation.directory
        self.config = here / "agent.toml"
        (here / "fleet-password").write_text(installation.address.users["fleet"])
        self.config.write_text(
            GOOD.format(here=here)
            .replace("HD-001", self.id)
            .replace("port = 1\n", f'port = {installation.address.port}\nusername = "fleet"\n')
            .replace("tls = false", f'tls = false\npassword_file = "{here}/fleet-password"')
        )
        self.board = FileBoard({"state": str(here / "board.json")})
        self.process = agent(self.config)
        self.slots: list[int] = []

    def restart(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.process = agent(self.config)

    def detail(self) -> dict[str, Any]:
        value: dict[str, Any] = self.api.get(f"/dispensers/{self.id}").json()
        return value

    def until(self, condition: Any, seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except httpx2.TransportError:
                pass
            assert time.monotonic() < deadline, self.board.state_now()
            time.sleep(0.1)

    def load(self) -> None:
        """A first visit: open, fill every slot, tell the phone's entries, close."""
        self.until(lambda: self.detail()["online"])
        slots = self.detail()["slots"]
        self.slots = [slot["slot"] for slot in slots]
        database = Database(self.installation.database_url)
        with database.begin() as connection:
            lots = {line.product: line.lot for line in depot.depot_stock(connection, "HUANGDAO")}
            picks = [workorders.PlannedPick(s["slot"], s["product"], lots[s["product"]], self.LOT_PACKS) for s in slots]
            stop = workorders.PlannedStop(self.id, [{"code": "first_load"}], picks)
            workorders.create(connection, "W-1", "P-1", "HUANGDAO", date(2026, 9, 21), [stop], BEGINS)
        database.close()
        lines = [
            {"dispenser_id": self.id, "slot": p.slot, "product": p.product, "lot": p.lot, "packs": p.planned}
            for p in picks
        ]
        assert self.api.post("/work-orders/W-1/pick", json={"operation_id": "pick-W-1", "lines": lines}).is_success
        assert self.api.post("/visits/W-1-01/arrive").is_success
        self.api.post("/visits/W-1-01/unlock")
        self.until(lambda: self.board.state_now().get("unlocked"))
        do(self.board, "door", "open")
        code = self.until(lambda: (self.board.state_now()["screen"] or ["", ""])[1])
        for pick in picks:
            do(self.board, "load", f"{pick.slot}:{pick.lot}:{pick.planned}")
        entered = {"session": code, "entered_at": system_now().isoformat(), "kind": "refill"}
        operations = [
            entered | {"operation_id": f"refill-{p.slot:04d}", "index": n, "slot": p.slot, "product": p.product, "lot": p.lot, "packs": p.planned}
            for n, p in enumerate(picks)
        ]  # fmt: skip
        results = self.api.post("/visits/W-1-01/operations", json={"operations": operations}).json()["results"]
        assert {result["verdict"] for result in results} <= {"booked", "waiting"}
        do(self.board, "door", "closed")
        self.until(lambda: not self.detail()["door_open"] and self.detail()["stock"] == self.LOT_PACKS * len(slots))

    def physical(self) -> dict[int, list[str]]:
        return {int(slot): coil for slot, coil in self.board.state_now()["coils"].items()}

    def ledger(self) -> dict[int, list[str]]:
        return {
            slot["slot"]: [run["lot"] for run in slot["queue"] for _ in range(run["packs"])]
            for slot in self.detail()["slots"]
        }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [31])
def test_one_machine_from_motor_to_ledger_survives_kill_9_of_every_process(
    installation: Installation, seed: int
) -> None:
    throw = random.Random(seed)
    kiosk = Kiosk(installation)
    kiosk.load()
    killed: Counter[str] = Counter()
    ends_s = time.monotonic() + 35
    while time.monotonic() < ends_s:
        for _ in range(throw.randint(1, 6)):
            do(kiosk.board, "ask", str(throw.choice(kiosk.slots)))
            time.sleep(throw.uniform(0.05, 0.35))
        part = throw.choice(["agent", "agent", "agent", "agent", "server", "broker", "postgres"])
        killed[part] += 1
        if part == "agent":
            kiosk.restart()
        else:
            installation.kill(part)
            installation.restart(part)
    installation.await_ready()
    kiosk.until(lambda: kiosk.ledger() == kiosk.physical(), 90)
    given = kiosk.LOT_PACKS * len(kiosk.slots) - sum(map(len, kiosk.physical().values()))
    assert given >= 15, f"seed {seed}: {killed}"
    assert kiosk.board.state_now()["life_count"] == given
    outcomes = Counter(
        json.loads(line)["outcome"] for line in facts_of(installation, kiosk.id) if json.loads(line)["kind"] == "vend"
    )
    assert outcomes["delivered"] == given, f"seed {seed}: {outcomes}, killed {killed}"
    assert outcomes["in_doubt"] == 0
    assert installation.audited().differences == []
    kiosk.process.terminate()
    assert kiosk.process.wait(20) == 0


def facts_of(installation: Installation, dispenser_id: str) -> list[bytes]:
    from sqlalchemy import text

    database = Database(installation.database_url)
    with database.begin() as connection:
        query = text("SELECT line FROM facts WHERE dispenser_id = :id ORDER BY stream_no, seq")
        lines = [bytes(line) for line in connection.execute(query, {"id": dispenser_id}).scalars()]
    database.close()
    return lines
