"""The world: every number has a mark, every draw has a stream of its own, and the year looks as the model says."""

import math
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import pytest

from simulator.faults import CHANCES, FORMS, Injection, InjectionError, Kind
from simulator.lunar import is_double_seventh, lunar
from simulator.parameters import MARKS, NOT_READ, ParameterError, Parameters, fault_rows
from simulator.world import HOUR_MS, Site, World, day_start_ms, local, local_day, local_hour, sites

SEED = 7
FIRST = date(2026, 1, 1)
YEAR = [FIRST + timedelta(days=n) for n in range(365)]
BY_ID = {site.dispenser_id: site for site in sites()}
MIX = set(World(SEED).product_mix)


# ---------------------------------------------------------------- parameters


def test_every_parameter_keeps_its_mark() -> None:
    unmarked = [parameter.name for parameter in Parameters() if not any(mark in parameter.basis for mark in MARKS)]
    assert unmarked == []


def test_a_parameter_of_the_scenario_says_so() -> None:
    overridden = {p.name: p for p in Parameters({"count.k": 5})}["count.k"]
    assert (overridden.value, overridden.basis) == (5, "assumption; var = m + m^2/k; overridden by the scenario")


def test_every_fault_with_a_rate_of_its_own_has_it_as_a_parameter() -> None:
    known = {parameter.name for parameter in Parameters()}
    derived = {
        row["code"] for row in fault_rows() if f"faults.{row['code']}.rate" not in known
    }  # These follow from stock, dates, weather or other faults.
    assert derived == {
        "SLOT_EMPTY", "LOW_STOCK", "BATTERY_LOW", "NET_WEAK", "COMM_RELIABILITY_LOW", "OVER_TEMP_WARN", "OVER_TEMP_ALARM",
        "HIGH_HUMIDITY", "EXPIRED_IN_SLOT", "STORAGE_FULL",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "rate", "per"),
    [
        ("SLOT_JAM", 4.0, "per 1000_vends"),
        ("SLOT_HELIX", 1 / 300, "per refill"),
        ("DOOR_LEFT_OPEN", 0.02, "per visit"),
        ("ACCESS_BLOCKED", 0.02, "per visit"),
        ("VMC_OFFLINE", 0.03, "per machine_month"),
        ("SIM_FAULT", 0.002, "per machine_month"),
    ],
)
def test_the_rates_of_faults_csv_are_read_with_their_unit(code: str, rate: float, per: str) -> None:
    parameters = Parameters()
    assert parameters[f"faults.{code}.rate"] == pytest.approx(rate)
    assert {p.name: p.words for p in parameters}[f"faults.{code}.rate"] == per


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"count.kk": 1}, "count.kk: expected a known parameter, such as count.k"),
        ({"count.k": "3"}, "count.k = '3': expected a number, 0 or more"),
        ({"count.k": -1}, "count.k = -1: expected a number, 0 or more"),
        ({"count.k": math.nan}, "count.k = nan: expected a number"),
        ({"count.k": True}, "count.k = True: expected a number"),
        ({"climate.sun_exposed_share": 2}, "climate.sun_exposed_share = 2: expected a share from 0 to 1"),
        ({"quota.enforced": 1}, "quota.enforced = 1: expected true or false"),
        (
            {"weekday.values": [1, 2]},
            r"weekday.values = \[1, 2\]: expected a list of 7 values like \[1.0, 0.98, 0.98\]",
        ),
        ({"spring_festival.dates": [3]}, r"spring_festival.dates = \[3\]: expected a list of texts like '2024-02-10'"),
        ({"faults.SIM_FAULT.rate": "often"}, "faults.SIM_FAULT.rate = 'often': expected a number, 0 or more"),
    ],
)
def test_a_wrong_override_names_field_value_and_expectation(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match="^" + words):
        World(1, parameters=overrides)


