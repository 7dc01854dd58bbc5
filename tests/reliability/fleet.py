"""Real agent processes on simulated boards, against a real installation: what the fault matrix injects its faults into."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fleet_server.clock import system_now
from fleet_server.database import Database, DatabaseError, DatabaseUnavailableError
from fleet_server.devices import fleet as devices
from fleet_server.devices import outgoing, outgoing_store
from fleet_server.embedded import BrokerAddress
from fleet_server.ledger import depot
from fleet_server.ledger.operations import SlotOperation, book
from fleet_server.ledger.telling import tell_desired
from fleet_server.seed import DEPOT
from protocol.messages import SlotPlan
from protocol.topics import Channel
from simulator.boards.file_board import FileBoard, do
from tests.installation import BrokerProcess, Installation
from tests.reliability.invariants import Witness, await_caught_up, check, ledger_of
from tests.reliability.network import Namespace
from tests.reliability.proxy import FaultProxy

SLOTS: Final = (1, 2, 3, 4)
PRODUCT: Final = "CONDOM-M"
PACKS: Final = 60
VEND_MS: Final = 5
ORDERS_A_ROUND: Final = 0.15
_libc = ctypes.CDLL(None)


def _dies_with_us() -> None:
    """Run in the child: the kernel kills it when this process dies, so that nothing is left behind."""
    _libc.prctl(1, signal.SIGKILL)


class Machine:
    """One dispenser: its configuration, its board's file, its agent process."""

    def __init__(self, dispenser_id: str, directory: Path, namespace: Namespace | None) -> None:
        self.id, self._namespace = dispenser_id, namespace
        self.directory = directory / dispenser_id
        self.directory.mkdir()
        self.config = self.directory / "agent.toml"
        self.outbox = self.directory / "outbox.sqlite"
        self.board = FileBoard({"state": str(self.directory / "board.json")})
        with self.board.state() as state:
            state["vend_ms"] = VEND_MS
        self.process: subprocess.Popen[bytes] | None = None
        self.witness = Witness(dispenser_id, self.outbox, self.coils, self.unlocked)

    def configure(self, host: str, port: int, password_file: Path | None, **more: int) -> None:
        """Write the configuration; `more` are keys of the broker's section, `ack_timeout_s` and `silence_s_max` of the top."""
        times = {"ack_timeout_s": more.pop("ack_timeout_s", 1), "silence_s_max": more.pop("silence_s_max", 4)}
        login: dict[str, object] = (
            {} if password_file is None else {"username": "fleet", "password_file": str(password_file)}
        )
        broker = {"host": host, "port": port, "tls": False, "keepalive_s": 2, "reconnect_s_max": 1} | login | more
        board = {"driver": "simulator.boards.file_board:open_board", "state": str(self.directory / "board.json")}
        top = {"dispenser_id": self.id, "outbox": str(self.outbox)} | times
        lines = [f"{name} = {_toml(value)}" for name, value in top.items()]
        for section, values in (("broker", broker), ("board", board)):
            lines += [f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
        self.config.write_text("\n".join(lines))

    def start(self) -> None:
        command = [sys.executable, "-m", "device_agent", "--config", str(self.config)]
        if self._namespace is not None:
            command = self._namespace.command(*command)
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=_dies_with_us,  # noqa: PLW1509 - it calls the kernel only
                env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            )  # fmt: skip

    def kill(self) -> None:
        """Kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stacks(self) -> str:
        """End it so that it tells where each of its threads stood."""
        if self.process is not None and self.runs:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(10)
        return f"{self.id} ended with {self.process and self.process.returncode}\n{self.log()}"

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        path = self.directory / "agent.log"
        return path.read_text()[-3000:] if path.exists() else ""

    # ------------------------------------------------------------ the world at the machine

    def ask(self, slot: int) -> None:
        """A visitor asks for a pack."""
        do(self.board, "ask", str(slot))

    def ask_often(self, slots: Sequence[int]) -> None:
        """Many at once, in one change of the board's file: all but the first find it busy, and each is a fact."""
        with self.board.state() as state:
            state["inbox"] += [["ask", str(slot)] for slot in slots]

    def coils(self) -> dict[int, list[str]]:
        return {int(slot): coil for slot, coil in self.board.state_now()["coils"].items()}

    def packs(self) -> int:
        return sum(map(len, self.coils().values()))

    def unlocked(self) -> int:
        return int(self.board.state_now().get("unlocked", 0))

    def is_connected(self, port: int) -> bool:
        """Whether it holds a connection to that port that its kernel calls established."""
        assert self.process is not None
        own = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                own.add(link.readlink().name)
            except OSError:
                continue
        rows = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        columns = [row.split() for row in rows]
        return any(c[2].endswith(f":{port:04X}") and c[3] == "01" and f"socket:[{c[9]}]" in own for c in columns)


