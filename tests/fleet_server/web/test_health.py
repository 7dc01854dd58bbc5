"""What is wrong with the whole, as a supervisor reads it and as Prometheus scrapes it."""

import html
import re
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet_server.clock import ClockState, FixedClock, SettableClock
from fleet_server.database import Database
from fleet_server.devices import health_store
from fleet_server.ingest.worker import Message, Worker
from fleet_server.settings import Settings
from fleet_server.web.context import Services
from fleet_server.web.health import look
from protocol.codec import encode
from protocol.messages import Vitals
from tests.fleet_server.fixtures import NOW, send
from tests.fleet_server.machine import BASE_MS, Machine
from tests.fleet_server.web.site import Site, serving
from tests.fleet_server.web.troubled import stop_clock, trouble_of_every_kind

LATER = NOW + timedelta(hours=1)


def page(site: Site, language: str = "en") -> str:
    browser = site.browser("supervisor")
    browser.get(f"/language/{language}")
    text = re.sub(r"<[^>]+>", " ", browser.get("/health").text)
    return re.sub(r"\s+", " ", html.unescape(text))


def metrics(site: Site) -> dict[str, float]:
    """Every sample, by its name and labels."""
    text = site.api(None).get("/metrics").text
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(database: Database, dispenser_id: str, at: datetime, pending: int) -> None:
    """Let a machine send a reading."""
    vitals = Vitals(
        at_ms=int(at.timestamp() * 1000), pending_facts=pending, temperature_c=20.0, humidity_pct=50.0,
        signal_dbm=-70, battery_mv=12_000, agent_version="1", uptime_s=1, stream_id="0" * 32, session=1,
    )  # fmt: skip
    message = Message(f"fleet/v1/{dispenser_id}/vitals", encode(vitals))
    Worker(database, FixedClock(at)).commit([message])


class Standing:
    """Ingest whose worker stands, as its routes see it."""

    sent = handled = 0
    connected = True

    def __init__(self, backlog: int) -> None:
        self.backlog = backlog

    def flush(self) -> None:
        """Nothing waits."""

    def await_handled(self, messages: int) -> None:
        """Nothing comes."""


@pytest.mark.parametrize(("backlog", "matters"), [(11, 0), (12, 1)])
def test_a_worker_that_falls_behind_needs_somebody(site: Site, backlog: int, matters: int) -> None:
    for name in ("HD-001", "HD-002"):
        send(site.database, Machine(name).vend())
        read(site.database, name, NOW, pending=0)
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:9/none")
    parts = Services(
        settings, site.database, SettableClock(lambda: ClockState("played", NOW, NOW)), (), Standing(backlog)
    )
    with site.database.begin() as connection:
        assert look(connection, parts, NOW).matters == matters


def test_a_healthy_fleet_says_so_in_one_line(site: Site) -> None:
    stop_clock(site.database, NOW)
    for name in ("HD-001", "HD-002"):
        send(site.database, Machine(name).vend())
        read(site.database, name, NOW, pending=0)
    said = page(site)
    assert "Everything is as it should be." in said
    assert "2 /2 machines report" in said
    assert "一切正常" in page(site, "zh")


def test_every_trouble_is_named_with_its_machine_and_what_to_do(site: Site) -> None:
    trouble_of_every_kind(site.database)
    said = page(site)
    for words in (
        "Needs somebody: 7",
        "Machines that have not reported 1",
        "HD-002 never heard of",
        "Reports that cannot be read 2",
        "Machines with a restored old memory card 1",
        "Reports that are lost 4",
        "Messages that make no sense 2",
        "fleet/v1/HD-999/facts",
        "orders · messages: 2",
        "make the day's plan · failures: 1 still failing",
        "ask for stock counts · failures: 1 ran well since",
        "planted",
        "update the server",
    ):
        assert words in said, words
    assert not re.search("[\u4e00-\u9fff]", said.replace("中文", "").replace("点位", "")), said

    # Prometheus is told the same.
    found = metrics(site)
    assert found["fleet_database_up"] == 1
    assert found["fleet_database_login_restricted"] == 1
    for code in ("FACT_QUARANTINED", "STREAM_FORKED", "STREAM_GAP"):
        assert found[f"fleet_faults_open code={code}"] == 1
    assert found["fleet_outgoing_messages channel=orders online=true"] == 2
    assert found["fleet_outgoing_oldest_seconds channel=orders online=true"] >= 3 * 3600
    assert found["fleet_job_failures job=plan"] == 1
    for name in ("facts", "duplicates", "gaps", "forks", "quarantined", "dead_letters"):
        assert f"fleet_ingest_{name}_total" in found


def test_the_lag_of_a_machine_is_the_age_of_what_is_known_of_it(site: Site) -> None:
    stop_clock(site.database, LATER)
    send(site.database, Machine().vend())
    fact_at = datetime.fromtimestamp((BASE_MS // 1000), UTC)
    read(site.database, "HD-001", NOW, pending=3)
    with site.database.begin() as connection:
        known = health_store.reporting(connection)[0].known_until
    assert known is not None
    assert abs(known - fact_at) < timedelta(minutes=1)
    lag = metrics(site)["fleet_dispenser_lag_seconds dispenser=HD-001"]
    assert lag == (LATER - known).total_seconds()
    # A reading with nothing to report: all there was until then has arrived.
    read(site.database, "HD-001", NOW, pending=0)
    found = metrics(site)
    assert found["fleet_dispenser_lag_seconds dispenser=HD-001"] == 3600 == found["fleet_lag_seconds_max"]
    assert found["fleet_dispenser_pending_facts dispenser=HD-001"] == 0
    assert "fleet_dispenser_lag_seconds dispenser=HD-002" not in found  # never heard of
    assert (found["fleet_dispensers"], found["fleet_dispensers_silent"]) == (2, 1)


def test_a_large_fleet_has_the_sums_only(site: Site, owner_url: str) -> None:
    import psycopg

    with psycopg.connect(owner_url) as connection:
        connection.execute(
            "INSERT INTO dispensers SELECT 'X-' || n, '', '', '', '', '', 'market', 'indoor', 36, 120, 0, 24, 'HUANGDAO'"
            " FROM generate_series(1, 1000) AS n"
        )
    send(site.database, Machine().vend())
    found = metrics(site)
    assert found["fleet_dispensers"] == 1002
    assert found["fleet_lag_seconds_max"] > 0
    assert not [name for name in found if name.startswith("fleet_dispenser_lag")]


def test_without_its_database_a_process_still_says_so() -> None:
    from fleet_server.app import create_app
    from fleet_server.settings import Settings
    from fleet_server.web.health import exposition

    app = create_app(Settings(database_url="postgresql://nobody:x@127.0.0.1:9/none", roles=("web",)))
    said = exposition(app.state.services).decode()
    assert "fleet_database_up 0.0" in said
    assert "fleet_ingest_facts_total" in said


def test_a_login_that_may_do_everything_is_shown(database: Database, owner_url: str) -> None:
    with serving(owner_url) as site:
        assert metrics(site)["fleet_database_login_restricted"] == 0
        assert "could rewrite the ledger" in page(site)
