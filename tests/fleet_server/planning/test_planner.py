"""A plan from its inputs alone."""

import copy
import json
from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.planning.planner import RETRY_DAYS, STOPS_MAX, TOURS_MAX, VAN_PACKS_MAX, make

TODAY = date(2026, 9, 21)


def day(days: int) -> str:
    return (TODAY + timedelta(days=days)).isoformat()


def run(packs: int, lot: str = "L1", expires: int | None = 900, **more: Any) -> dict[str, Any]:
    return {
        "lot": lot,
        "packs": packs,
        "blocked": False,
        "expires_on": None if expires is None else day(expires),
        **more,
    }


def slot(number: int = 1, *queue: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {"product": "CONDOM-M", "capacity": 20, "enabled": True, "owed": 0, "in_transit": 0}
    return {**fields, "slot": number, "queue": list(queue), **more}


def dispenser(*slots: dict[str, Any], name: str = "HD-001", rate: float = 0.5, **more: Any) -> dict[str, Any]:
    fields = {
        "latitude": 36.0, "longitude": 120.1, "promised": False, "ever_loaded": True, "counted_days_ago": 3,
        "faults": [], "rates": {"CONDOM-M": rate, "CONDOM-L": rate},
    }  # fmt: skip
    return {**fields, "id": name, "slots": list(slots), **more}


def lot(packs: int, name: str = "L1", expires: int = 900, **more: Any) -> dict[str, Any]:
    return {"product": "CONDOM-M", "lot": name, "packs": packs, "blocked": False, "expires_on": day(expires), **more}


def plan(*dispensers: dict[str, Any], stock: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    inputs = {
        "today": TODAY.isoformat(),
        "depot": [35.966, 120.173],
        "depot_stock": [lot(10_000)] if stock is None else stock,
        "dispensers": list(dispensers),
    }
    before = copy.deepcopy(inputs)
    found = make(inputs)
    assert inputs == before, "a plan must not change what it was made from"
    return found


def stops(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [stop for tour in found["tours"] for stop in tour["stops"]]


def reasons(machine: dict[str, Any]) -> list[str]:
    return [reason["code"] for stop in stops(plan(machine)) for reason in stop["reasons"]]


def picks(machine: dict[str, Any], **more: Any) -> list[tuple[int, str, int]]:
    return [(p["slot"], p["lot"], p["planned"]) for stop in stops(plan(machine, **more)) for p in stop["picks"]]


def test_a_machine_that_has_enough_is_left_alone() -> None:
    assert plan(dispenser(slot(1, run(20)))) == {"tours": [], "left_for_later": []}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (dispenser(slot(1)), ["empty"]),
        (dispenser(slot(1, run(5))), ["low"]),
        (dispenser(slot(1, run(20, expires=20)), rate=0.1, counted_days_ago=8), ["near_expiry"]),
        (dispenser(slot(1, run(20, expires=20)), rate=0.1, counted_days_ago=6), []),
        (dispenser(slot(1, run(10, expires=0), run(10, "L2")), rate=0.1), ["expired"]),
        (dispenser(slot(1, run(20)), faults=[{"code": "SLOT_JAM", "slot": 1}]), ["fault"]),
        (dispenser(slot(1, run(20)), counted_days_ago=30), ["count_due"]),
        (dispenser(slot(1, run(20)), counted_days_ago=None), ["count_due"]),
        (dispenser(slot(1, run(20)), faults=[{"code": "COUNT_DUE", "slot": 0}]), ["count_due"]),
        (dispenser(slot(1), ever_loaded=False, counted_days_ago=None), ["first_load"]),
    ],
)
def test_a_stop_says_why(machine: dict[str, Any], expected: list[str]) -> None:
    assert reasons(machine) == expected


def test_what_is_taken_out_before_it_expires_is_replaced_at_the_same_visit() -> None:
    machine = dispenser(slot(1, run(12, expires=20), run(4, "L3")), rate=0.1, counted_days_ago=8)
    assert picks(machine, stock=[lot(50, "L2")]) == [(1, "L2", 16)]


def test_a_reason_brings_the_figures_that_it_rests_on() -> None:
    (stop,) = stops(plan(dispenser(slot(1, run(3)), slot(2, run(2)))))
    assert stop["reasons"] == [
        {
            "code": "low", "product": "CONDOM-M", "stock": 5, "minimum": 8.3, "per_day": 0.5, "days_of_supply": 10.0,
            "emergency": False,
        }
    ]  # fmt: skip


def test_slots_of_one_product_stand_in_for_each_other() -> None:
    assert reasons(dispenser(slot(1), slot(2, run(20)))) == []


def test_packs_that_the_machine_would_refuse_are_no_stock() -> None:
    assert reasons(dispenser(slot(1, run(20, blocked=True)))) == ["empty"]
    assert reasons(dispenser(slot(1, run(20, "?", expires=None)))) == ["empty"]
    assert reasons(dispenser(slot(1, run(20, expires=-1)))) == ["empty", "expired"]
    assert reasons(dispenser(slot(1, run(20), owed=20))) == ["empty"]


def test_what_is_under_way_is_neither_missing_nor_sent_again() -> None:
    assert reasons(dispenser(slot(1, in_transit=20))) == []
    jammed = dispenser(slot(1, run(4), in_transit=10), rate=0.1, faults=[{"code": "SLOT_JAM", "slot": 1}])
    assert picks(jammed) == [(1, "L1", 6)]


def test_a_machine_that_is_promised_a_visit_is_not_planned_twice() -> None:
    assert stops(plan(dispenser(slot(1), promised=True))) == []


def test_a_fault_that_somebody_has_just_been_to_waits_before_the_next_visit() -> None:
    def jam(tried: int | None) -> dict[str, Any]:
        return dispenser(slot(1, run(20)), faults=[{"code": "SLOT_JAM", "slot": 1, "tried_days_ago": tried}])

    assert [reasons(jam(tried)) for tried in (None, 0, RETRY_DAYS - 1, RETRY_DAYS)] == [["fault"], [], [], ["fault"]]


def test_an_offline_machine_is_unknown_and_nothing_to_drive_to() -> None:
    assert reasons(dispenser(slot(1, run(20)), faults=[{"code": "NET_LOSS", "slot": 0}])) == []


def test_the_lot_that_expires_first_goes_out_first() -> None:
    stock = [lot(500, "LATE", 900), lot(8, "SOON", 200), lot(7, "MIDDLE", 400)]
    assert picks(dispenser(slot(1)), stock=stock) == [(1, "SOON", 8), (1, "MIDDLE", 7), (1, "LATE", 5)]


def test_a_lot_that_is_blocked_or_would_soon_expire_stays_in_the_depot() -> None:
    assert picks(dispenser(slot(1)), stock=[lot(50, "HOT", blocked=True), lot(50, "OLD", expires=60)]) == []


def test_a_short_depot_gives_what_it_has_to_the_most_urgent_machine() -> None:
    low = dispenser(slot(1, run(4)), name="HD-001")
    empty = dispenser(slot(1), name="HD-002")
    found = {s["dispenser_id"]: [p["planned"] for p in s["picks"]] for s in stops(plan(low, empty, stock=[lot(22)]))}
    assert found == {"HD-002": [20], "HD-001": [2]}


def test_a_disabled_slot_is_neither_missed_nor_filled() -> None:
    assert picks(dispenser(slot(1), slot(2, enabled=False))) == [(1, "L1", 20)]
    assert reasons(dispenser(slot(1, enabled=False))) == []


def test_an_emergency_goes_before_the_merely_low_and_a_fault_before_both() -> None:
    many = [dispenser(slot(1, run(4)), name=f"HD-{n:03d}") for n in range(STOPS_MAX * TOURS_MAX)]
    urgent = dispenser(slot(1, run(3)), name="HD-998")
    broken = dispenser(slot(1, run(20)), name="HD-999", faults=[{"code": "LOCK_FAULT", "slot": 0}])
    found = plan(*many, urgent, broken)
    assert {"HD-998", "HD-999"} <= {stop["dispenser_id"] for stop in stops(found)}
    assert found["left_for_later"] == ["HD-040", "HD-041"]


def test_a_tour_goes_to_the_nearest_machine_next() -> None:
    places = {"HD-001": 120.40, "HD-002": 120.20, "HD-003": 120.30}
    machines = [dispenser(slot(1), name=name, longitude=longitude) for name, longitude in places.items()]
    assert [stop["dispenser_id"] for stop in stops(plan(*machines))] == ["HD-002", "HD-003", "HD-001"]


machines = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 30)), min_size=1, max_size=4),
        st.floats(0, 8),
        st.floats(35.7, 36.2),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(machines, st.lists(st.integers(0, 4_000), max_size=5))
