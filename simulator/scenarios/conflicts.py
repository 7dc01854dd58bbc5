"""What the parts of a scenario cannot know of each other: moments within the run, machines that take part."""

from collections.abc import Iterator

from simulator.scenarios import injections
from simulator.scenarios.form import Loc, Scenario
from simulator.scenarios.words import unknown
from simulator.world import sites


def conflicts(scenario: Scenario) -> Iterator[tuple[Loc, str]]:
    """Yield (place, what was expected) of everything that does not go together."""
    yield from injections.mistakes(scenario)
    known = [site.dispenser_id for site in sites()]
    chosen = scenario.fleet.sites
    if isinstance(chosen, tuple):
        for place, one in enumerate(chosen):
            if one not in known:
                yield ("fleet", "sites", place), unknown(one, known)
    here = scenario.dispensers()
    for name, items in (("faults", scenario.faults), ("events", scenario.events)):
        for place, item in enumerate(items):
            for key, told in _of_item(item, scenario, here):
                yield (name, place, key), told
    for place, clause in enumerate(scenario.expect):
        if clause.dispenser is not None and clause.dispenser not in here:
            yield ("expect", place), f"expected a machine that takes part in place of [{clause.dispenser}]"


def _of_item(item: object, scenario: Scenario, here: list[str]) -> Iterator[tuple[str, str]]:
    moment, machines = getattr(item, "at", None), getattr(item, "dispensers", None)
    if moment is not None and not scenario.start_ms <= moment.at_ms(scenario.start_ms) < scenario.end_ms:
        yield "at", f"expected a moment within the {scenario.days:g} days from {scenario.start:%Y-%m-%d %H:%M}"
    if isinstance(machines, int) and machines > len(here):
        yield "dispensers", f"expected at most the {len(here)} machines that take part"
    elif isinstance(machines, tuple) and not set(machines) <= set(here):
        yield "dispensers", f"expected machines that take part: {', '.join(here[:3])}{' ...' if len(here) > 3 else ''}"  # noqa: PLR2004
