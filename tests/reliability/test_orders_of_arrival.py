"""O1: phone operations and facts of several visits, in any order of arrival, give the same balances per slot and lot.

The same history happens at two machines. At one it arrives as it happened; at the other in any order that hypothesis thinks
of, with repeats. What the two have in their slots, and on all their accounts, must be the same.
"""

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.devices import fleet
from fleet_server.ledger.audit import audit
from fleet_server.ledger.operations import SlotOperation
from fleet_server.ledger.reading import slot_stock
from protocol.messages import DoorClosed, DoorOpened, Outcome, SlotPlan
from tests.fleet_server.fixtures import enter, operation, send
from tests.fleet_server.machine import Machine

pytestmark = [pytest.mark.slow]
SLOTS = (1, 2)
_machines = itertools.count(1)

LOTS = st.sampled_from(["L1", "L2", "L3"])
ENTRIES = st.one_of(
    st.fixed_dictionaries({"kind": st.just("refill"), "slot": st.sampled_from(SLOTS), "lot": LOTS, "packs": st.integers(1, 9)}),
    st.fixed_dictionaries({"kind": st.just("count"), "slot": st.sampled_from(SLOTS), "counted": st.integers(0, 15)}),
    st.fixed_dictionaries(
        {"kind": st.just("remove"), "slot": st.sampled_from(SLOTS), "lot": LOTS, "packs": st.integers(1, 4), "reason": st.just("expired")}
    ),
)  # fmt: skip
OUTCOMES = st.sampled_from([Outcome.DELIVERED, Outcome.DELIVERED, Outcome.UNVERIFIED, Outcome.IN_DOUBT, Outcome.JAM])
VENDS = st.lists(st.tuples(st.sampled_from(SLOTS), OUTCOMES), max_size=5)
VISITS = st.lists(st.tuples(VENDS, st.lists(ENTRIES, min_size=1, max_size=4), VENDS), min_size=2, max_size=4)


class Side:
    """One machine, its stream, and what the phones have to tell of it."""

    def __init__(self, database: Database, visits: list[Any]) -> None:
        self.database, self.id = database, f"O1-{next(_machines):05d}"
        register(database, self.id)
        self.machine = Machine(self.id)
        self.operations: list[SlotOperation] = []
        self.sent = 0
        for number, (vends, entries, later) in enumerate(visits):
            code = f"{number:06d}"
            self._vends(vends)
            self.machine.tell(DoorOpened(**self.machine.when(), session=code, authorised=True))
            self.machine.tell(DoorClosed(**self.machine.when(), session=code, open_ms=60_000))
            self._vends(later)
            self.operations += [
                operation(entry["kind"], code, step, **self._fields(entry)) for step, entry in enumerate(entries, 1)
            ]

    def _vends(self, vends: list[tuple[int, Outcome]]) -> None:
        for slot, outcome in vends:
            self.machine.vend(slot, outcome)

    def _fields(self, entry: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in entry.items() if name != "kind"}
        return fields | {"dispenser_id": self.id, "van": f"van/{self.id}"}

    def facts_arrive(self, number: int) -> None:
        """The next facts of the stream; some that were sent before come along."""
        last = min(len(self.machine.lines), self.sent + number)
        if last > self.sent:
            send(self.database, self.machine, first=max(1, self.sent - 1), last=last)
            self.sent = last

    def everything_arrives(self) -> None:
        self.facts_arrive(len(self.machine.lines))
        for number in range(len(self.operations)):
            self.operation_arrives(number)

    def operation_arrives(self, number: int) -> None:
        enter(self.database, self.operations[number])

    def accounts(self) -> dict[tuple[str, str, str], int]:
        query = text("SELECT account, product, lot, units FROM balances WHERE units <> 0 AND strpos(account, :id) > 0")
        with self.database.begin() as connection:
            rows = connection.execute(query, {"id": self.id}).all()
        return {(row.account.replace(self.id, "HERE"), row.product, row.lot): row.units for row in rows}

    def queues(self) -> dict[int, list[tuple[str, int]]]:
        with self.database.begin() as connection:
            stock = slot_stock(connection, [self.id])
        return {
            slot: [(run.lot, run.packs) for run in found.queue] for (_, slot), found in stock.items() if found.queue
        }


