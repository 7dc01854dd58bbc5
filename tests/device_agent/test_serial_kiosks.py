"""The real agent process with the drivers of real boards on ptys: kill -9 while the motor turns leaves one fact for every turn."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet_server.embedded import BrokerAddress, EmbeddedBroker
from protocol.codec import decode_fact
from protocol.messages import Outcome, Vend
from simulator.boards.physical_board import board_of
from simulator.conformance.checklist import Checklist
from simulator.conformance.counterpart import Counterpart
from simulator.mqtt import Listener
from tests.conftest import scratch_directory
from tests.device_agent.lines import fafb_line, hdb1_line
from tests.device_agent.machines import Bench
from tests.simulator.bench import server_url

AGENT = """
dispenser_id = "HD-001"
outbox = "{here}/outbox.sqlite"
[broker]
host = "127.0.0.1"
port = {port}
username = "fleet"
password_file = "{here}/password"
tls = false
[board]
{board}
"""
FAFB = """driver = "device_agent.hal.fafb_board:open_board"
port = "{here}/port"
memory = "{here}/note.json"
"""
HDB1 = """driver = "device_agent.hal.modbus_board:open_board"
port = "{here}/port"
sensor_slave = 1
"""
PATIENCE_S = 30


class Kiosk:
    """`python -m device_agent` with a stock, on the pty at HERE/port."""

    def __init__(self, here: Path, board: str, broker: BrokerAddress | None = None) -> None:
        self.here = here
        bench = Bench(here / "outbox.sqlite").loaded(("GOOD", 5))
        bench.outbox.close()
        (here / "password").write_text(broker.users["fleet"] if broker else "nobody asks")
        self.config = here / "agent.toml"
        port = broker.port if broker else 1
        self.config.write_text(AGENT.format(here=here, port=port, board=board.format(here=here)))
        self.process = self.started()

    def started(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "device_agent", "--config", str(self.config)])

    def power_cut(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self.started()

    def vends(self) -> list[Vend]:
        database = sqlite3.connect(self.here / "outbox.sqlite")
        facts = [decode_fact(line) for (line,) in database.execute("SELECT line FROM facts ORDER BY seq")]
        database.close()
        return [fact for fact in facts if isinstance(fact, Vend)]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0


def until(holds: Callable[[], Any]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_a_controller_that_remembers_nothing_is_settled_by_the_drivers_note() -> None:
    # The motor turns until an agent can be back on a busy machine, too: the controller repeats its result for a second only.
    with scratch_directory() as here, fafb_line(here, board_of(vend_s=(5.0, 5.0)), poll_s=0.2) as (_, board, wire):
        board.load(1, "GOOD", 5)
        kiosk = Kiosk(here, FAFB)
        until(lambda: wire.heard > 3)
        wire.press(1)
        until(lambda: board.turns)
        board.vend_s = (0.5, 0.5)
        kiosk.power_cut()
        until(lambda: [vend.outcome for vend in kiosk.vends()] == [Outcome.DELIVERED])
        wire.press(1)
        until(lambda: len(kiosk.vends()) == 2)
        kiosk.stop()
        first, second = kiosk.vends()
        assert (first.slot, first.lot, second.outcome) == (1, "GOOD", Outcome.DELIVERED)
        assert second.board_sequence == (first.board_sequence or 0) + 1
        assert (board.turns, len(board.coils[1])) == (2, 3)


def test_a_board_with_a_memory_is_asked_for_its_stored_result() -> None:
    """It has no keypad, so the vends are ordered."""
    with (
        scratch_directory() as here,
        EmbeddedBroker(here / "broker") as broker,
        hdb1_line(here, board_of(vend_s=(1.0, 1.0))) as (_, board, _),
    ):
        board.load(1, "GOOD", 5)
        listener = Listener(server_url(broker), "HD-001")
        server = Counterpart(listener, "HD-001", Checklist())
        listener.start()
        kiosk = Kiosk(here, HDB1, broker)
        assert server.until(lambda: server.known, PATIENCE_S)
        server.order("test_vend", slot=1)
        assert server.until(lambda: board.turns, PATIENCE_S)
        former = server.session
        kiosk.power_cut()
        assert server.until(lambda: server.session > former, PATIENCE_S)
        until(lambda: [vend.outcome for vend in kiosk.vends()] == [Outcome.DELIVERED])
        server.order("test_vend", slot=1)
        until(lambda: len(kiosk.vends()) == 2)
        kiosk.stop()
        listener.stop()
        first, second = kiosk.vends()
        assert (first.slot, first.lot, first.test, second.outcome) == (1, "GOOD", True, Outcome.DELIVERED)
        assert (first.life_count, second.life_count) == (1, 2)
        assert second.board_sequence == (first.board_sequence or 0) + 1
        assert (board.turns, board.life_count, len(board.coils[1])) == (2, 2, 3)
