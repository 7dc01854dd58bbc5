"""`dispenser-fleet simulate`: scenarios against a server of their own, in one command, for everybody's CI.

PostgreSQL runs in a temporary directory. `python -m simulator scenario` is started, never imported; for every run it asks one
of the two factories below for a server with a database of its own: in its process, or served over a broker.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from fleet_server.auth import service as auth
from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.embedded import EmbeddedBroker, EmbeddedError, EmbeddedPostgres
from fleet_server.errors import InputError
from fleet_server.in_process import InProcessServer
from fleet_server.schema import copy_database, drop_database, migrate
from fleet_server.seed import DEPOT, rows_of, seed
from fleet_server.server_process import ServerProcess

PEOPLE: Final = {"administrator": None, "dispatcher": None, "restocker": DEPOT}
FACTORIES: Final = {
    "process": ("--in-process", "fleet_server.simulate:in_process"),
    "broker": ("--served", "fleet_server.simulate:served"),
}

INTERRUPTED: Final = 130

Over = Literal["process", "broker"]


@dataclass(frozen=True)
class Options:
    """What the command line says; `arguments` go to the simulator as they are."""

    names: Sequence[str]
    over: Over
    arguments: Sequence[str]


def over(value: str) -> Over:
    """Read how machines reach the server; raises InputError."""
    match value:
        case "process" | "broker":
            return value
        case _:
            raise InputError("over", value, "process or broker")


def run(options: Options) -> int:
    """Play; returns the simulator's exit code: 0 where everything holds, 1 where something does not, 2 for bad input."""
    signal.signal(signal.SIGTERM, _interrupt)
    directory = Path(tempfile.mkdtemp(prefix="dispenser-fleet-"))
    # PostgreSQL runs as another user when we are root.
    directory.chmod(0o711)
    postgres = EmbeddedPostgres(directory / "postgres", durable=False)
    try:
        address = postgres.start()
        migrate(address.url)
        _keep(directory / "databases.json", {"owner": address.url, "application": address.application_url})
        passwords = {name: secrets.token_urlsafe(12) for name in PEOPLE}
        _keep(directory / "passwords.json", passwords)
        database = Database(address.application_url)
        with database.begin() as connection:
            for name, depot in PEOPLE.items():
                auth.add_user(connection, name, name, passwords[name], system_now(), depot)
        database.close()
        return subprocess.run(_command(options, directory), check=False).returncode
    except KeyboardInterrupt:
        return INTERRUPTED
    except EmbeddedError as error:
        raise InputError(str(error.what), error.value, error.expected) from None
    finally:
        postgres.remove()
        shutil.rmtree(directory, ignore_errors=True)


def _interrupt(_number: int, _frame: object) -> None:
    """Whoever ends us wants the database and its directory gone as well."""
    raise KeyboardInterrupt


def _keep(path: Path, value: Mapping[str, str]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        json.dump(value, file)


def _command(options: Options, directory: Path) -> list[str]:
    flag, factory = FACTORIES[options.over]
    replay = "dispenser-fleet simulate" + (" --over broker" if options.over == "broker" else "")
    return [
        sys.executable, "-m", "simulator", "scenario", *options.names, *options.arguments, flag, factory,
        "--in-process-option", f"directory={directory}", "--password-file", str(directory / "passwords.json"),
        "--replay-as", replay,
    ]  # fmt: skip


# ---------------------------------------------------------------- what the simulator asks for, once for every run


class _Run:
    """A database of its own, that begins when the history begins."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.directory = Path(options["directory"])
        urls = json.loads((self.directory / "databases.json").read_text())
        self._owner_url = copy_database(urls["owner"], f"run_{secrets.token_hex(6)}")
        path = urlsplit(self._owner_url).path
        self.database_url = urlsplit(urls["application"])._replace(path=path).geturl()
        database = Database(self.database_url)
        with database.begin() as connection:
            seed(
                connection,
                datetime.fromisoformat(options["begins"]),
                site_rows=rows_of(options["dispensers"].split(",")),
            )
        database.close()

    def drop(self) -> None:
        drop_database(self._owner_url)


class _InProcess(InProcessServer):
    def __init__(self, run: _Run) -> None:
        super().__init__(run.database_url)
        self._run = run

    def close(self) -> None:
        super().close()
        self._run.drop()


def in_process(options: Mapping[str, str]) -> InProcessServer:
    """Make a server in this process; `directory`, `begins` and `dispensers` are its options."""
    return _InProcess(_Run(options))


class Served:
    """A server over a broker, both processes of their own; addresses and password are for the simulator."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._broker = EmbeddedBroker(run.directory / "broker")
        address = self._broker.start(clean=True)
        self.broker_url = f"mqtt://fleet:{address.users['fleet']}@{address.host}:{address.port}"
        self._server = ServerProcess(run.directory, run.database_url, address, _free_port())
        self._server.start()
        self._server.await_ready()
        self.server_url = self._server.url

    def close(self) -> None:
        """End both, and throw the database away."""
        self._server.stop()
        self._broker.stop()
        self._run.drop()


def served(options: Mapping[str, str]) -> Served:
    """Start a server and its broker; `directory`, `begins` and `dispensers` are the options."""
    return Served(_Run(options))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
