"""Keeps unattended, free contraceptive dispensers useful: server, backup and restore, demo, simulation. See docs/operating.md."""

import getpass
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fleet_server import settings as st
from fleet_server.clock import system_now
from fleet_server.database import Connection, Database, DatabaseError, DatabaseUnavailableError, is_starting, refusal
from fleet_server.errors import InputError
from fleet_server.schema import SchemaError, check_migrated, is_migrated, migrate

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
users = typer.Typer(no_args_is_help=True, help="Users and their roles.")
cli.add_typer(users, name="user")

Config = Annotated[Path | None, typer.Option(help="TOML file; environment variables DISPENSER_FLEET_* win over it")]
BAD_INPUT = 2
STARTING_S_MAX = 60
"""So long `serve` waits for a PostgreSQL that is there and lets nobody in yet; then its supervisor starts it again."""
EPOCH_MAX = 10_000_000_000


@contextmanager
def told() -> Iterator[None]:
    """Say what is wrong in one line, and exit with 2."""
    try:
        yield
    except (InputError, DatabaseUnavailableError, SchemaError) as error:
        print(f"dispenser-fleet: {error}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None
    except DatabaseError as error:
        print(f"dispenser-fleet: {refusal(error)}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None


@cli.command()
def serve(
    config: Config = None,
    roles: Annotated[str | None, typer.Option(help="comma-separated: web, ingest, jobs")] = None,
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Run one server process."""
    import structlog
    import uvicorn

    from fleet_server import logs
    from fleet_server.app import create_app

    with told():
        chosen = None if roles is None else tuple(roles.split(","))
        settings = st.load(config, roles=chosen, host=host, port=port)
        logs.configure()
        _await_start(settings.database_url)
        _prepare_schema(settings)
        _warn_of_rights(settings)
        listening = _listen(settings.host, settings.port)
        app = create_app(settings)
    structlog.get_logger().info("serving", host=settings.host, port=settings.port, roles=list(settings.roles))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, log_config=None)
    )
    server.run(sockets=[listening])


def _await_start(database_url: str) -> None:
    """Wait, not for ever, while PostgreSQL starts or recovers from a crash."""
    import structlog

    deadline = time.monotonic() + STARTING_S_MAX
    if is_starting(database_url):
        structlog.get_logger().warning(
            "waiting for PostgreSQL, which is starting or recovering", seconds_max=STARTING_S_MAX
        )
    while is_starting(database_url) and time.monotonic() < deadline:
        time.sleep(0.2)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, so that asyncio switches Nagle's algorithm off: it would cost 40 ms a reply.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InputError("port", port, f"a free port on {host} ({error.strerror})") from None
    return listening


@cli.command("migrate")
def migrate_command(config: Config = None) -> None:
    """Bring the database's schema up to date, as the owner of its tables, and give the application its rights on it."""
    with told():
        settings = st.load(config)
        left = migrate(settings.migration_url or settings.database_url)
        if left is not None and settings.migration_url is not None:
            # The application has a login of its own, which has no rights yet.
            raise SchemaError(left)
    if left is not None:
        print(f"dispenser-fleet: {left}", file=sys.stderr)


def _prepare_schema(settings: st.Settings) -> None:
    """Migrate only what is out of date: the application's own login may not, and need not."""
    if not is_migrated(settings.database_url):
        migrate(settings.migration_url or settings.database_url)


def _database_of(settings: st.Settings, *, patient: bool = False) -> Database:
    """The database, which has the schema of this version."""
    check_migrated(settings.database_url)
    return Database(settings.database_url, patient=patient)


def _warn_of_rights(settings: st.Settings) -> None:
    import structlog

    database = Database(settings.database_url)
    if not database.is_restricted():
        structlog.get_logger().warning("the database login could rewrite the ledger: see docs/operating.md")
    database.close()


@cli.command()
def seed(
    config: Config = None,
    sites: Annotated[Path | None, typer.Option(help="CSV file of your own sites, in their place; no stock")] = None,
) -> None:
    """Register products, the 42 illustrative sites and a stocked depot; a second time changes nothing."""
    from fleet_server.devices.fleet import list_dispensers
    from fleet_server.seed import read_sites
    from fleet_server.seed import seed as plant

    with told():
        settings = st.load(config)
        rows = None if sites is None else read_sites(sites)
        _prepare_schema(settings)
        with Database(settings.database_url).begin() as connection:
            plant(connection, system_now(), site_rows=rows, stocked=rows is None)
            registered = len(list_dispensers(connection))
    print(f"dispensers registered: {registered}")


@cli.command()
def audit(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Recompute every balance twice; exits with 1 on any difference."""
    from fleet_server.ledger.audit import audit as recompute

    with told():
        # It may sum years in one statement.
        database = _database_of(st.load(config), patient=True)
        with database.begin() as connection:
            report = recompute(connection)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        for difference in report.differences:
            print(difference)
        print(
            f"{len(report.differences)} differences; {report.movements} movements, {report.facts} stock facts, "
            f"{report.operations} operations, {report.accounts} balances"
        )
    raise typer.Exit(1 if report.differences else 0)


@cli.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="a new file, or a directory to name one in")],
    config: Config = None,
) -> None:
    """Write a consistent picture of the whole database into one file, while the server runs."""
    from fleet_server.recovery.backup import write_backup

    with told():
        database = Database(st.load(config).database_url, patient=True)
        database.check()
        written = write_backup(database, target, system_now())
    print(f"{written.path}: {written.tables} tables, {written.rows} rows")


@cli.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="a backup, or a directory: its newest one")],
    config: Config = None,
    replace: Annotated[bool, typer.Option("--replace", help="drop what the database holds")] = False,
    epoch_after: Annotated[
        int, typer.Option(min=0, max=EPOCH_MAX, help="begin an epoch above this one, should the clock have been wrong")
    ] = 0,
) -> None:
    """Put a backup into an empty database and begin a new epoch, in which machines and phones send again."""
    from fleet_server.recovery.backup import restore_backup

    with told():
        settings = st.load(config)
        # It makes the tables anew: the owner's work.
        database = Database(settings.migration_url or settings.database_url, patient=True)
        database.check()
        done = restore_backup(database, source, system_now(), replace=replace, epoch_after=epoch_after)
    print(
        f"restored {done.tables} tables, {done.rows} rows, as of {done.taken_at.isoformat()}; epoch {done.epoch} begins"
    )


@cli.command("new-epoch")
def new_epoch(
    config: Config = None,
    epoch_after: Annotated[int, typer.Option(min=0, max=EPOCH_MAX, help="begin an epoch above this one")] = 0,
) -> None:
    """Begin a new epoch, after the database was put back to an earlier state by other means than `restore`."""
    from fleet_server.recovery.backup import refuse_if_in_use
    from fleet_server.recovery.epochs import begin_epoch

    with told():
        settings = st.load(config)
        _prepare_schema(settings)
        with Database(settings.database_url).begin() as connection:
            refuse_if_in_use(connection)
            epoch = begin_epoch(connection, system_now(), after=epoch_after)
    print(f"epoch {epoch} begins")


@cli.command()
def rebuild(
    config: Config = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="post movements that facts and operations imply, too")
    ] = False,
) -> None:
    """Make every projection anew from facts, operations and movements; exits with 1 where anything had to be changed."""
    from fleet_server.jobs.clockwork import clock_of
    from fleet_server.recovery.rebuild import rebuild as make_anew

    with told():
        database = _database_of(st.load(config), patient=True)
        now = clock_of(database).now()
        with database.begin() as connection:
            found = make_anew(connection, now, correct=correct)
    for difference in found:
        left = "" if difference.repaired else " (left as it is)"
        print(f"{difference.table} {difference.place}: {difference.words}{left}")
    print(f"{len(found)} differences")
    raise typer.Exit(1 if found else 0)


@cli.command()
def losses(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """List what could not come back after a restore: lost facts, visits without entries, orders and states not known here."""
    from fleet_server.recovery.losses import losses as look

    with told(), _database_of(st.load(config)).begin() as connection:
        found = look(connection)
    if as_json:
        print(json.dumps([asdict(loss) for loss in found]))
        return
    for loss in found:
        print(f"{loss.place}: {loss.words}")
    print(f"{len(found)} known losses")


@users.command("add")
def add_user(
    name: str,
    role: Annotated[str, typer.Option(help="restocker, dispatcher, supervisor, viewer or administrator")],
    depot: Annotated[str | None, typer.Option(help="limits the user to one depot")] = None,
    config: Config = None,
) -> None:
    """Add a user, or give one a new password; it is asked for, or read from standard input."""
    from fleet_server.auth import service

    with told():
        database = _database_of(st.load(config))
        password = getpass.getpass("password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        with database.begin() as connection:
            if depot is not None:
                _check_depot(connection, depot)
            service.add_user(connection, name, role, password, system_now(), depot)
    print(f"{name} can sign in as {role}")


def _check_depot(connection: Connection, depot: str) -> None:
    from fleet_server.devices.fleet import list_dispensers

    known = sorted({dispenser.depot_id for dispenser in list_dispensers(connection)})
    if depot not in known:
        expected = f"one of {', '.join(known)}" if known else "that of a machine; register machines first"
        raise InputError("depot", depot, expected)


@cli.command()
def asyncapi() -> None:
    """Print the AsyncAPI document of the protocol."""
    from protocol.asyncapi import render

    print(render(), end="")


@cli.command()
def demo(
    days: Annotated[float, typer.Option(help="days of history to play")] = 60,
    seed_: Annotated[int, typer.Option("--seed", help="of the simulated world")] = 1,
    speed: Annotated[float, typer.Option(help="of the time after the history; 1 is the wall clock")] = 1.0,
    port: Annotated[int, typer.Option(help="of the web view")] = 8080,
    data_dir: Annotated[Path, typer.Option(help="where everything is kept")] = Path(".demo"),
    exit_: Annotated[bool, typer.Option("--exit", help="stop after the history and its audit")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Run everything on this machine: database, broker, server, 42 simulated dispensers, web view."""
    from fleet_server import demo as show

    with told():
        raise typer.Exit(show.run(show.Options(days, seed_, speed, port, data_dir, exit_, as_json)))


@cli.command()
def simulate(
    names: Annotated[list[str], typer.Argument(help="scenario files, or names: python -m simulator list")],
    over: Annotated[str, typer.Option(help="process: everything in one; broker: a real broker and server")] = "process",
    seed_: Annotated[int | None, typer.Option("--seed", help="instead of the file's")] = None,
    seeds: Annotated[int, typer.Option(help="play so many seeds, from the first on")] = 1,
    days: Annotated[float | None, typer.Option(help="instead of the file's")] = None,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Play scenarios against a server of their own, and judge what they expect: a check for CI."""
    from fleet_server import simulate as launcher

    given = {"--seed": seed_, "--seeds": seeds, "--days": days, "--junit": junit}
    arguments = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    with told():
        options = launcher.Options(names, launcher.over(over), [*arguments, *(["--json"] if as_json else [])])
        raise typer.Exit(launcher.run(options))


def main() -> None:
    """Run the command line."""
    cli()


if __name__ == "__main__":
    main()
