"""`dispenser-fleet demo`: database, broker, server and simulator on this machine, as processes of their own.

The simulator is started, never imported: it meets the server over the broker and the REST API, as machines and phones do.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from fleet_server.auth import service as auth
from fleet_server.clock import ClockState, system_now
from fleet_server.database import Database
from fleet_server.devices.fleet import list_dispensers
from fleet_server.embedded import BrokerAddress, EmbeddedBroker, EmbeddedError, EmbeddedPostgres
from fleet_server.errors import InputError
from fleet_server.jobs.store import write_clock
from fleet_server.ledger.audit import audit
from fleet_server.schema import migrate
from fleet_server.seed import DEPOT, seed
from fleet_server.server_process import ServerProcess, stop

RESTARTS_MAX: Final = 20
LOOK_EVERY_S: Final = 0.3
SPEED_MAX: Final = 10_000
PORT_MAX: Final = 65_535
ACCOUNTS: Final = ("administrator", "dispatcher", "supervisor", "restocker", "viewer")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    days: float
    seed: int
    speed: float
    port: int
    data_dir: Path
    exit: bool
    json: bool


def run(options: Options) -> int:
    """Show everything; returns the exit code."""
    if options.days < 0:
        raise InputError("days", options.days, "0 or more")
    if not 0 < options.speed <= SPEED_MAX:
        raise InputError("speed", options.speed, f"more than 0 and at most {SPEED_MAX}")
    if not 1 <= options.port <= PORT_MAX:
        raise InputError("port", options.port, f"1 to {PORT_MAX}")
    # Named for both: a shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return Demo(options).run()
    except KeyboardInterrupt:
        return 0
    except EmbeddedError as error:
        raise InputError(str(error.what), error.value, error.expected) from None


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


class Demo:
    """One run of the demo over one data directory."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._directory = options.data_dir.resolve()
        self._began_s = time.monotonic()
        self._parts: tuple[EmbeddedPostgres | EmbeddedBroker, ...] = ()
        self._server: ServerProcess | None = None
        self._restarts = 0

    def run(self) -> int:
        options = self._options
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "data_dir", str(self._directory), f"a directory that can be made ({error.strerror})"
            ) from None
        # A history that breaks off is begun anew, so that nothing needs to wait for the disk until it is played.
        postgres = EmbeddedPostgres(self._directory / "postgres", durable=self._is_played())
        broker = EmbeddedBroker(self._directory / "broker")
        try:
            self._say("starting PostgreSQL ...")
            anew = self._was_interrupted()
            if anew:
                self._say("the last history was not played to its end; beginning it anew")
                postgres.remove()
                shutil.rmtree(self._machines)
            database, address = postgres.start(), broker.start(clean=anew)
            database_url = database.application_url
            migrate(database.url)
            is_new = self._prepare(database_url)
            self._server = ServerProcess(self._directory, database_url, address, self._options.port)
            self._server.start()
            self._server.await_ready()
            self._parts = (postgres, broker)
            if is_new or options.exit:
                self._play(address, options.days if is_new else 0)
            if options.exit:
                return self._report(database_url)
            if is_new:
                postgres = self._made_durable(postgres, broker)
                # Its connections ended with the PostgreSQL of before: it notices at the first question.
                self._server.await_ready()
            return self._live(address)
        finally:
            if self._server is not None:
                self._server.stop()
            broker.stop()
            postgres.stop()

    @property
    def _machines(self) -> Path:
        return self._directory / "machines"

    def _was_interrupted(self) -> bool:
        """Half a history is worth nothing: the machines' physical state is kept at its end."""
        return self._machines.exists() and not self._is_played()

    def _is_played(self) -> bool:
        return (self._machines / "fleet.json").exists()

    def _made_durable(self, postgres: EmbeddedPostgres, broker: EmbeddedBroker) -> EmbeddedPostgres:
        """Put what was played on the disk; from here on every commit is there before anybody hears of it."""
        self._parts = ()
        postgres.stop()
        os.sync()
        durable = EmbeddedPostgres(self._directory / "postgres")
        durable.start()
        self._parts = (durable, broker)
        return durable

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr if self._options.json else sys.stdout, flush=True)

    # ------------------------------------------------------------ parts

    def _look_after(self) -> None:
        """Start again what has ended by itself, in the order in which the parts need each other."""
        for part in self._parts:
            if part.ended:
                self._note_restart(part.name)
                part.stop()
                part.start()
        if self._server is not None and self._server.ended:
            self._note_restart("server")
            self._server.start()

    def _note_restart(self, name: str) -> None:
        self._restarts += 1
        if self._restarts > RESTARTS_MAX:
            raise InputError(name, "ended again and again", f"one that runs; see the logs in {self._directory}")
        self._say(f"the {name} has ended; starting it again ...")

    def _prepare(self, database_url: str) -> bool:
        """Make sites and users; returns whether there is no history yet."""
        database = Database(database_url)
        passwords = self._passwords()
        with database.begin() as connection:
            is_new = not list_dispensers(connection)
            if is_new:
                began = system_now() - timedelta(days=self._options.days)
                seed(connection, began, demo=True)
                write_clock(connection, ClockState("played", began, system_now()))
            for name in ACCOUNTS:
                auth.add_user(
                    connection, name, name, passwords[name], system_now(), DEPOT if name == "restocker" else None
                )
        database.close()
        return is_new

    def _passwords(self) -> dict[str, str]:
        path = self._directory / "passwords.json"
        if not path.exists():
            text = json.dumps({name: secrets.token_urlsafe(9) for name in ACCOUNTS}, indent=2)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(text)
        passwords: dict[str, str] = json.loads(path.read_text())
        return passwords

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._options.port}"

    # ------------------------------------------------------------ the simulator

    def _simulator(self, broker: BrokerAddress, *arguments: str, **more: Any) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable, "-m", "simulator", arguments[0],
            "--broker", f"mqtt://{broker.host}:{broker.port}",
            "--server", self._url,
            "--password-file", str(self._directory / "passwords.json"),
            "--data-dir", str(self._machines),
            "--seed", str(self._options.seed),
            *arguments[1:],
        ]  # fmt: skip
        # By environment: a command line can be read by everybody on the machine.
        address = f"mqtt://fleet:{broker.users['fleet']}@{broker.host}:{broker.port}"
        return subprocess.Popen(
            command, env=os.environ | {"SIMULATOR_BROKER_URL": address}, start_new_session=True, **more
        )

    def _play(self, broker: BrokerAddress, days: float) -> None:
        self._say(f"playing {days:g} days of 42 dispensers through agents, broker and server ...")
        with (self._directory / "history.json").open("wb") as summary:
            simulator = self._simulator(broker, "run", "--json", "--days", str(days), stdout=summary)
            try:
                while (code := simulator.poll()) is None:
                    self._look_after()
                    time.sleep(LOOK_EVERY_S)
            finally:
                stop(simulator)
        if code != 0:
            raise InputError("history", f"exit code {code}", "a history whose books agree; see the lines above")

    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self._directory / "history.json").read_text() or "{}")
        return summary

    def _report(self, database_url: str) -> int:
        database = Database(database_url)
        with database.begin() as connection:
            report = audit(connection)
        database.close()
        line = self._summary() | {
            "seconds_in_all": round(time.monotonic() - self._began_s, 1),
            "movements": report.movements,
            "audit_differences": len(report.differences),
        }
        for difference in report.differences[:20]:
            print(difference, file=sys.stderr)
        print(
            json.dumps(line) if self._options.json else "\n".join(f"{k:>18}  {v}" for k, v in line.items()), flush=True
        )
        return 1 if report.differences or line.get("residual") else 0

    def _live(self, broker: BrokerAddress) -> int:
        self._post_live()
        simulator = self._simulator(broker, "live", "--speed", str(self._options.speed))
        passwords = self._passwords()
        self._say(f"\n  {self._url}   ready after {time.monotonic() - self._began_s:.0f} s\n")
        for name in ACCOUNTS:
            self._say(f"    {name:<14} {passwords[name]}")
        self._say(f"\n  everything is kept in {self._directory}; Ctrl-C stops it\n")
        try:
            while simulator.poll() is None:
                self._look_after()
                time.sleep(LOOK_EVERY_S)
            self._say("the simulator ended by itself; stopping")
        except KeyboardInterrupt:
            self._say("stopping ...")
            return 0
        else:
            return 1
        finally:
            stop(simulator)

    def _post_live(self) -> None:
        """Let the server's clock run on from where the history ended."""
        answer = self._post("/sign-in", {"user": "administrator", "password": self._passwords()["administrator"]}, None)
        self._post("/clock/live", {"speed": self._options.speed}, answer["token"])

    def _post(self, path: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(f"{self._url}/api/v1{path}", json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own address
                value: dict[str, Any] = json.load(answer)
                return value
        except OSError as error:
            log = self._directory / "server.log"
            raise InputError("server", f"{self._url}{path}: {error}", f"an answer; see {log}") from None
