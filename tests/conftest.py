"""Servers that tests run against. Each is the first one that is there: named by the environment, in Docker, local, from a wheel."""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from fleet_server.embedded import BrokerAddress, EmbeddedBroker, EmbeddedPostgres
from fleet_server.privileges import APPLICATION_ROLE

POSTGRES_IMAGE = "postgres:16-alpine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first: one that begins last keeps one worker busy while the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow") and not item.get_closest_marker("soak")}
    items.sort(key=lambda item: item.path not in slow)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Unlike tmp_path, open to the unprivileged user that PostgreSQL runs as when the tests run as root."""
    directory = Path(tempfile.mkdtemp(prefix="dispenser-fleet-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _docker_answers() -> bool:
    """Ask before testcontainers does: without an engine its constructors raise."""
    try:
        import docker

        return bool(docker.from_env(timeout=5).ping())
    except Exception:  # noqa: BLE001 - whatever the reason, there is no engine
        return False


def _local_postgres() -> Path | None:
    found = shutil.which("initdb")
    beside_path = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    # A link such as /usr/local/bin/initdb leads to the directory that also holds `postgres`.
    candidates = [*([Path(found).resolve()] if found else []), *reversed(beside_path)]
    return next((path.parent for path in candidates if (path.parent / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server whose user may create databases and roles."""
    if url := os.environ.get("TEST_POSTGRES_URL"):
        yield url
        return
    if _docker_answers():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer(POSTGRES_IMAGE, driver=None) as container:
            yield container.get_connection_url()
        return
    with scratch_directory() as directory:
        server = EmbeddedPostgres(directory / "postgres", durable=False, binaries=_local_postgres())
        yield server.start().url
        server.remove()


def _with_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def _administer(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a database that holds the schema and nothing else."""
    name = f"template_{secrets.token_hex(6)}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    if importlib.util.find_spec("fleet_server.schema"):
        importlib.import_module("fleet_server.schema").migrate(_with_database(postgres_url, name))
    yield name
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _fresh_database(postgres_url: str, template_database: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    # Copied as files: a fifth of the work of writing each page to the log, and no crash is to be survived here.
    _administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY FILE_COPY")
    yield _with_database(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def owner_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A fresh database with the schema, as its owner, who may tamper with it; dropped after the test."""
    with _fresh_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def fresh_owner_url(postgres_url: str, template_database: str) -> Callable[[], AbstractContextManager[str]]:
    """Makes as many of them as are asked for, one after the other."""
    return lambda: _fresh_database(postgres_url, template_database)


@pytest.fixture(scope="session")
def application_user(postgres_url: str, template_database: str) -> Iterator[tuple[str, str]]:
    """Name and password of a login such as the server runs with."""
    name, password = f"server_{secrets.token_hex(6)}", secrets.token_hex(12)
    _administer(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE {APPLICATION_ROLE}")
    yield name, password
    _administer(postgres_url, f"DROP ROLE {name}")


def _as_application(url: str, user: tuple[str, str]) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user[0]}:{user[1]}@{parts.netloc.rpartition('@')[2]}").geturl()


@pytest.fixture
def database_url(owner_url: str, application_user: tuple[str, str]) -> str:
    """The database of `owner_url` as the server sees it: with rights to append, and none to rewrite."""
    return _as_application(owner_url, application_user)


@pytest.fixture
def another_database_url(postgres_url: str, template_database: str, application_user: tuple[str, str]) -> Iterator[str]:
    """One more of them, to compare with."""
    with _fresh_database(postgres_url, template_database) as url:
        yield _as_application(url, application_user)


@pytest.fixture
def fresh_database(
    postgres_url: str, template_database: str, application_user: tuple[str, str]
) -> Callable[[], AbstractContextManager[str]]:
    """Makes as many of them as are asked for, one after the other."""

    @contextmanager
    def make() -> Iterator[str]:
        with _fresh_database(postgres_url, template_database) as url:
            yield _as_application(url, application_user)

    return make


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without any schema, dropped after the test."""
    name = f"empty_{secrets.token_hex(6)}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    yield _with_database(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def broker() -> Iterator[BrokerAddress]:
    """A broker with the users `server` and `fleet`; TEST_BROKER_URL (mqtt://:password@host:port) names one password for both."""
    if url := os.environ.get("TEST_BROKER_URL"):
        parts = urlsplit(url)
        users = dict.fromkeys(("server", "fleet"), parts.password or "")
        yield BrokerAddress(parts.hostname or "127.0.0.1", parts.port or 1883, users)
        return
    with scratch_directory() as directory, EmbeddedBroker(directory / "broker") as address:
        yield address


@pytest.fixture
def mosquitto() -> Iterator[BrokerAddress]:
    """The distribution's Mosquitto as it comes, plus a listener for anonymous clients."""
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    with scratch_directory() as directory:
        configuration = directory / "mosquitto.conf"
        configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        configuration.chmod(0o644)
        process = subprocess.Popen([binary, "-c", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _await_listener(port)
            yield BrokerAddress("127.0.0.1", port, {})
        finally:
            process.terminate()
            process.wait(10)


def _await_listener(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
