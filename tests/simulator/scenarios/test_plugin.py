"""The pytest plugin, in pytest runs of its own: what a firmware engineer sees."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT_DIRECTORY = Path(__file__).parents[3]

pytest_plugins = ["pytester"]

FLEET_TESTS = """
import pytest
from protocol.messages import Outcome, Started

@pytest.mark.fleet(dispensers=2, quiet=True)
def test_a_pack_falls_and_is_told(fleet, virtual_clock):
    one, other = fleet.ids
    fleet.ask(one)
    virtual_clock.advance("1 min")
    assert [vend.outcome for vend in fleet.facts(one, "vend")] == [Outcome.DELIVERED]
    assert fleet.facts(other, "vend") == []

@pytest.mark.fleet(dispensers=1, quiet=True)
def test_what_happens_offline_is_told_afterwards(fleet, virtual_clock):
    (one,) = fleet.ids
    fleet.inject(one, "network_fails", lasts="2 h")
    virtual_clock.advance("10 min")
    fleet.ask(one)
    virtual_clock.advance("1 h")
    assert fleet.facts(one, "vend") == []
    virtual_clock.advance("2 h")
    assert len(fleet.facts(one, "vend")) == 1

@pytest.mark.fleet(dispensers=1, quiet=True)
def test_an_order_is_carried_out_once_and_answered(fleet, virtual_clock):
    (one,) = fleet.ids
    order = fleet.server.order(one, "self_test")
    virtual_clock.advance("5 min")
    assert fleet.server.answer(order).outcome == "done"
    late = fleet.server.order(one, "clear_jam", slot=1, lives_ms=1)
    virtual_clock.advance("5 min")
    assert fleet.server.answer(late).outcome == "expired"

@pytest.mark.fleet(dispensers=1, quiet=True)
def test_a_restored_card_is_a_fork_and_then_a_new_stream(fleet, virtual_clock):
    (one,) = fleet.ids
    fleet.inject(one, "card_kept")
    fleet.ask(one)
    virtual_clock.advance("1 h")
    fleet.inject(one, "card_restored")
    virtual_clock.advance("1 h")
    fleet.ask(one)
    virtual_clock.advance("6 h")
    streams = list(fleet.server.peers[one].streams.values())
    assert len(streams) == 2
    assert streams[0].forked

@pytest.mark.fleet(start="2027-02-06", stocked=False)
def test_the_clock_and_the_world(virtual_clock, world):
    assert virtual_clock.now.isoformat() == "2027-02-06T00:00:00+08:00"
    virtual_clock.advance("90 min")
    assert (virtual_clock.now.hour, virtual_clock.now.minute) == (1, 30)
    assert world.product_mix["CONDOM-M"] > 0.5
"""

SMALL = """
name: small
description: Two machines for two days.
start: 2026-06-01
days: 2
seed: 5
fleet: {sites: 2}
restock: {policy: rounds, every: 1 d}
expect:
  - visits == 4
  - audit clean
  - facts >= 20
"""


@pytest.fixture
def alone(pytester: pytest.Pytester) -> pytest.Pytester:
    """Without the settings of this repository."""
    pytester.makeini("[pytest]\n")
    return pytester


def test_its_fixtures_serve_tests_of_an_agent(alone: pytest.Pytester) -> None:
    alone.makepyfile(FLEET_TESTS)
    alone.runpytest_inprocess("-p", "no:randomly").assert_outcomes(passed=5)


def test_every_test_with_a_seed_runs_once_for_each_of_them(alone: pytest.Pytester) -> None:
    alone.makepyfile("""
        seen = []
        def test_seeded(fleet_seed, world): seen.append((fleet_seed, world.seed))
        def test_without(): pass
        def test_all(): assert seen == [(7, 7), (8, 8), (9, 9)]
    """)
    alone.runpytest_inprocess("--fleet-seeds", "3", "--fleet-seed", "7").assert_outcomes(passed=5)


def test_a_failure_prints_its_seed_and_a_command_that_fails_alike(alone: pytest.Pytester) -> None:
    alone.makepyfile("""
        import pytest
        @pytest.mark.parametrize("bad", [2, 3])
        def test_luck(fleet_seed, bad): assert fleet_seed != bad
    """)
    first = alone.runpytest_inprocess("--fleet-seeds", "3")
    first.assert_outcomes(passed=4, failed=2)
    first.stdout.fnmatch_lines(["*- fleet -*", "seed 2", "replay: pytest *"])
    command = next(line for line in first.outlines if line.startswith("replay: pytest ") and "seed-2" in line)
    words = command.removeprefix("replay: pytest ").replace("'", "").split()
    again = alone.runpytest_inprocess(*words)
    again.assert_outcomes(failed=1)


def test_a_scenario_beside_the_test_is_played_and_what_needs_a_ledger_is_not_judged(alone: pytest.Pytester) -> None:
    (alone.path / "small.yaml").write_text(SMALL)
    alone.makepyfile("""
        def test_it(scenario):
            outcome = scenario("small.yaml")
            assert outcome.seed == 5
            assert [one.held for one in outcome.judged] == [True, None, True]
        def test_shorter(scenario):
            scenario("small.yaml", days=1)
    """)
    result = alone.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "small, seed 5: * of 3 expectations do not hold",
            "  visits == 4: measured 2",
            "replay: pytest *test_shorter* --fleet-seed 5",
        ]
    )


def test_a_scenario_that_cannot_be_read_says_where(alone: pytest.Pytester) -> None:
    (alone.path / "bad.yaml").write_text(SMALL.replace("days: 2", "days: two"))
    alone.makepyfile("def test_it(scenario): scenario('bad.yaml')")
    result = alone.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*bad.yaml:5: days: 'two': expected a number"])


def test_loading_it_imports_nothing_of_the_server_nor_of_the_simulator(tmp_path: Path) -> None:
    code = (
        "import sys, simulator.pytest_plugin\n"
        "ours = ('fleet_server', 'simulator', 'device_agent', 'rich', 'yaml', 'httpx2')\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ours))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT_DIRECTORY, capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == "['simulator', 'simulator.pytest_plugin']"


def test_the_simulator_runs_where_there_is_no_pytest_and_no_server(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('pytest', '_pytest', 'fleet_server', 'sqlalchemy', 'fastapi'): sys.modules[name] = None\n"
        "from simulator.__main__ import main\n"
        f"sys.exit(main(['scenario', {str(tmp_path / 'small.yaml')!r}, '--in-process', 'simulator.stand_in:connect']))\n"
    )
    (tmp_path / "small.yaml").write_text(SMALL)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT_DIRECTORY, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "needs a server" in ran.stdout
