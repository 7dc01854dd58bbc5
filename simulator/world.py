"""The world's rules: who comes to a site, when, and what goes wrong there. Pure, and seeded by purpose, site and day.

Every draw has a stream of its own, named by what it is for: one machine's draws never depend on another's, and a day is
the same wherever a run was stopped.
"""

import csv
import json
import math
import random
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cached_property
from importlib.resources import files
from typing import Any, Final

LOCAL: Final = timezone(timedelta(hours=8), "Asia/Shanghai")
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Site:
    """One illustrative site; `mean_boxes_per_day` before its own site effect."""

    dispenser_id: str
    kind: str
    placement: str
    latitude: float
    longitude: float
    mean_boxes_per_day: float

    @property
    def is_rural_market(self) -> bool:
        """Whether it is one of the small town markets."""
        return self.kind == "market" and self.mean_boxes_per_day < 2  # noqa: PLR2004 - the rural factor of the model


def data_text(name: str) -> str:
    """Read one of the simulator's data files."""
    return (files("simulator") / "data" / name).read_text(encoding="utf-8")


def sites() -> list[Site]:
    """Return the 42 sites, by id."""
    return [
        Site(
            row["id"],
            row["type"],
            row["placement"],
            float(row["lat"]),
            float(row["lon"]),
            float(row["demo_mean_boxes_per_day"]),
        )
        for row in csv.DictReader(data_text("sites.csv").splitlines())
    ]


def local(at_ms: int) -> datetime:
    """Return the local time of a virtual moment."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(LOCAL)


def day_start_ms(day: date) -> int:
    """Return the first moment of a local day."""
    return int(datetime(day.year, day.month, day.day, tzinfo=LOCAL).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who comes at a moment and asks for a product."""

    at_ms: int
    product: str
    patient: bool


@dataclass(frozen=True, slots=True)
class Outage:
    """Something is away for a while: the network, or the mains."""

    begins_ms: int
    ends_ms: int


