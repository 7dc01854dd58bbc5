"""Scenarios played in this process against the shipped server and a real PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager

from fleet_server.auth import service as auth
from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.in_process import InProcessServer
from fleet_server.seed import rows_of, seed
from simulator.bridges import InProcessBridge
from simulator.connecting import Connection
from simulator.fleet import People
from simulator.scenarios.form import Scenario
from simulator.scenarios.playing import Stage
from simulator.server_api import ServerApi
from simulator.stand_in import connect
from tests.played import PASSWORD, PEOPLE


@contextmanager
def on_a_server(database_url: str, scenario: Scenario) -> Iterator[Stage]:
    """A server whose history begins with the scenario."""
    database = Database(database_url)
    with database.begin() as connection:
        seed(connection, scenario.start, site_rows=rows_of(scenario.dispensers()))
        for name, depot in PEOPLE.items():
            auth.add_user(connection, name, name, PASSWORD, system_now(), depot)
    database.close()
    server = InProcessServer(database_url)
    people = People(*(ServerApi(server.request, name, PASSWORD, 5) for name in PEOPLE))
    try:
        yield Stage(Connection(InProcessBridge(server), people), patience_s=5)
    finally:
        server.close()


def on_a_stand_in(scenario: Scenario) -> Stage:
    """No server at all."""
    options = {"begins": scenario.start.isoformat(), "dispensers": ",".join(scenario.dispensers())}
    server = connect(options)
    people = People(*(ServerApi(server.request, name, "") for name in PEOPLE))
    return Stage(Connection(InProcessBridge(server), people), keeps_ledger=False, patience_s=5)
