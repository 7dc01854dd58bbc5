"""What the ingest benchmarks run against: a database, a broker of either kind, one ingest process, and its machines."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, Literal

from fleet_server.database import Database
from fleet_server.devices import fleet
from fleet_server.embedded import BrokerAddress, EmbeddedBroker, EmbeddedPostgres
from fleet_server.ledger import lots
from fleet_server.schema import migrate
from protocol.codec import decode_ack
from protocol.messages import DoorClosed, DoorOpened, LotPacks, Refill, SlotPlan
from tests.benchmarks.bare_mqtt import BareClient
from tests.conftest import free_port, scratch_directory
from tests.fleet_server.machine import Machine

MACHINES: Final = 200
SLOTS: Final = 4
Messages = list[tuple[str, bytes]]
BrokerKind = Literal["nats", "mosquitto"]

# Everything that Debian's default drops is kept: as many messages as come, in memory.
TUNED: Final = """listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_inflight_messages 0
max_queued_messages 0
max_queued_bytes 0
"""


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes and all their descendants have used."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(entry.name)
            children.setdefault(int(fields[1]), []).append(pid)
            # A child that was waited for stands in its parent's cutime and cstime.
            used[pid] = sum(int(fields[place]) for place in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
    total, waiting = 0.0, list(pids)
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0.0)
        waiting += children.get(pid, [])
    return total


def broker_kinds() -> list[BrokerKind]:
    """Return the brokers that are here."""
    return ["nats", "mosquitto"] if mosquitto_binary() else ["nats"]


def mosquitto_binary() -> str | None:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class TunedMosquitto:
    """Debian's Mosquitto with its limits taken away."""

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        configuration = directory / "mosquitto.conf"
        configuration.write_text(TUNED.format(port=self._port))
        self._command = [str(mosquitto_binary()), "-c", str(configuration)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> BrokerAddress:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        return BrokerAddress("127.0.0.1", self._port, {})

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(10)


class Bench:
    """Database, broker and one ingest process."""

    def __init__(self, directory: Path, kind: BrokerKind) -> None:
        self._directory = directory
        self.postgres = EmbeddedPostgres(directory / "postgres")
        postgres = self.postgres.start()
        self.owner_url, self.database_url = postgres.url, postgres.application_url
        self.broker = EmbeddedBroker(directory / "broker") if kind == "nats" else TunedMosquitto(directory)
        self.address: BrokerAddress = self.broker.start()
        migrate(self.owner_url)
        database = Database(self.database_url)
        with database.begin() as connection:
            plant(connection)
        database.close()
        self.machines = [Machine(f"HD-{n:03d}") for n in range(1, MACHINES + 1)]
        self.port = free_port()
        self.server = self._serve()
        self._await_ready()

    def _await_ready(self) -> None:
        """Nobody keeps what is published before the server has subscribed."""
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2).close()
            except OSError:
                assert time.monotonic() < deadline, (self._directory / "server.log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return

    def _serve(self) -> "subprocess.Popen[bytes]":
        password = self._directory / "broker-password"
        password.write_text(self.address.users.get("server", "none"))
        settings = {
            "DATABASE_URL": self.database_url, "BROKER_URL": f"mqtt://{self.address.host}:{self.address.port}",
            "BROKER_USERNAME": "server", "BROKER_PASSWORD_FILE": str(password), "ROLES": '["ingest"]',
            "PORT": str(self.port),
        }  # fmt: skip
        environment = os.environ | {f"DISPENSER_FLEET_{name}": value for name, value in settings.items()}
        with (self._directory / "server.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "fleet_server", "serve"], env=environment, stderr=log)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(20)
        self.broker.stop()
        self.postgres.remove()

    def cut(self, facts: int, per_batch: int) -> Messages:
        """Let the machines go on, in turns, by `facts` vends in all, cut into batches of `per_batch`."""
        messages: Messages = []
        while len(messages) * per_batch < facts:
            machine = self.machines[len(messages) % MACHINES]
            first = len(machine.lines) + 1
            for number in range(per_batch):
                machine.vend(slot=(first + number) % SLOTS + 1, lot="L1")
            messages.append((f"fleet/v1/{machine.dispenser_id}/facts", machine.batch(first)))
        return messages

    def load(self) -> None:
        """Fill every slot; the books of a stocked fleet are what vends are booked in."""
        messages: Messages = []
        for machine in self.machines:
            machine.tell(DoorOpened(**machine.when(), session="111111", authorised=True))
            for slot in range(1, SLOTS + 1):
                lot = LotPacks(lot="L1", packs=10_000)
                machine.tell(Refill(**machine.when(), slot=slot, product="CONDOM-M", added=[lot], session="111111"))
            machine.tell(DoorClosed(**machine.when(), session="111111", open_ms=1_000))
            messages.append((f"fleet/v1/{machine.dispenser_id}/facts", machine.batch(1)))
        self.through(messages)

    def through(self, messages: Messages) -> tuple[float, dict[str, float]]:
        """Publish, and wait until the server has acknowledged everything; returns seconds, and CPU seconds by part."""
        parts = {"worker": [self.server.pid], "database": [self.postgres.pid or 0], "broker": [self.broker.pid or 0]}
        before = {name: cpu_seconds(pids) for name, pids in parts.items()}
        seconds = self._published(messages, 0, lambda _stream, _through: None)
        return seconds, {name: cpu_seconds(pids) - before[name] for name, pids in parts.items()}

    def latencies(self, messages: Messages, rate: float) -> list[float]:
        """Publish at a steady rate; returns seconds from when each message was due until the server's ack of it."""
        due: dict[str, list[float]] = {}
        behind = {machine.stream_id: 0 for machine in self.machines}
        numbers = {machine.dispenser_id: machine.stream_id for machine in self.machines}
        for place, (topic, _) in enumerate(messages):
            due.setdefault(numbers[topic.split("/")[2]], []).append(place / rate)
        for machine in self.machines:
            behind[machine.stream_id] = len(machine.lines) - len(due.get(machine.stream_id, []))
        found: list[float] = []

        def heard(stream_id: str, through: int) -> None:
            while behind[stream_id] < through and due.get(stream_id):
                behind[stream_id] += 1
                found.append(time.monotonic() - self._began - due[stream_id].pop(0))

        self._published(messages, rate, heard)
        return found

    def _published(self, messages: Messages, rate: float, heard: Callable[[str, int], None]) -> float:
        listener = BareClient(self.address, "fleet", "bench-acks")
        listener.subscribe("fleet/v1/+/ack")
        publisher = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.publisher", self.address.host, str(self.address.port),
             self.address.users.get("fleet", ""), str(rate)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert publisher.stdin
        assert publisher.stdout
        for topic, payload in messages:
            publisher.stdin.write(b"%d %d\n" % (len(topic), len(payload)) + topic.encode() + payload)
        open_streams = {machine.stream_id: len(machine.lines) for machine in self.machines}
        publisher.stdin.close()
        # It says when it begins, on the clock that all processes of a machine share.
        self._began = float(publisher.stdout.readline())
        while open_streams:
            assert listener.ready(60), f"{len(open_streams)} streams are not acknowledged"
            for payload in listener.receive():
                ack = decode_ack(payload)
                assert ack.kind == "ack", ack
                heard(ack.stream_id, ack.through_seq)
                if open_streams.get(ack.stream_id) == ack.through_seq:
                    del open_streams[ack.stream_id]
        seconds = time.monotonic() - self._began
        publisher.wait(30)
        listener.close()
        return seconds


def plant(connection: Any) -> None:
    """Register what the benchmark's machines need."""
    product = fleet.Product("CONDOM-M", "避孕套", "Condom", "盒", "box", 10, 120, 60)
    fleet.add_products(connection, [product])
    lots.record_lot(connection, "CONDOM-M", "L1", date(2030, 1, 1), datetime.now(UTC))
    for number in range(1, MACHINES + 1):
        dispenser = fleet.Dispenser(
            f"HD-{number:03d}", "点位", "Site", "街道", "Street", "370211001", "community", "indoor", 36.0, 120.1,
            0, 24, "HUANGDAO", None, None, "",
        )  # fmt: skip
        fleet.add_dispensers(connection, [dispenser])
        plans = [SlotPlan(slot=slot, product="CONDOM-M", capacity=20) for slot in range(1, SLOTS + 1)]
        fleet.add_slots(connection, dispenser.id, plans)


@contextmanager
def bench(kind: BrokerKind) -> Iterator[Bench]:
    with scratch_directory() as directory:
        directory.chmod(0o755)  # Mosquitto gives up the rights of root
        running = Bench(directory, kind)
        try:
            running.load()
            yield running
        finally:
            running.close()