def test_an_override_reaches_what_it_is_for() -> None:
    site, day = BY_ID["HD-002"], date(2026, 5, 20)
    assert World(SEED, {"type_base_boxes_per_day.dormitory": 9}).rate(site, day) == 2 * World(SEED).rate(site, day)
    quiet = World(SEED, {"faults.NET_LOSS.rate": 0})
    assert not any(i.kind is Kind.NETWORK_FAILS for day in YEAR for i in quiet.injections(site, day))


# ---------------------------------------------------------------- determinism

FINGERPRINT = """
import hashlib
from datetime import date
from simulator.world import World, sites
world, said = World(3), []
for site in sites()[:5]:
    for day in (date(2026, 2, 20), date(2026, 7, 30)):
        said += world.visitors(site, day, {"CONDOM-M", "CONDOM-L"}) + world.injections(site, day)
        said += [world.rate(site, day), world.air(site, 1_785_000_000_000), world.latency_ms(site.dispenser_id, 9)]
said += [world.mishaps("V1", 5), world.noise("x"), world.stream("y").random()]
print(hashlib.sha256(repr(said).encode()).hexdigest())
"""


def test_a_seed_gives_the_same_world_in_every_process() -> None:
    def said(hash_seed: str) -> str:
        environment = {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", FINGERPRINT]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert said("1") == said("2") != ""


def test_one_machines_draws_depend_on_no_other() -> None:
    alone, among = World(SEED), World(SEED)
    for site in sites():
        for day in YEAR[:20]:
            among.visitors(site, day, MIX)
            among.injections(site, day)
    site, day = BY_ID["HD-030"], YEAR[10]
    assert alone.visitors(site, day, MIX) == among.visitors(site, day, MIX)
    assert alone.injections(site, day) == among.injections(site, day)
    assert World(SEED + 1).visitors(site, day, MIX) != alone.visitors(site, day, MIX)


def test_a_year_is_the_sum_of_its_days_wherever_one_begins() -> None:
    world, site = World(SEED, {"faults.NET_LOSS.rate": 60}), BY_ID["HD-010"]
    by_day = [injection for day in YEAR for injection in world.injections(site, day)]
    assert by_day == sorted(by_day, key=lambda i: i.at_ms)
    assert len(by_day) == pytest.approx(60 * 12, rel=0.15)
    for day in YEAR[::50]:
        assert all(local_day(i.at_ms) == day for i in world.injections(site, day))


# ---------------------------------------------------------------- demand


def test_a_year_of_the_fleet_asks_for_about_thirty_eight_thousand_packs() -> None:
    world = World(SEED)
    asked = sum(world.rate(site, day) for site in sites() for day in YEAR)
    assert 30_000 < asked < 48_000


def test_visitors_come_in_number_and_hour_as_the_model_says() -> None:
    world, site = World(SEED), BY_ID["HD-002"]
    days = [world.visitors(site, day, MIX) for day in YEAR if day.month in {4, 5, 6}]
    mean = sum(world.rate(site, day) for day in YEAR if day.month in {4, 5, 6}) / len(days)
    counts = [len(day) for day in days]
    average = sum(counts) / len(counts)
    variance = sum((count - average) ** 2 for count in counts) / len(counts)
    assert average == pytest.approx(mean, rel=0.25)
    assert variance > 1.5 * average, "overdispersed: a negative binomial"
    hours = Counter(local(visitor.at_ms).hour for day in days for visitor in day)
    assert hours[21] > 3 * max(1, hours[9])


def test_sites_are_empty_outside_their_hours() -> None:
    world, site = World(SEED), BY_ID["HD-001"]
    hours = {local(visitor.at_ms - HOUR_MS // 4).hour for day in YEAR for visitor in world.visitors(site, day, MIX)}
    assert hours <= set(range(7, 18))


@pytest.mark.parametrize(
    ("lunar_new_year", "double_seventh"),
    [
        ("2024-02-10", "2024-08-10"),
        ("2025-01-29", "2025-08-29"),
        ("2026-02-17", "2026-08-19"),
        ("2027-02-06", "2027-08-08"),
        ("2028-01-26", "2028-08-26"),
    ],
)
def test_the_lunar_calendar_knows_its_feasts(lunar_new_year: str, double_seventh: str) -> None:
    assert lunar(date.fromisoformat(lunar_new_year)) == (1, 1, False)
    assert is_double_seventh(date.fromisoformat(double_seventh))
    assert lunar(date(2035, 1, 1)) is None


def test_factors_of_the_calendar_multiply_the_rate() -> None:
    world = World(SEED, {"weekday.values": [1, 1, 1, 1, 1, 1, 1]})

    def against(site: Site, day: date, plain: date) -> float:
        return world.rate(site, day) / world.rate(site, plain)

    plain = date(2026, 6, 10)
    dormitory, campus = BY_ID["HD-002"], next(s for s in sites() if s.kind == "campus")
    assert against(dormitory, date(2026, 2, 17), plain) == pytest.approx(0.12)
    assert 0.12 < against(dormitory, date(2026, 2, 9), plain) < 1
    assert against(dormitory, date(2026, 3, 6), plain) == 1
    assert against(dormitory, date(2026, 8, 19), plain) == pytest.approx(1.4)
    assert against(dormitory, date(2026, 12, 1), plain) == pytest.approx(1.2)
    assert against(campus, date(2026, 7, 20), plain) == pytest.approx(
        0.3 * (1.25 if campus.street == "370211003" else 1)
    )
    beach = next(s for s in sites() if s.street == "370211003" and s.kind == "market")
    assert against(beach, date(2026, 8, 5), plain) == pytest.approx(1.25)


def test_a_small_town_has_its_fair_every_five_days_of_the_lunar_month() -> None:
    world, site = World(SEED, {"weekday.values": [1.0] * 7}), next(s for s in sites() if s.is_rural_market)
    june = [date(2026, 6, 1) + timedelta(days=n) for n in range(30)]
    usual = min(world.rate(site, day) for day in june)
    fairs = [day for day in june if world.rate(site, day) > 1.5 * usual]
    assert 5 <= len(fairs) <= 7
    assert world.rate(site, fairs[0]) == pytest.approx(1.8 * usual)


def test_a_new_site_has_its_share_of_the_first_year_in_the_first_half() -> None:
    world = World(SEED, {"weekday.values": [1.0] * 7, "other_days.qixi": 1.0})
    known = BY_ID["HD-013"]
    new = Site("NEW", "community", "indoor", 36, 120, 2.0, "", opened_on=FIRST)
    ripe = Site("NEW", "community", "indoor", 36, 120, 2.0)
    ramp = [world.rate(new, day) / world.rate(ripe, day) for day in YEAR]
    assert sum(ramp[:182]) / sum(ramp) == pytest.approx(0.31, abs=0.01)
    assert world.rate(new, date(2027, 6, 1)) == world.rate(ripe, date(2027, 6, 1))
    assert known.opened_on is None


def test_with_a_quota_people_take_one_pack_each_and_some_are_turned_away() -> None:
    site = BY_ID["HD-002"]

    def packs(world: World) -> tuple[int, int]:
        """Packs asked for, and how many of them follow another within a minute or so."""
        times = [visitor.at_ms for day in YEAR for visitor in world.visitors(site, day, MIX)]
        return len(times), sum(0 < later - one < 75_000 for one, later in pairwise(times))

    free, quota = packs(World(SEED)), packs(World(SEED, {"quota.enforced": True, "quota.reject_share": 0.5}))
    assert free[1] > 0.3 * free[0]
    assert quota[1] < 0.1 * quota[0]
    assert quota[0] < 0.65 * free[0]


# ---------------------------------------------------------------- climate


def hours_of_a_year(world: World, site: Site, what: str) -> list[list[float]]:
    return [
        [
            getattr(world.air(site, at_ms), what)(local_hour(at_ms))
            for at_ms in range(day_start_ms(day), day_start_ms(day) + 24 * HOUR_MS, HOUR_MS)
        ]
        for day in YEAR
    ]


def test_only_a_cabinet_in_the_sun_gets_hot_and_that_on_a_few_days() -> None:
    world = World(SEED)
    for site in sites():
        days = hours_of_a_year(world, site, "temperature_at")
        alarms = sum(any(min(pair) >= 40 for pair in pairwise(day)) for day in days)
        if world.is_exposed_to_sun(site):
            assert 1 <= alarms <= 12, site.dispenser_id
        else:
            assert alarms == 0, site.dispenser_id
    assert 2 <= sum(world.is_exposed_to_sun(site) for site in sites()) <= 10


def test_outdoors_the_label_limit_is_passed_in_july_and_august() -> None:
    world, site = World(SEED), next(s for s in sites() if s.is_outdoors)
    warm = [
        day for day, hours in zip(YEAR, hours_of_a_year(world, site, "temperature_at"), strict=True) if sum(hours) > 720
    ]
    assert warm
    assert {day.month for day in warm} <= {6, 7, 8, 9}
    assert sum(day.month in {7, 8} for day in warm) > 0.7 * len(warm)


def test_fog_comes_in_its_season_and_winter_is_dry() -> None:
    world, site = World(SEED), next(s for s in sites() if s.is_outdoors)
    damp = [
        day for day, hours in zip(YEAR, hours_of_a_year(world, site, "humidity_at"), strict=True) if min(hours) > 80
    ]
    assert damp
    assert {day.month for day in damp} <= {6, 7, 8}


# ---------------------------------------------------------------- what goes wrong


def test_faults_happen_as_often_as_faults_csv_says() -> None:
    world = World(SEED)
    found = Counter(i.kind for site in sites() for day in YEAR for i in world.injections(site, day))
    months = 12 * len(sites())
    for chance in CHANCES:
        expected = world.parameters.number(chance.rate) * months
        assert abs(found[chance.kind] - expected) <= 4 * math.sqrt(expected) + 1, (chance.kind, found[chance.kind])


def test_outages_have_a_median_of_eight_minutes_and_a_long_tail() -> None:
    world = World(SEED)
    minutes = sorted(
        (i.until_ms - i.at_ms) / 60_000
        for site in sites()
        for day in YEAR
        for i in world.injections(site, day)
        if i.kind is Kind.NETWORK_FAILS and i.until_ms is not None
    )
    assert minutes[len(minutes) // 2] == pytest.approx(8, rel=0.2)
    assert minutes[int(0.99 * len(minutes))] > 120
    assert minutes[-1] <= 4 * 24 * 60


def test_every_parameter_is_read_by_something() -> None:
    world = World(SEED)
    world.mishaps("V", 3)
    world.has_battery(sites()[0])
    assert sum(world.product_mix.values()) == pytest.approx(1)
    elsewhere = {
        "faults.SLOT_JAM.rate", "faults.DROP_NOT_SEEN.rate", "vends.did_not_fall_share", "vends.double_drop_per_1000",
        "stock_drift.miscount_per_refill_sd_boxes", "visits.finished_offline_share", "visits.near_expiry_days", "power.battery_h", "power.recharge_h",
    }  # fmt: skip
    assert {p.name for p in world.parameters} - world.parameters.read - elsewhere == NOT_READ


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": Kind.NETWORK_FAILS}, "until_ms with network_fails: expected one"),
        ({"kind": Kind.NETWORK_FAILS, "until_ms": 1}, "until_ms = 1: expected later than 5"),
        ({"kind": Kind.HEAT, "slot": 3}, "slot = 3 with heat: expected none"),
        ({"kind": Kind.CLOCK_WRONG}, "value with clock_wrong: expected ms the clock is ahead"),
        ({"kind": Kind.HEAT, "value": "hot"}, "value = 'hot' with heat: expected degrees C"),
        ({"kind": Kind.VISITOR_COMES, "value": 3.0}, "value = 3.0 with visitor_comes: expected the code of a product"),
    ],
)
def test_an_injection_that_cannot_be_is_refused_with_what_was_expected(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InjectionError, match="^" + words):
        Injection(5, **arguments)


def test_every_kind_has_its_form() -> None:
    assert set(FORMS) == set(Kind)
    codes = {row["code"] for row in fault_rows()}
    assert {code for form in FORMS.values() for code in form.codes} <= codes
