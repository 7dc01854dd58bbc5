"""The state of the whole: for a supervisor in plain words, for Prometheus in numbers. Both say the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fleet_server.database import Connection, DatabaseError
from fleet_server.devices import health_store as store
from fleet_server.faults.store import count_open
from fleet_server.jobs.store import FailedRun, failed_runs
from fleet_server.web.context import Services

SILENT_AFTER: Final = timedelta(hours=2)
"""A machine reads its sensors every hour: after two without a word that reaches us, something is wrong."""

BEHIND: Final = 12
"""So many reads of the broker's socket wait only where more comes than is stored; at 16 nothing is read any more."""

LOOK_BACK: Final = timedelta(days=7)
LABELLED_MAX: Final = 1_000
"""Up to so many machines each has a series of its own; a larger fleet has the sums, and the page."""


@dataclass(frozen=True)
class Health:
    """What needs a person: `broker` is None where another process speaks with it."""

    now: datetime
    machines: int
    silent: list[store.Reporting]
    quarantined: list[store.Trouble]
    forked: list[store.Trouble]
    lost: list[store.Trouble]
    letters: list[store.Letters]
    failed: list[FailedRun]
    waiting: list[store.Waiting]
    restricted: bool
    broker: bool | None
    behind: bool
    newest_at: datetime | None

    @property
    def stuck(self) -> list[store.Waiting]:
        """Messages that connected machines do not answer."""
        return [line for line in self.waiting if line.online and self.now - line.oldest_at > SILENT_AFTER]

    @property
    def matters(self) -> int:
        """How many kinds of things need attention."""
        lists = (self.silent, self.quarantined, self.forked, self.lost, self.letters, self.stuck)
        failing = any(not run.over for run in self.failed)
        return sum(map(bool, lists)) + failing + (self.broker is False) + self.behind + (not self.restricted)


def look(connection: Connection, parts: Services, now: datetime) -> Health:
    """Look at everything now."""
    machines = store.reporting(connection)
    heard = [at for machine in machines if (at := machine.known_until) is not None]
    return Health(
        now,
        len(machines),
        sorted((m for m in machines if is_silent(m, now)), key=lambda m: (m.known_until is not None, m.known_until or now)),
        store.quarantined(connection),
        store.forked(connection),
        store.lost(connection),
        store.dead_letters(connection, now - LOOK_BACK),
        failed_runs(connection, now - LOOK_BACK),
        store.waiting(connection),
        parts.database.is_restricted(),
        None if parts.ingest is None else parts.ingest.connected,
        parts.ingest is not None and parts.ingest.backlog >= BEHIND,
        max(heard, default=None),
    )  # fmt: skip


def is_silent(machine: store.Reporting, now: datetime) -> bool:
    """Tell whether a machine has been unknown for too long; one that was never heard of is."""
    lag = machine.lag(now)
    return lag is None or lag > SILENT_AFTER


# ---------------------------------------------------------------- for Prometheus


class Gauges(Collector):
    """What only the database knows, asked for at every scrape; while it is away, that alone is said."""

    def __init__(self, parts: Services) -> None:
        self._parts = parts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._parts.ingest is not None:
            connected = self._parts.ingest.connected
            yield GaugeMetricFamily("fleet_broker_connected", "Whether the broker has accepted us", value=connected)
        try:
            with self._parts.database.begin() as connection:
                families = list(self._from_database(connection, self._parts.clock.now()))
        except DatabaseError:
            families = [GaugeMetricFamily("fleet_database_up", "Whether the database answers", value=0)]
        yield from families

    def _from_database(self, connection: Connection, now: datetime) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("fleet_database_up", "Whether the database answers", value=1)
        restricted = self._parts.database.is_restricted()
        said = "Whether our login can rewrite nothing of the ledger"
        yield GaugeMetricFamily("fleet_database_login_restricted", said, value=restricted)
        yield from _lags(store.reporting(connection), now)
        faults = GaugeMetricFamily("fleet_faults_open", "Open faults", labels=["code"])
        for code, count in count_open(connection).items():
            faults.add_metric([code], count)
        yield faults
        waiting = GaugeMetricFamily("fleet_outgoing_messages", "Messages that wait", labels=["channel", "online"])
        oldest = GaugeMetricFamily("fleet_outgoing_oldest_seconds", "Age of the oldest", labels=["channel", "online"])
        for line in store.waiting(connection):
            labels = [line.channel, str(line.online).lower()]
            waiting.add_metric(labels, line.messages)
            oldest.add_metric(labels, (now - line.oldest_at).total_seconds())
        yield from (waiting, oldest)
        failures = GaugeMetricFamily("fleet_job_failures", "Failed runs of the last day", labels=["job"])
        for run in failed_runs(connection, now - timedelta(days=1)):
            failures.add_metric([run.job], run.failures)
        yield failures


def _lags(machines: list[store.Reporting], now: datetime) -> Iterator[GaugeMetricFamily]:
    yield GaugeMetricFamily("fleet_dispensers", "Registered dispensers", value=len(machines))
    online = sum(machine.online is True for machine in machines)
    yield GaugeMetricFamily("fleet_dispensers_online", "Dispensers that are connected", value=online)
    silent = sum(is_silent(machine, now) for machine in machines)
    yield GaugeMetricFamily("fleet_dispensers_silent", "Dispensers unknown for more than two hours", value=silent)
    lags = {machine.dispenser_id: lag for machine in machines if (lag := machine.lag(now)) is not None}
    most = max(lags.values(), default=timedelta()).total_seconds()
    yield GaugeMetricFamily("fleet_lag_seconds_max", "Age of the oldest fact that may not have arrived", value=most)
    if len(machines) > LABELLED_MAX:
        return
    lag_of = GaugeMetricFamily("fleet_dispenser_lag_seconds", "The same of one dispenser", labels=["dispenser"])
    pending = GaugeMetricFamily("fleet_dispenser_pending_facts", "Facts it had yet to report", labels=["dispenser"])
    for machine in machines:
        if machine.dispenser_id in lags:
            lag_of.add_metric([machine.dispenser_id], lags[machine.dispenser_id].total_seconds())
        if machine.pending is not None:
            pending.add_metric([machine.dispenser_id], machine.pending)
    yield from (lag_of, pending)


def exposition(parts: Services) -> bytes:
    """Return this process's own counters, and what the database knows of the fleet, in Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(Gauges(parts))
    return generate_latest() + generate_latest(registry)