class World:
    """The demand model and the fault rates, under one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.model: dict[str, Any] = json.loads(data_text("demand_model.json"))

    def stream(self, *purpose: object) -> random.Random:
        """Return the stream of random numbers of one purpose; the same in every process."""
        return random.Random("/".join(str(part) for part in (self.seed, *purpose)))  # noqa: S311 - simulation

    # ------------------------------------------------------------ demand

    @cached_property
    def product_mix(self) -> dict[str, float]:
        """The share of each product in what visitors ask for."""
        return {name: share for name, share in self.model["product_mix"].items() if name != "basis"}

    @cached_property
    def _festivals(self) -> list[date]:
        return [date.fromisoformat(day) for day in self.model["spring_festival"]["dates"]]

    def site_effect(self, site: Site) -> float:
        """How much busier this site is than its type says; lognormal with mean about 1."""
        effect = self.model["site_effect"]
        return math.exp(self.stream("site", site.dispenser_id).gauss(effect["mu"], effect["sigma"]))

    def rate(self, site: Site, day: date) -> float:
        """Expected boxes asked for at a site on a local day."""
        weekday = self.model["weekday"]["values"][day.weekday()]
        return float(site.mean_boxes_per_day * self.site_effect(site) * weekday * self._season(site, day))

    def _season(self, site: Site, day: date) -> float:
        factor = self._festival(site, day)
        if site.kind == "campus":
            for name in ("summer", "winter"):
                first, last, value = self.model["campus_holidays"][name]
                if first <= day.strftime("%m-%d") <= last:
                    factor = min(factor, value)
        for span, value in self.model["other_days"].items():
            first, _, last = span.partition("..")
            if isinstance(value, float) and first <= day.strftime("%m-%d") <= (last or first):
                factor *= value
        return factor

    def _festival(self, site: Site, day: date) -> float:
        """The trough or peak around Spring Festival, with a ramp on either side."""
        festival = self.model["spring_festival"]
        name = {"market": "rural_market" if site.is_rural_market else "market_urban", "community": "community_urban"}
        value = festival["factor"].get(name.get(site.kind, site.kind), 1.0)
        first, last = festival["trough_days"]
        for middle in self._festivals:
            distance = (day - middle).days
            outside = max(first - distance, distance - last, 0)
            if outside < festival["ramp_days"]:
                depth = 1 - outside / festival["ramp_days"]
                return float(1 + (value - 1) * depth)
        return 1.0

    def opening(self, site: Site) -> tuple[int, int]:
        """The local hours in which a site is open."""
        hours = self.model["open_hours"]
        first, last = hours["indoor_service_centre" if site.kind == "community" else site.kind]
        return int(first), int(last)

    def visitors(self, site: Site, day: date, products: set[str]) -> list[Visitor]:
        """Everybody who comes to a site on one day, in order: negative binomial in number, by the hour's weight in time."""
        draw = self.stream("visitors", site.dispenser_id, day)
        k = self.model["count"]["k"]
        mean = draw.gammavariate(k, self.rate(site, day) / k)
        first, last = self.opening(site)
        weights = self.model["hour_weights_24h_site"][first:last]
        mix = {name: share for name, share in self.product_mix.items() if name in products}
        if not mix:
            return []
        start = day_start_ms(day)
        found = []
        for _ in range(_poisson(draw, mean)):
            hour = draw.choices(range(first, last), weights)[0]
            at_ms = start + hour * HOUR_MS + draw.randrange(HOUR_MS)
            product = draw.choices(list(mix), list(mix.values()))[0]
            found.append(Visitor(at_ms, product, draw.random() < 0.5))  # noqa: PLR2004 - an even chance
        return sorted(found, key=lambda visitor: visitor.at_ms)

    # ------------------------------------------------------------ what goes wrong

    def network_outages(self, site: Site, day: date) -> list[Outage]:
        """NET_LOSS: 3 a machine-month, median 8 minutes, with a long tail (assumption)."""
        return self._outages("network", site, day, per_month=3.0, median_min=8, sigma=1.5)

    def power_cuts(self, site: Site, day: date) -> list[Outage]:
        """POWER_LOSS: 0.3 a machine-month, median 20 minutes (assumption)."""
        return self._outages("power", site, day, per_month=0.3, median_min=20, sigma=1.0)

    def _outages(
        self, name: str, site: Site, day: date, *, per_month: float, median_min: float, sigma: float
    ) -> list[Outage]:
        draw = self.stream(name, site.dispenser_id, day)
        start = day_start_ms(day)
        found = []
        for _ in range(_poisson(draw, per_month / 30)):
            begins = start + draw.randrange(DAY_MS)
            minutes = min(median_min * math.exp(draw.gauss(0, sigma)), 4 * 24 * 60)
            found.append(Outage(begins, begins + int(minutes * 60_000)))
        return found

    def thefts(self, site: Site, day: date) -> int:
        """Packs that leave a machine by none of its ways: rare (assumption: one a machine in two years)."""
        return _poisson(self.stream("theft", site.dispenser_id, day), 1 / 730)

    def temperature_c(self, site: Site, at_ms: int) -> float:
        """Cabinet temperature: the season, the hour, and the sun on outdoor sites."""
        moment = local(at_ms)
        season = 13.5 - 13 * math.cos(2 * math.pi * (moment.timetuple().tm_yday - 25) / 365)
        hour = math.sin(2 * math.pi * (moment.hour - 9) / 24)
        outdoor = site.placement != "indoor"
        inside = season + 6 * hour if outdoor else 18 + (season - 13.5) * 0.4 + hour
        return round(inside + self.stream("heat", site.dispenser_id, moment.date()).gauss(0, 1.5), 1)


def _poisson(draw: random.Random, mean: float) -> int:
    """Knuth's method; the means here are small."""
    limit, product, number = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        number += 1
    return number
