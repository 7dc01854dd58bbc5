"""The world's rules: who comes to a site, when, and what goes wrong there. Pure, and seeded by purpose, site and day.

Every number is a parameter with its basis (`parameters.py`), every draw has a stream of its own (`streams.py`).
"""

import csv
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cached_property, lru_cache
from typing import Any, Final

from simulator.climate import Air, Climate
from simulator.faults import Injection, Misfortune
from simulator.lunar import is_double_seventh, is_fair_day
from simulator.parameters import Parameters, data_text
from simulator.streams import Streams, poisson, unit

LOCAL: Final = timezone(timedelta(hours=8), "Asia/Shanghai")
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
EPOCH: Final = date(1970, 1, 1)
LOCAL_MS: Final = 8 * HOUR_MS
XUEJIADAO: Final = "370211003"
"""The street of the beaches."""
BETWEEN_PACKS_MS: Final = (25_000, 70_000)
"""How long somebody takes from one pack to the next."""


@dataclass(frozen=True, slots=True)
class Site:
    """One illustrative site; `mean_boxes_per_day` before its own site effect. One that has just opened fills up over a year."""

    dispenser_id: str
    kind: str
    placement: str
    latitude: float
    longitude: float
    mean_boxes_per_day: float
    street: str = ""
    opened_on: date | None = None

    @property
    def is_rural_market(self) -> bool:
        """Whether it is one of the small town markets."""
        return self.kind == "market" and self.mean_boxes_per_day < 2  # noqa: PLR2004 - the rural factor of the model

    @property
    def is_outdoors(self) -> bool:
        """Whether the cabinet stands in the open."""
        return self.placement != "indoor"


def site_rows(machines: int | None = None) -> list[dict[str, str]]:
    """Return the rows of sites.csv; with `machines`, so many, made from them over and over under ids of their own."""
    rows = list(csv.DictReader(data_text("sites.csv").splitlines()))
    if machines is None:
        return rows
    return [{**rows[number % len(rows)], "id": f"SIM-{number + 1:05d}"} for number in range(machines)]


def sites(machines: int | None = None) -> list[Site]:
    """Return the 42 sites, or so many made from them, by id."""
    return [
        Site(
            row["id"],
            row["type"],
            row["placement"],
            float(row["lat"]),
            float(row["lon"]),
            float(row["demo_mean_boxes_per_day"]),
            row["street_code"],
        )
        for row in site_rows(machines)
    ]


def local(at_ms: int) -> datetime:
    """Return the local time of a virtual moment."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(LOCAL)


def local_day(at_ms: int) -> date:
    """Return the local day of a virtual moment."""
    return EPOCH + timedelta(days=(at_ms + LOCAL_MS) // DAY_MS)


def local_hour(at_ms: int) -> int:
    """Return the local hour of a virtual moment."""
    return (at_ms + LOCAL_MS) % DAY_MS // HOUR_MS


def day_start_ms(day: date) -> int:
    """Return the first moment of a local day."""
    return (day - EPOCH).days * DAY_MS - LOCAL_MS


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who comes at a moment and asks for a product."""

    at_ms: int
    product: str
    patient: bool


@dataclass(frozen=True, slots=True)
class Mishaps:
    """What goes wrong in one visit of a restocker: nobody gets in, the door stays open, a coil is put back badly."""

    blocked: bool
    door_open_ms: int
    """How much longer than the work the door stays open."""
    helix_unseated: bool
    """Of the slot refilled last."""


