"""A machine without a server: its card, its board's file, and its agent as a process that is forked, traced and killed."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from device_agent.__main__ import main
from device_agent.outbox import Outbox
from protocol.codec import decode_fact
from protocol.messages import Fact
from simulator.boards.file_board import FileBoard, do
from tests.conftest import free_port
from tests.device_agent.machines import Bench
from tests.reliability.forks import Child, until

PACKS: Final = 5
CONFIG: Final = """
dispenser_id = "HD-001"
outbox = "{here}/outbox.sqlite"
[broker]
host = "127.0.0.1"
port = {port}
tls = false
[board]
driver = "simulator.boards.file_board:open_board"
state = "{here}/board.json"
"""


class Kiosk:
    """Slot 1 holds PACKS packs of the lot GOOD, in its coil and in its book."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.outbox = directory / "outbox.sqlite"
        bench = Bench(self.outbox)
        bench.loaded(("GOOD", PACKS))
        bench.outbox.close()
        self.config = directory / "agent.toml"
        self.config.write_text(CONFIG.format(here=directory, port=free_port()))
        self.board = FileBoard({"state": str(directory / "board.json")})
        do(self.board, "load", f"1:GOOD:{PACKS}")
        with self.board.state() as state:
            state["vend_ms"] = 5

    def start(self) -> Child:
        """Start the agent; returns once its screen says what state it is in."""
        with self.board.state() as state:
            state["screen"] = []
        child = Child(lambda: main(["--config", str(self.config)]), self.directory / "agent.log").go()
        until(lambda: self.board.state_now()["screen"] or child.ended() is not None, f"the agent starts {self.log()}")
        return child

    def serves(self) -> bool:
        """Whether the machine is ready, and the board has handed everything over."""
        state = self.board.state_now()
        return state["screen"][:1] == ["ready"] and not state["inbox"]

    def settled(self) -> list[Fact]:
        """Start the agent once more, let it settle what was left open, stop it; returns all facts.

        What was asked of an agent that died before it heard it is done now, and may be cut off by the stop: then once more.
        """
        while True:
            child = self.start()
            until(lambda: self.serves() or child.ended() is not None, f"the agent settles {self.log()}")  # noqa: B023 - called at once
            child.terminate()
            assert child.wait() == 0, self.log()
            if not self.opened("intents"):
                return self.facts()

    def facts(self) -> list[Fact]:
        return [decode_fact(line) for line in self.opened("lines")]

    def kinds_now(self) -> set[type]:
        """The kinds of facts in the file, read beside the agent that writes it."""
        with closing(sqlite3.connect(f"file:{self.outbox}?mode=ro", uri=True, timeout=20)) as db:
            return {type(decode_fact(line)) for (line,) in db.execute("SELECT line FROM facts")}

    def opened(self, what: str) -> Any:
        outbox = Outbox(self.outbox, "HD-001")
        found = list(outbox.lines_after(0)) if what == "lines" else getattr(outbox, what)
        outbox.close()
        return found

    def log(self) -> str:
        path = self.directory / "agent.log"
        return path.read_text()[-2000:] if path.exists() else ""
