"""Every figure that an expectation can name, with its unit. docs/scenarios.md lists exactly these."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocol.messages import Fact, Outcome, Refusal
from simulator.scenarios.codes import FAULT_CODES


class Unit(StrEnum):
    """What a figure is counted in."""

    NUMBER = "a number"
    PACKS = "packs"
    SHARE = "a share"
    TIME = "a time"
    CELSIUS = "°C"


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. With `members`, each has one of its own besides the sum: `lost_access`, `lost_access.jam`."""

    name: str
    unit: Unit
    about: str
    by_dispenser: bool = True
    members: tuple[str, ...] = ()
    of_ledger: bool = False
    """Whether only a server that keeps a ledger can tell."""


CAUSES: Final = (
    "empty", "jam", "power", "door", "storage", "expired", "blocked_lot", "disabled", "unplanned", "site_closed", "stolen",
    "controller", "drop_sensor",
)  # fmt: skip
"""What a machine could not serve for."""
UNOBSERVABLE: Final = (
    "double_drop", "fell_unseen", "did_not_fall", "in_doubt", "theft", "miscount", "refill_misentered", "untold",
)  # fmt: skip
"""What moves packs, and no machine can see."""
FACT_KINDS: Final = tuple(kind.model_fields["kind"].default for kind in Fact.__args__)
OUTCOMES: Final = tuple(str(outcome) for outcome in Outcome)
REFUSALS: Final = tuple(str(reason) for reason in Refusal)

METRICS: Final = {
    metric.name: metric
    for metric in (
        # What visitors met: the simulator's own books.
        Metric("requests", Unit.NUMBER, "visitors who asked for a pack"),
        Metric("delivered", Unit.PACKS, "packs that fell for visitors"),
        Metric("fill_rate", Unit.SHARE, "delivered / requests"),
        Metric("vends", Unit.NUMBER, "vends by how the machine says they ended", members=OUTCOMES),
        Metric("refused", Unit.NUMBER, "vends that were refused, by reason", members=REFUSALS),
        Metric("availability", Unit.SHARE, "share of opening hours in which a machine could dispense a condom"),
        Metric("lost_access", Unit.TIME, "time in which it could not, by cause", members=CAUSES),
        Metric("busiest_day", Unit.NUMBER, "requests of the day with the most", by_dispenser=False),
        Metric("quietest_day", Unit.NUMBER, "requests of the day with the fewest", by_dispenser=False),
        Metric("temperature", Unit.CELSIUS, "the highest in a cabinet"),
        # What is physically there, against the server's ledger.
        Metric(
            "residual",
            Unit.PACKS,
            "packs that neither the ledger nor the list of unobservable causes explains",
            of_ledger=True,
        ),
        Metric(
            "unobservable",
            Unit.PACKS,
            "packs moved by what no machine can see, by cause",
            members=UNOBSERVABLE,
        ),
        Metric("count_difference", Unit.PACKS, "packs that counts have found too many or too few", of_ledger=True),
        Metric("recalled_dispensed", Unit.PACKS, "packs of a recalled lot that fell after the machine knew"),
        # The stream of facts.
        Metric("facts", Unit.NUMBER, "facts, by kind", members=FACT_KINDS),
        Metric("untold", Unit.PACKS, "packs that fell and of which only a lost card knew"),
        Metric("streams", Unit.NUMBER, "streams of facts: one a machine, one more for each new card"),
        Metric("resent", Unit.NUMBER, "facts that were sent again"),
        Metric("backlog", Unit.NUMBER, "the most facts that one machine had waiting"),
        Metric("offline", Unit.TIME, "the longest time a machine was without a network"),
        Metric("caught_up_within", Unit.TIME, "the longest time from a healed connection to an empty backlog"),
        Metric(
            "faults", Unit.NUMBER, "faults that the server has opened, by code", members=FAULT_CODES, of_ledger=True
        ),
        # People, and what they ask of machines.
        Metric("orders", Unit.NUMBER, "orders that reached a machine", members=("run", "twice", "late")),
        Metric("visits", Unit.NUMBER, "visits of restockers", members=("offline",)),
        Metric("packs_loaded", Unit.PACKS, "packs that restockers loaded"),
        Metric("problems", Unit.NUMBER, "what the server refused to people", by_dispenser=False),
        Metric("dispensers", Unit.NUMBER, "machines that took part", by_dispenser=False),
    )
}


def names() -> list[str]:
    """Return every name that an expectation may begin with."""
    return ["audit", *(full for metric in METRICS.values() for full in _names(metric))]


def _names(metric: Metric) -> list[str]:
    return [metric.name, *(f"{metric.name}.{member}" for member in metric.members)]