def test_a_plan_stays_within_vans_days_slots_and_depot(found: Any, lots: list[int]) -> None:
    given = [
        dispenser(
            *(slot(k, run(packs), capacity=capacity + 1, in_transit=under_way) for k, (packs, capacity, under_way) in enumerate(slots, 1)),
            name=f"HD-{n:03d}", rate=rate, latitude=latitude, promised=promised,
        )
        for n, (slots, rate, latitude, promised) in enumerate(found)
    ]  # fmt: skip
    stock = [lot(packs, f"L{n}", 100 + n) for n, packs in enumerate(lots)]
    result = plan(*given, stock=stock)

    assert len(result["tours"]) <= TOURS_MAX
    assert all(0 < len(tour["stops"]) <= STOPS_MAX for tour in result["tours"])
    assert all(tour["packs"] <= VAN_PACKS_MAX or len(tour["stops"]) == 1 for tour in result["tours"])
    visited = [stop["dispenser_id"] for stop in stops(result)]
    assert len(set(visited)) == len(visited)
    assert not set(visited) & set(result["left_for_later"])
    assert not {d["id"] for d in given if d["promised"]} & {*visited, *result["left_for_later"]}
    taken: Counter[str] = Counter()
    by_id = {d["id"]: {s["slot"]: s for s in d["slots"]} for d in given}
    for stop in stops(result):
        loaded: Counter[int] = Counter()
        for pick in stop["picks"]:
            assert pick["planned"] > 0
            taken[pick["lot"]] += pick["planned"]
            loaded[pick["slot"]] += pick["planned"]
        for number, packs in loaded.items():
            target = by_id[stop["dispenser_id"]][number]
            assert packs + sum(r["packs"] for r in target["queue"]) + target["in_transit"] <= target["capacity"]
    assert all(packs <= lots[int(name[1:])] for name, packs in taken.items())
    assert json.loads(json.dumps(result)) == result, "a plan survives being kept as JSON"