class World:
    """The demand model, the climate and what goes wrong, under one seed. `parameters` overrides numbers by dotted name."""

    def __init__(self, seed: int, parameters: Mapping[str, Any] | Parameters | None = None) -> None:
        self.seed = seed
        self.parameters = parameters if isinstance(parameters, Parameters) else Parameters(parameters)
        self._streams = Streams(seed)
        self._climate = Climate(self.parameters, self._streams)
        self._misfortune = Misfortune(self.parameters, self._streams)
        self.site_effect: Callable[[Site], float] = lru_cache(maxsize=65_536)(self._site_effect)
        self._defaults = Parameters().under("type_base_boxes_per_day")
        self._read_demand()

    def stream(self, *purpose: object) -> random.Random:
        """Return the stream of random numbers of one purpose; the same in every process."""
        return self._streams.stream(*purpose)

    def noise(self, *purpose: object) -> int:
        """Return 64 random bits of one purpose, at a fifth of the cost of a stream."""
        return self._streams.key(*purpose)

    def _read_demand(self) -> None:
        of = self.parameters
        self._base = of.under("type_base_boxes_per_day")
        self._effect = of.number("site_effect.mu"), of.number("site_effect.sigma")
        self._k = of.number("count.k")
        self._weekdays = of["weekday.values"]
        self._fair = of.number("weekday.market_day_extra"), int(of["market_days.every_days"])
        self._hours = of.under("open_hours")
        self._hour_weights = of["hour_weights_24h_site"]
        self._festival_of = of.under("spring_festival")
        self._holidays = of.under("campus_holidays")
        self._other_days = of.under("other_days")
        self._tourism = of.number("season.jul_aug_tourism_xuejiadao")
        self._first_half = of.number("new_site_ramp.first_half_share")
        self._patient = of.number("patience.share")
        enforced = bool(of["quota.enforced"])
        without, with_quota = of.number("burst.orders_per_presentation_no_quota"), of.number("burst.with_quota")
        self._packs_each = with_quota if enforced else without
        reject = of.number("quota.reject_share")
        self._turned_away = reject if enforced else 0.0
        self._latency = of.number("network.latency_ms.median"), of.number("network.latency_ms.sigma")
        self._visit = (
            of.number("faults.ACCESS_BLOCKED.rate"),
            of.number("faults.DOOR_LEFT_OPEN.rate"),
            of.number("faults.SLOT_HELIX.rate"),
        )
        self._left_open = of.number("door.left_open_h.median"), of.number("door.left_open_h.sigma")

    # ------------------------------------------------------------ demand

    @cached_property
    def product_mix(self) -> dict[str, float]:
        """The share of each product in what visitors ask for."""
        return self.parameters.under("product_mix")

    @cached_property
    def _festivals(self) -> list[date]:
        return [date.fromisoformat(day) for day in self._festival_of["dates"]]

    def _site_effect(self, site: Site) -> float:
        """How much busier this site is than its type says; lognormal with mean about 1."""
        return math.exp(self.stream("site", site.dispenser_id).gauss(*self._effect))

    def rate(self, site: Site, day: date) -> float:
        """Expected boxes asked for at a site on a local day."""
        name = site.kind if site.kind in self._base else "community"
        base = site.mean_boxes_per_day * self._base[name] / self._defaults[name]
        if site.is_rural_market:
            base *= self._base["rural_market_factor"] / self._defaults["rural_market_factor"]
        return float(base * self.site_effect(site) * self._weekdays[day.weekday()] * self._season(site, day))

    def _season(self, site: Site, day: date) -> float:
        factor = self._festival(site, day) * self._ramp(site, day)
        month_day = day.strftime("%m-%d")
        if site.kind == "campus":
            for first, last, value in self._holidays.values():
                if first <= month_day <= last:
                    factor = min(factor, value)
        for span, value in self._other_days.items():
            first, _, last = span.partition("..")
            if first <= month_day <= (last or first) or (span == "qixi" and is_double_seventh(day)):
                factor *= value
        if site.street == XUEJIADAO and day.month in {7, 8}:
            factor *= self._tourism
        extra, every_days = self._fair
        if site.is_rural_market and is_fair_day(day, every_days, self._fair_offset(site, every_days)):
            factor *= extra
        return factor

    def _fair_offset(self, site: Site, every_days: int) -> int:
        return self._streams.key("fair", site.dispenser_id) % max(1, every_days)

    def _festival(self, site: Site, day: date) -> float:
        """The trough or peak around Spring Festival, with a ramp on either side."""
        of = self._festival_of
        name = {"market": "rural_market" if site.is_rural_market else "market_urban", "community": "community_urban"}
        value = of.get(f"factor.{name.get(site.kind, site.kind)}", 1.0)
        first, last = of["trough_days"]
        for middle in self._festivals:
            distance = (day - middle).days
            outside = max(first - distance, distance - last, 0)
            if of["window_days"][0] <= distance <= of["window_days"][1] and outside < of["ramp_days"]:
                depth = 1 - outside / of["ramp_days"]
                return float(1 + (value - 1) * depth)
        return 1.0

    def _ramp(self, site: Site, day: date) -> float:
        """A site that opened less than a year ago: a straight line whose first half holds its share of the first year."""
        if site.opened_on is None:
            return 1.0
        slope = 8 * (0.5 - self._first_half)
        begins = 1 - slope / 2
        year = min(1.0, max(0.0, (day - site.opened_on).days / 365))
        return (begins + slope * year) / (begins + slope)

    def opening(self, site: Site) -> tuple[int, int]:
        """The local hours in which a site is open."""
        first, last = self._hours["indoor_service_centre" if site.kind == "community" else site.kind]
        return int(first), int(last)

    def visitors(self, site: Site, day: date, products: set[str]) -> list[Visitor]:
        """Everybody who comes to a site on one day, in order: packs negative binomial in number, by the hour's weight in time.

        Somebody who takes several packs asks for one after the other, as the machine wants it.
        """
        mix = {name: share for name, share in self.product_mix.items() if name in products}
        rate = self.rate(site, day)
        if not mix or rate <= 0:
            return []
        draw = self.stream("visitors", site.dispenser_id, day)
        packs = poisson(draw, draw.gammavariate(self._k, rate / self._k))
        first, last = self.opening(site)
        hours, weights = range(first, last), list(itertools.accumulate(self._hour_weights[first:last]))
        names, shares = list(mix), list(itertools.accumulate(mix.values()))
        start = day_start_ms(day)
        found: list[Visitor] = []
        while packs > 0:
            wanted = min(packs, 1 + poisson(draw, max(0.0, self._packs_each - 1)))
            packs -= wanted
            at_ms = start + draw.choices(hours, cum_weights=weights)[0] * HOUR_MS + draw.randrange(HOUR_MS)
            product = draw.choices(names, cum_weights=shares)[0]
            patient, turned_away = draw.random() < self._patient, draw.random() < self._turned_away
            for _ in range(wanted):
                if not turned_away:
                    found.append(Visitor(at_ms, product, patient))
                at_ms += draw.randrange(*BETWEEN_PACKS_MS)
        return sorted(found, key=lambda visitor: visitor.at_ms)

    # ------------------------------------------------------------ what goes wrong

    def injections(self, site: Site, day: date) -> list[Injection]:
        """Return what happens to a machine by itself on one local day, in order, at the rates of faults.csv."""
        begins_ms = day_start_ms(day)
        return self._misfortune.of_day(site.dispenser_id, day, begins_ms, begins_ms + DAY_MS)

    def mishaps(self, visit_id: str, refills: int) -> Mishaps:
        """Return what goes wrong in one visit of a restocker who refills so many slots."""
        draw = self.stream("mishaps", visit_id)
        blocked, left_open, helix = (draw.random() for _ in range(3))
        hours = self._left_open[0] * math.exp(draw.gauss(0, self._left_open[1]))
        return Mishaps(
            blocked < self._visit[0],
            int(hours * HOUR_MS) if left_open < self._visit[1] else 0,
            helix < 1 - (1 - self._visit[2]) ** refills,
        )

    def latency_ms(self, dispenser_id: str, number: int) -> int:
        """Return the round trip of the `number`-th exchange of a machine."""
        luck = unit(self._latency_key(dispenser_id), number)
        # The logistic distribution stands in for the normal one: it is its own inverse.
        spread = math.log((luck + 1e-9) / (1 - luck + 1e-9)) / 1.7
        return 1 + int(self._latency[0] * math.exp(self._latency[1] * spread))

    @cached_property
    def _latency_key(self) -> Callable[[str], int]:
        return lru_cache(maxsize=65_536)(lambda dispenser_id: self._streams.key("latency", dispenser_id))

    def has_battery(self, site: Site) -> bool:
        """Tell whether a machine goes on for a while without mains."""
        luck = unit(self._streams.key("battery", site.dispenser_id), 0)
        return luck >= self.parameters.number("power.without_battery_share")

    def air(self, site: Site, at_ms: int) -> Air:
        """Return the day's climate in a cabinet."""
        return self._climate.air(site.dispenser_id, site.is_outdoors, local_day(at_ms))

    def is_exposed_to_sun(self, site: Site) -> bool:
        """Tell whether the sun reaches the cabinet."""
        return self._climate.is_exposed_to_sun(site.dispenser_id, outdoors=site.is_outdoors)
