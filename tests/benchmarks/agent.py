"""The agent process on its machine: resident memory after the start, and processor time, idle and at one vend a minute."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from fleet_server.embedded import EmbeddedBroker
from simulator.boards.file_board import FileBoard, do
from tests.device_agent.machines import Bench

IDLE_S: Final = 15
VENDS: Final = 20
RSS_MIB_AIM: Final = 40
CPU_PCT_AIM: Final = 1.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figure:
    """One measured figure and its aim."""

    name: str
    value: float
    unit: str
    aim: float | None = None

    def __str__(self) -> str:
        aim = "" if self.aim is None else f"   aim below {self.aim:g} {self.unit}"
        return f"{self.name:<44}{self.value:>9.2f} {self.unit}{aim}"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _memory_mib(pid: int) -> dict[str, float]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0]: int(line[1]) / 1024 for line in lines if line[0].startswith(("VmRSS", "Rss"))}


def _environment(directory: Path) -> dict[str, str]:
    """As its systemd unit starts it, its modules compiled: otherwise compiling is what would be measured."""
    compiled = {"PYTHONPYCACHEPREFIX": str(directory / "compiled"), "PYTHONOPTIMIZE": "2"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | compiled
    once = "import device_agent.__main__, simulator.boards.file_board"
    subprocess.run([sys.executable, "-c", once], env=environment, check=True)
    return environment


def run() -> Iterator[Figure]:
    """Measure a machine of forty slots, connected to a broker, as it stands in the street."""
    directory = Path(mkdtemp(prefix="dispenser-fleet-"))
    directory.chmod(0o711)
    with EmbeddedBroker(directory / "broker") as address:
        bench = Bench(directory / "outbox.sqlite")
        bench.loaded(("GOOD", VENDS + 5))
        bench.outbox.close()
        (directory / "password").write_text(address.users["fleet"])
        config = directory / "agent.toml"
        config.write_text(
            f'dispenser_id = "HD-001"\noutbox = "{directory}/outbox.sqlite"\n[broker]\nhost = "{address.host}"\n'
            f'port = {address.port}\ntls = false\nusername = "fleet"\npassword_file = "{directory}/password"\n'
            f'[board]\ndriver = "simulator.boards.file_board:open_board"\nstate = "{directory}/board.json"\n'
        )
        board = FileBoard({"state": str(directory / "board.json")})
        do(board, "load", f"1:GOOD:{VENDS + 5}")
        agent = subprocess.Popen(
            [sys.executable, "-m", "device_agent", "--config", str(config)], env=_environment(directory)
        )
        try:
            yield from _measure(agent.pid, board)
        finally:
            agent.terminate()
            agent.wait(20)
    shutil.rmtree(directory, ignore_errors=True)


def _measure(pid: int, board: FileBoard) -> Iterator[Figure]:
    while not board.state_now()["screen"]:
        time.sleep(0.05)
    time.sleep(5)
    started = _cpu_s(pid)
    yield Figure("resident after the start", _memory_mib(pid)["VmRSS:"], "MiB", RSS_MIB_AIM)
    time.sleep(IDLE_S)
    idle_pct = (_cpu_s(pid) - started) / IDLE_S * 100
    yield Figure("processor while idle", idle_pct, "% of a core")
    before, began_s = _cpu_s(pid), time.monotonic()
    for number in range(VENDS):
        do(board, "ask", "1")
        while board.state_now()["life_count"] <= number or board.state_now()["inbox"]:
            time.sleep(0.02)
        time.sleep(0.4)
    took_s = time.monotonic() - began_s
    vend_ms = ((_cpu_s(pid) - before) - idle_pct / 100 * took_s) / VENDS * 1000
    yield Figure("processor for one vend", vend_ms, "ms")
    yield Figure("processor at one vend a minute", idle_pct + vend_ms / 60_000 * 100, "% of a core", CPU_PCT_AIM)
    memory = _memory_mib(pid)
    yield Figure(f"resident after {VENDS} vends", memory["VmRSS:"], "MiB", RSS_MIB_AIM)
    yield Figure("of it anonymous", memory["RssAnon:"], "MiB")
