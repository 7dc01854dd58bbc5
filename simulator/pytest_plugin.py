"""Fixtures for tests of agents and of scenarios in virtual time; a failing test prints its seed and how to replay it.

Nothing of the simulator is imported before a test asks for it: the plugin is loaded wherever the package is installed.
"""

import argparse
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from simulator.scenarios.outcome import Outcome
    from simulator.workbench import BenchFleet, VirtualClock
    from simulator.world import World

SEED = "fleet_seed"
FLAGS = ("--fleet-server", "--fleet-broker", "--fleet-password-file", "--fleet-in-process", "--fleet-served")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Describe the options."""
    group = parser.getgroup("fleet", "simulated dispensers")
    group.addoption("--fleet-seed", type=int, metavar="S", help="the seed of `world`, `fleet` and `scenario`")
    group.addoption("--fleet-seeds", type=int, metavar="N", help="run every test that has a seed with N seeds")
    group.addoption("--fleet-server", metavar="URL", help="play scenarios against this server ...")
    group.addoption("--fleet-broker", metavar="URL", help="... and its broker; or SIMULATOR_BROKER_URL")
    group.addoption("--fleet-password-file", type=Path, metavar="FILE", help="JSON: passwords of the server's people")
    group.addoption("--fleet-in-process", metavar="MODULE:FACTORY", help="play scenarios against servers this makes")
    group.addoption("--fleet-served", metavar="MODULE:FACTORY", help="the same, over a broker")
    group.addoption("--fleet-option", action="append", default=[], metavar="NAME=VALUE", help="for the factory")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "fleet(dispensers=2, start='2026-06-01', stocked=True, quiet=False, world={}): what the fixture `fleet` is made of",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for every seed."""
    many = metafunc.config.getoption("--fleet-seeds")
    if many is not None and SEED in metafunc.fixturenames:
        first = metafunc.config.getoption("--fleet-seed")
        first = 1 if first is None else first
        seeds = range(first, first + max(1, many))
        metafunc.parametrize(SEED, seeds, ids=[f"seed-{seed}" for seed in seeds])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say beside a failure which seed it was, and how to see it again."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    seed = getattr(item, "funcargs", {}).get(SEED)
    if report.failed and seed is not None:
        report.sections.append(("fleet", f"seed {seed}\nreplay: {_replay(item, seed)}"))


def _replay(item: pytest.Item, seed: int) -> str:
    words = ["pytest", item.nodeid, "--fleet-seed", str(seed)]
    if item.config.getoption("--fleet-seeds") is not None:
        words += ["--fleet-seeds", "1"]
    for flag in FLAGS:
        value = item.config.getoption(flag)
        # An address may hold a password.
        words += [flag, str(value)] if value is not None and flag != "--fleet-broker" else []
    for value in item.config.getoption("--fleet-option"):
        words += ["--fleet-option", value]
    return shlex.join(words)


@pytest.fixture
def fleet_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test: --fleet-seed, or 1; with --fleet-seeds one after the other."""
    given: int | None = request.config.getoption("--fleet-seed")
    return 1 if given is None else given


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    marker = request.node.get_closest_marker("fleet")
    return dict(marker.kwargs) if marker else {}


@pytest.fixture
def world(request: pytest.FixtureRequest, fleet_seed: int) -> "World":
    """The world under this test's seed, with the parameters of the marker `fleet`."""
    from simulator.workbench import quiet
    from simulator.world import World

    marked = _marked(request)
    calm = quiet() if marked.get("quiet") else {}
    return World(fleet_seed, calm | marked.get("world", {}))


@pytest.fixture
def virtual_clock(request: pytest.FixtureRequest) -> "VirtualClock":
    """Virtual time. `advance("3 h")` lets it pass, for the fleet as well."""
    from simulator.workbench import START, VirtualClock

    return VirtualClock(_marked(request).get("start", START))


@pytest.fixture
def fleet(request: pytest.FixtureRequest, world: "World", virtual_clock: "VirtualClock") -> "Iterator[BenchFleet]":
    """A few machines with the shipped agent and a stand-in for the server; no ledger, no plans."""
    from simulator.workbench import BenchFleet

    marked = _marked(request)
    chosen = {name: marked[name] for name in ("dispensers", "stocked") if name in marked}
    bench = BenchFleet(world, virtual_clock, **chosen)
    yield bench
    bench.close()


@pytest.fixture
def scenario(request: pytest.FixtureRequest, fleet_seed: int) -> "Callable[..., Outcome]":
    """Play a scenario: a file beside the test, or the name of a shipped one. Fails the test where an expectation does not hold.

    Without --fleet-server, --fleet-in-process or --fleet-served it meets the stand-in, and what needs a ledger is not judged.
    """
    option = request.config.getoption

    def play(name: str, *, days: float | None = None) -> "Outcome":
        from simulator.scenarios.command import stage
        from simulator.scenarios.playing import play as played
        from simulator.scenarios.reading import load

        beside = request.path.parent / name
        given: dict[str, Any] = {} if days is None else {"days": days}
        loaded = load(str(beside) if beside.exists() else name, given)
        chosen = option("--fleet-seed") is not None or option("--fleet-seeds") is not None
        with stage(_options(request.config), loaded) as here:
            outcome = played(loaded, fleet_seed if chosen else loaded.seed, here)
        outcome.replay = _replay(request.node, outcome.seed)
        if not outcome.passed:
            pytest.fail(outcome.words(), pytrace=False)
        return outcome

    return play


def _options(config: pytest.Config) -> argparse.Namespace:
    in_process, served = config.getoption("--fleet-in-process"), config.getoption("--fleet-served")
    server = config.getoption("--fleet-server")
    if not (in_process or served or server):
        in_process = "simulator.stand_in:connect"
    return argparse.Namespace(
        server=server,
        broker=config.getoption("--fleet-broker"),
        in_process=in_process,
        served=served,
        in_process_option=config.getoption("--fleet-option"),
        password_file=config.getoption("--fleet-password-file"),
        patience=120.0,
    )