def register(database: Database, dispenser_id: str) -> None:
    with database.begin() as connection:
        dispenser = fleet.Dispenser(
            dispenser_id, "点位", "Site", "街道", "Street", "370211001", "community", "indoor", 36.0, 120.1,
            0, 24, "HUANGDAO", None, None, "",
        )  # fmt: skip
        fleet.add_dispensers(connection, [dispenser])
        fleet.add_slots(
            connection, dispenser_id, [SlotPlan(slot=slot, product="CONDOM-M", capacity=20) for slot in SLOTS]
        )


def same(disordered: Side, ordered: Side) -> None:
    assert disordered.queues() == ordered.queues()
    slots, expected = (
        {key: units for key, units in side.accounts().items() if key[0].startswith("slot/")}
        for side in (disordered, ordered)
    )
    assert slots == expected
    assert disordered.accounts() == ordered.accounts()


def arrivals(database: Database) -> type[RuleBasedStateMachine]:
    """A state machine of everything that may arrive when."""

    class Arrivals(RuleBasedStateMachine):
        @initialize(visits=VISITS)
        def a_history(self, visits: list[Any]) -> None:
            self.visits = visits
            self.here = Side(database, visits)

        @rule(number=st.integers(1, 12))
        def facts_arrive(self, number: int) -> None:
            self.here.facts_arrive(number)

        @rule(data=st.data())
        @precondition(lambda self: bool(self.here.operations))
        def an_operation_arrives(self, data: st.DataObject) -> None:
            """Any of any visit, also one that has come before."""
            self.here.operation_arrives(data.draw(st.integers(0, len(self.here.operations) - 1)))

        def teardown(self) -> None:
            if hasattr(self, "here"):
                self.here.everything_arrives()
                ordered = Side(database, self.visits)
                ordered.everything_arrives()
                same(self.here, ordered)

    return Arrivals


def search(database: Database, examples: int) -> None:
    found = settings(
        max_examples=examples, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck), database=None,
        derandomize=True,
    )  # fmt: skip
    run_state_machine_as_test(arrivals(database), settings=found)
    with database.begin() as connection:
        assert audit(connection).differences == []


@pytest.mark.timeout(300)
def test_o1_any_order_of_arrival_gives_the_same_balances_per_slot_and_lot(database: Database) -> None:
    search(database, 20)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_o1_any_order_of_arrival_through_many_histories(database: Database) -> None:
    search(database, 2_000)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_o1_operations_of_three_visits_one_of_them_after_a_later_count(
    database: Database, order: tuple[int, ...]
) -> None:
    """The second visit counts; the first one's refill, and a removal, come after that count was booked."""
    visits: list[Any] = [
        ([], [{"kind": "refill", "slot": 1, "lot": "L1", "packs": 8}], [(1, Outcome.DELIVERED), (1, Outcome.IN_DOUBT)]),
        ([], [{"kind": "count", "slot": 1, "counted": 5}, {"kind": "refill", "slot": 1, "lot": "L2", "packs": 3}], [(1, Outcome.DELIVERED)]),
        ([], [{"kind": "remove", "slot": 1, "lot": "L1", "packs": 1, "reason": "expired"}, {"kind": "count", "slot": 1, "counted": 6}], []),
    ]  # fmt: skip
    disordered, ordered = Side(database, visits), Side(database, visits)
    disordered.facts_arrive(3)
    steps = {0: (0,), 1: (1, 2), 2: (3, 4)}
    for visit in order:
        for number in steps[visit]:
            disordered.operation_arrives(number)
    disordered.everything_arrives()
    ordered.everything_arrives()
    same(disordered, ordered)
    assert sum(packs for _, packs in disordered.queues()[1]) == 6
    with database.begin() as connection:
        assert audit(connection).differences == []
