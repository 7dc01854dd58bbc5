"""From deliveries to rates."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.demand.rates import PRODUCT_SHARE, TYPE_RATE, WINDOW_DAYS, observed, rate, rates

site_types = st.sampled_from(sorted(TYPE_RATE))
products = st.sampled_from(sorted(PRODUCT_SHARE))


@given(site_types, products)
def test_a_machine_without_history_has_the_rate_of_its_kind_of_site(site_type: str, product: str) -> None:
    assert rate(site_type, product, 0, 0) == pytest.approx(TYPE_RATE[site_type] * PRODUCT_SHARE[product])


@given(site_types, products, st.integers(0, 2_000), st.floats(0.1, 28))
def test_a_rate_lies_between_what_was_seen_and_what_was_expected(
    site_type: str, product: str, packs: int, days: float
) -> None:
    prior, seen = rate(site_type, product, 0, 0), packs / days
    found = rate(site_type, product, packs, days)
    assert min(prior, seen) <= found * (1 + 1e-9)
    assert found <= max(prior, seen) * (1 + 1e-9)


def test_the_longer_a_machine_is_observed_the_more_its_own_history_counts() -> None:
    busy = [rate("community", "CONDOM-M", round(10 * days), days) for days in (1, 7, 28)]
    assert busy == sorted(busy)
    assert busy[-1] > 7


def test_a_machine_that_gives_nothing_out_keeps_a_small_rate_and_never_a_negative_one() -> None:
    assert 0 < rate("campus", "CONDOM-M", 0, 28) < rate("campus", "CONDOM-M", 0, 0)
    assert rate("campus", "CONDOM-M", -3, 28) == rate("campus", "CONDOM-M", 0, 28)


def test_deliveries_of_all_slots_and_days_of_a_product_are_one_demand() -> None:
    rows = [
        ("HD-001", 1, "CONDOM-M", date(2026, 9, 1), 3),
        ("HD-001", 2, "CONDOM-M", date(2026, 9, 1), 2),
        ("HD-001", 1, "CONDOM-M", date(2026, 9, 2), 4),
        ("HD-002", 1, "CONDOM-L", date(2026, 9, 2), 1),
    ]
    assert observed(rows) == {("HD-001", "CONDOM-M"): 9, ("HD-002", "CONDOM-L"): 1}


def test_each_product_of_a_machine_has_one_rate_and_old_days_do_not_dilute_it() -> None:
    found = rates(
        {"HD-001": "market"},
        {"HD-001": ["CONDOM-M", "CONDOM-M", "N9-GEL"]},
        {("HD-001", "CONDOM-M"): 56},
        {"HD-001": 900},
    )
    assert set(found) == {("HD-001", "CONDOM-M"), ("HD-001", "N9-GEL")}
    assert found["HD-001", "CONDOM-M"] == rate("market", "CONDOM-M", 56, WINDOW_DAYS)
