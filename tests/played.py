"""Fleets that are played in this process: the shipped agents, ingest, API and a real PostgreSQL, without a broker."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from fleet_server.auth import service as auth
from fleet_server.clock import system_now
from fleet_server.database import Database
from fleet_server.in_process import InProcessServer
from fleet_server.ledger.audit import AuditReport, audit
from fleet_server.seed import DEPOT, seed
from simulator.auditor import Auditor, Findings
from simulator.bridges import Bridge, InProcessBridge
from simulator.fleet import Fleet, People
from simulator.server_api import ServerApi
from simulator.world import DAY_MS, HOUR_MS, Site, World, site_rows, sites

BEGINS: Final = datetime(2026, 9, 20, 16, tzinfo=UTC)
"""A local midnight."""
BEGINS_MS: Final = int(BEGINS.timestamp() * 1000)
PASSWORD: Final = "a-long-enough-password"
PEOPLE: Final = {"administrator": None, "dispatcher": None, "restocker": DEPOT}


def plant(database_url: str, begins: datetime = BEGINS, machines: int | None = None) -> None:
    """Register the 42 sites, or so many made from them, a stocked depot and the people."""
    database = Database(database_url)
    with database.begin() as connection:
        seed(connection, begins, site_rows=site_rows(machines))
        for name, depot in PEOPLE.items():
            auth.add_user(connection, name, name, PASSWORD, system_now(), depot)
    database.close()


def audited(database_url: str) -> AuditReport:
    database = Database(database_url)
    with database.begin() as connection:
        report = audit(connection)
    database.close()
    return report


class Played:
    """One fleet beside one server, in memory."""

    def __init__(self, database_url: str, world: World, at: Sequence[Site], bridge: Any = InProcessBridge) -> None:
        self.database_url = database_url
        self.server = InProcessServer(database_url)
        self.bridge: Bridge = bridge(self.server)
        self.people = People(*(ServerApi(self.server.request, name, PASSWORD) for name in PEOPLE))
        self.fleet = Fleet(world, at, self.bridge, self.people, BEGINS_MS)

    def play(self, days: float) -> Findings:
        """Play, tell everything, and compare the books with what is physically there."""
        self.fleet.play(self.fleet.now_ms + int(days * DAY_MS), 60, lambda _: None)
        self.fleet.finish(60)
        return Auditor(self.people.administrator).compare(self.fleet.machines)

    def fill(self) -> None:
        """Fill every machine by hand, told at the machine itself; and let nobody bring more."""
        self.fleet.crew.stays_home = True
        self.fleet.play(self.fleet.now_ms + HOUR_MS, 600, lambda _: None)
        for machine in self.fleet.machines.values():
            machine.fill_up()
        self.fleet.play(self.fleet.now_ms + HOUR_MS, 600, lambda _: None)


@contextmanager
def played(
    database_url: str,
    seed_: int,
    machines: int | None = None,
    bridge: Any = InProcessBridge,
    only: str | None = None,
    filled: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[Played]:
    """The fleet of the 42 sites, or of so many made from them; `only` one of them is played; all may begin `filled`."""
    plant(database_url, machines=machines)
    at = [site for site in sites(machines) if only in {None, site.dispenser_id}]
    running = Played(database_url, World(seed_, parameters), at, bridge)
    if filled:
        running.fill()
    yield running
    running.fleet.close()
    running.server.close()
