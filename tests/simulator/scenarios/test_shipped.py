"""Every shipped scenario does what it is about, and what it expects holds: agents, ingest, API and PostgreSQL in this process."""

from typing import Any

import pytest

from simulator.scenarios.playing import play
from simulator.scenarios.reading import load, shipped
from tests.simulator.scenarios.stages import on_a_server

LONG = ("ordinary-year", "post-festival-surge")
"""Weeks and months of all 42 machines."""
OFTEN = (
    "broker-loss", "duplicates-after-restart", "lot-recall", "sd-card-replaced", "sd-card-restored", "visit-finished-offline",
)  # fmt: skip
"""Played in every test run; the others, and these with more seeds, in `make soak`."""
ABOUT = {
    "broker-loss", "clock-jumps", "count-dispute", "duplicates-after-restart", "four-day-outage", "heat-week", "lot-recall",
    "ordinary-year", "post-festival-surge", "sd-card-replaced", "sd-card-restored", "stolen-machine", "unverified-drops",
    "visit-finished-offline",
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_at_least_these_are_shipped() -> None:
    assert set(shipped()) >= ABOUT
    for name in shipped():
        assert load(name).name == name


@pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.soak) for name in shipped() if name not in LONG],
)
def test_what_a_shipped_scenario_expects_holds(database_url: str, name: str) -> None:
    scenario = load(name)
    with on_a_server(database_url, scenario) as stage:
        outcome = play(scenario, scenario.seed, stage)
    assert outcome.passed, outcome.words()
    assert all(one.held for one in outcome.judged)


@pytest.mark.parametrize("name", LONG)
def test_the_beginning_of_a_long_one_is_counted_to_the_last_pack(database_url: str, name: str) -> None:
    scenario = load(name, {"days": 5, "fleet": {"sites": 6}})
    with on_a_server(database_url, scenario) as stage:
        outcome = play(scenario, scenario.seed, stage)
    always = [
        one for one in outcome.judged if one.expectation.text in {"audit clean", "residual == 0", "orders.twice == 0"}
    ]
    assert len(always) >= 2
    assert all(one.held for one in always), outcome.words()
    assert outcome.problems == []


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("more", range(3))
def test_what_a_long_scenario_expects_holds_with_other_seeds_too(database_url: str, name: str, more: int) -> None:
    scenario = load(name)
    with on_a_server(database_url, scenario) as stage:
        outcome = play(scenario, scenario.seed + more, stage)
    assert outcome.passed, outcome.words()


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("name", [name for name in shipped() if name not in LONG])
def test_the_books_agree_whatever_the_seed(database_url: str, name: str, seed: int) -> None:
    scenario = load(name)
    with on_a_server(database_url, scenario) as stage:
        outcome = play(scenario, seed, stage)
    ledger = [one for one in outcome.judged if one.expectation.text in {"audit clean", "residual == 0"}]
    assert all(one.held for one in ledger), outcome.words()


def test_a_scenario_fails_where_the_thing_it_is_about_did_not_happen(database_url: str) -> None:
    """The same expectations without the fault: those about the fork do not hold, the books still agree."""
    scenario = load("sd-card-restored", {"faults": [], "days": 3, "fleet": {"sites": ["HD-011"]}})
    with on_a_server(database_url, scenario) as stage:
        outcome = play(scenario, scenario.seed, stage)
    failed: dict[str, Any] = {one.expectation.text: one.measured for one in outcome.failed}
    assert failed.pop("streams == 13") == "1"
    assert failed == {
        "faults.STREAM_FORKED == 1": "0",
        "faults.STREAM_FORKED[HD-011] == 1": "0",
        "streams[HD-011] == 2": "1",
    }
