"""The min-max rule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.planning.rule import EMERGENCY_DAYS, level, top_up

rates = st.floats(0, 50)
stocks = st.integers(-20, 400)
capacities = st.integers(1, 400)


@given(st.integers(-10, 400), stocks, st.integers(-10, 400))
def test_a_top_up_is_never_negative_and_never_more_than_a_slot_holds(
    capacity: int, unexpired: int, under_way: int
) -> None:
    assert 0 <= top_up(capacity, unexpired, under_way) <= max(0, capacity)


@given(capacities, st.integers(0, 400), st.integers(0, 400))
def test_after_its_top_up_a_slot_is_full_and_not_over_full(capacity: int, unexpired: int, under_way: int) -> None:
    after = unexpired + under_way + top_up(capacity, unexpired, under_way)
    assert after == max(capacity, unexpired + under_way)


@given(rates, stocks, capacities)
def test_a_minimum_fits_into_the_machine_and_covers_the_demand_until_the_next_visit(
    rate: float, stock: int, capacity: int
) -> None:
    found = level(rate, stock, capacity)
    assert 0 <= found.minimum <= found.maximum == capacity
    assert found.minimum >= min(capacity, rate * 9)


@given(rates, rates, capacities)
def test_more_demand_never_lowers_the_minimum(one: float, other: float, capacity: int) -> None:
    slow, fast = sorted((one, other))
    assert level(slow, 0, capacity).minimum <= level(fast, 0, capacity).minimum


def test_the_minimum_is_the_formula_of_the_stock_rules() -> None:
    spread = math.sqrt(9 * 2 * (1 + 2 / 3))
    assert level(2, 0, 500).minimum == pytest.approx(2 * 9 + 1.65 * spread)


def test_where_nothing_is_asked_for_no_stock_is_too_little() -> None:
    found = level(0, 0, 20)
    assert (found.minimum, found.days_of_supply, found.is_emergency) == (0, None, False)


@given(st.floats(0.01, 50), stocks, capacities)
def test_seven_days_of_supply_or_less_is_an_emergency(rate: float, stock: int, capacity: int) -> None:
    found = level(rate, stock, capacity)
    assert found.days_of_supply is not None
    assert found.days_of_supply >= 0
    assert found.is_emergency == (max(0, stock) / rate <= EMERGENCY_DAYS)