class Fleet:
    """The machines of one installation. A test takes it healthy, hurts it, and gives it back through `settle`."""

    def __init__(self, installation: Installation, namespace: Namespace | None, prefix: str, machines: int) -> None:
        self.installation, self.namespace = installation, namespace
        self.url = installation.database_url
        self.proxy: FaultProxy | None = None
        self._tour = f"T-{prefix}"
        self.machines = [Machine(f"{prefix}-{n + 1:02d}", installation.directory, namespace) for n in range(machines)]
        register(self.url, [machine.id for machine in self.machines])
        self.direct()
        self.start()
        self.until(self.all_online, "every machine comes online")
        self.load()

    @property
    def witnesses(self) -> list[Witness]:
        return [machine.witness for machine in self.machines]

    @property
    def address(self) -> tuple[str, int]:
        return self.installation.address.host, self.installation.address.port

    def configure(self, host: str, port: int, **more: int) -> None:
        """Write every machine's configuration; takes effect at its next start."""
        users, password_file = self.installation.address.users, self.installation.directory / "fleet-password"
        password_file.write_text(users.get("fleet", ""))
        for machine in self.machines:
            machine.configure(host, port, password_file if users else None, **more)

    def use_broker(self, broker: BrokerProcess, address: BrokerAddress) -> None:
        """Move server and machines to another broker."""
        self.installation.broker, self.installation.address = broker, address
        (self.installation.directory / "broker-password").write_text(address.users.get("server", ""))
        self.installation.kill("server")
        self.installation.restart("server")
        self.installation.await_ready()
        self.direct()
        self.restart()

    def direct(self, **more: int) -> None:
        """Let the machines speak with the broker itself, from their next start on."""
        self.configure(self.address[0], self.address[1], **more)

    def start(self) -> None:
        for machine in self.machines:
            if not machine.runs:
                machine.start()

    def restart(self) -> None:
        for machine in self.machines:
            machine.kill()
        self.start()

    def stop(self) -> None:
        for machine in self.machines:
            machine.kill()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None

    def through_proxy(self, seed: int, **more: int) -> FaultProxy:
        """Restart the machines with a fault proxy between them and the broker."""
        self.proxy = FaultProxy(self.address[0], self.address, seed)
        self.configure(self.address[0], self.proxy.port, **more)
        self.restart()
        self.until(self.all_online, "every machine comes online through the proxy")
        return self.proxy

    # ------------------------------------------------------------ looking

    def until(self, holds: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
        """Wait for something; without `seconds` a generous limit that only catches hangs."""
        seconds = 60 + 5 * len(self.machines) if seconds is None else seconds
        ends_s = time.monotonic() + seconds
        while True:
            try:
                if found := holds():
                    return found
            except Exception as error:  # noqa: BLE001 - a database that was killed is asked again
                problem: object = error
            else:
                problem = None
            if time.monotonic() > ends_s:
                stacks = "\n".join(machine.stacks() for machine in self.machines)
                raise AssertionError(f"waited {seconds:.0f} s until {what}; {problem or ''}\n{stacks}")
            time.sleep(0.1)

    def online(self) -> dict[str, tuple[bool, int]]:
        """Whether each machine is online as the server sees it, and its session."""
        database = Database(self.url)
        try:
            with database.begin() as connection:
                presence = devices.presence(connection)
        finally:
            database.close()
        return {m.id: (p.online, p.session) if (p := presence.get(m.id)) else (False, 0) for m in self.machines}

    def all_online(self) -> bool:
        return all(is_online for is_online, _ in self.online().values())

    # ------------------------------------------------------------ work

    def load(self) -> None:
        """A visit to every machine: the door opens, packs go in, the phone's entries are booked, the door closes."""
        for machine in self.machines:
            do(machine.board, "key", "on")
            do(machine.board, "door", "open")
        codes = {machine.id: self._door_code(machine) for machine in self.machines}
        operations, now = [], system_now()
        database = Database(self.url)
        with database.begin() as connection:
            line = max(
                (line for line in depot.depot_stock(connection, DEPOT) if line.product == PRODUCT),
                key=lambda row: row.units,
            )
            packs = PACKS * len(SLOTS) * len(self.machines)
            step = int(now.timestamp())
            van = f"van/{self._tour}"
            stock = [depot.StockLine(PRODUCT, line.lot, packs)]
            # The depot of the seed has not enough for many visits to a whole fleet.
            depot.receive(connection, f"receipt-{self._tour}-{step}", DEPOT, stock, "test", now)
            depot.pick(connection, f"pick-{self._tour}-{step}", DEPOT, van, stock, "test", now)
            for machine in self.machines:
                for slot in SLOTS:
                    do(machine.board, "load", f"{slot}:{line.lot}:{PACKS}")
                    operations.append(
                        SlotOperation(
                            f"{machine.id}-{codes[machine.id]}-{slot}", machine.id, None, slot, "refill",
                            codes[machine.id], slot, now, "test", van, PRODUCT, line.lot, PACKS,
                        )
                    )  # fmt: skip
            book(connection, operations, now)
        database.close()
        for machine in self.machines:
            do(machine.board, "door", "closed")
            do(machine.board, "key", "off")
        self.until(self.ledger_agrees, "the ledger agrees with the coils")
        await_caught_up(self.url, self.witnesses)

    def _door_code(self, machine: Machine) -> str:
        return str(self.until(lambda: (machine.board.state_now()["screen"] or ["", ""])[1], "the screen shows a code"))

    def ledger_agrees(self) -> bool:
        database = Database(self.url)
        try:
            with database.begin() as connection:
                return all(
                    {s: q for s, q in ledger_of(connection, m.id).items() if q}
                    == {s: c for s, c in m.coils().items() if c}
                    for m in self.machines
                )
        finally:
            database.close()

    def work(self, throw: random.Random, facts: int, pause_s: tuple[float, float] = (0.0, 0.1)) -> int:
        """Visitors come to all machines, `facts` of them to each, and now and then a door is ordered to open; returns packs given."""
        before = sum(machine.packs() for machine in self.machines)
        for _ in range(facts):
            for machine in self.machines:
                machine.ask(throw.choice(SLOTS))
            if throw.random() < ORDERS_A_ROUND:
                with suppress(DatabaseError, DatabaseUnavailableError):  # it may be what was killed
                    self.order_unlock(throw.choice(self.machines), lives_s=throw.choice([2, 60]))
            time.sleep(throw.uniform(*pause_s))
        return before - sum(machine.packs() for machine in self.machines)

    def order_unlock(self, machine: Machine, lives_s: int = 60) -> str:
        """The server orders a door to open."""
        database = Database(self.url)
        try:
            with database.begin() as connection:
                return outgoing.order(connection, machine.id, "unlock", lives_s=lives_s, now=system_now())
        finally:
            database.close()

    def idle(self) -> bool:
        """Whether every board has told its agent everything, and every agent has kept it."""
        if any(machine.board.state_now()["inbox"] for machine in self.machines if machine.runs):
            return False
        before = [witness.stream().last_seq for witness in self.witnesses]
        time.sleep(0.3)
        return before == [witness.stream().last_seq for witness in self.witnesses]

    def settle(self, note: str) -> float:
        """The fault is healed: everything catches up in time, and I1 to I6 hold; returns the seconds that it took."""
        for machine in self.machines:
            assert machine.runs, f"{note}: the agent of {machine.id} has ended\n{machine.log()}"
        self.until(self.idle, "visitors are served")
        try:
            took_s = await_caught_up(self.url, self.witnesses, note)
        except AssertionError as error:
            raise AssertionError(f"{error}; the server says\n{self._server_stacks()}") from None
        before = [witness.stream().last_seq for witness in self.witnesses]
        try:
            check(self.url, self.witnesses, note)
        except AssertionError:
            if before == [witness.stream().last_seq for witness in self.witnesses]:
                raise
            return self.settle(note)  # a machine was still serving: what was compared were two moments
        return took_s

    def _server_stacks(self) -> str:
        """End the server so that it tells where each of its threads stood."""
        self.installation.server.send_signal(signal.SIGABRT)
        self.installation.server.wait(20)
        return (self.installation.directory / "server.log").read_text()[-6000:]

    def mend(self) -> None:
        """Before the next test: all parts run, no fault is left, the machines speak with the broker directly."""
        if self.namespace is not None:
            self.namespace.heal()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None
            self.direct()
            self.restart()
        if self.installation.server.poll() is not None:
            self.installation.restart("server")
        self.installation.await_ready()
        self.start()
        if min(machine.packs() for machine in self.machines) < PACKS * len(SLOTS) / 2:
            self.load()
        self.until(self.all_online, "every machine is online before a test")


def register(database_url: str, dispenser_ids: Sequence[str]) -> None:
    """Register machines that are open day and night, and tell them their planogram."""
    database = Database(database_url)
    with database.begin() as connection:
        for dispenser_id in dispenser_ids:
            dispenser = devices.Dispenser(
                dispenser_id, "点位", "Site", "街道", "Street", "370211001", "dormitory", "indoor", 36.0, 120.1,
                0, 24, DEPOT, None, None, "",
            )  # fmt: skip
            devices.add_dispensers(connection, [dispenser])
            plans = [SlotPlan(slot=slot, product=PRODUCT, capacity=PACKS) for slot in SLOTS]
            devices.add_slots(connection, dispenser_id, plans)
        tell_desired(connection, list(dispenser_ids), system_now())
        for dispenser_id in dispenser_ids:
            # Visitors come faster here than anywhere: no pause between two packs.
            desired = outgoing_store.latest_payloads(connection, [dispenser_id], Channel.DESIRED).get(dispenser_id, {})
            unlimited = {"limits": {"cooldown_s": 0, "daily_packs_max": 1000}}
            outgoing.tell(connection, Channel.DESIRED, {dispenser_id: desired | unlimited}, system_now())
    database.close()


def pause(pid: int) -> None:
    """SIGSTOP: the process keeps its sockets and says nothing."""
    os.kill(pid, signal.SIGSTOP)


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else f'"{value}"'


__all__ = ["Fleet", "Machine", "go_on", "pause", "register"]
