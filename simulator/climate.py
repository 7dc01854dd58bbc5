"""Temperature and humidity inside a cabinet, and the signal of its modem: season, weather, hour, and the sun on some sites.

Read every hour of a year by every machine: a day's figures are drawn once, an hour costs a look into two tables.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final

from simulator.parameters import Parameters
from simulator.streams import Streams, unit

HOUR_OF_DAY: Final = [math.sin(2 * math.pi * (hour - 9) / 24) for hour in range(24)]
SUN: Final = [max(0.0, math.cos(math.pi * (hour - 14) / 9)) if 10 <= hour <= 18 else 0.0 for hour in range(24)]  # noqa: PLR2004 - hours in which the sun reaches a cabinet
COLDEST_DAY: Final = 25
FOGGIEST_DAY: Final = 196
FOG_DAYS: Final = 28.0
DBM_OF_NOTHING, DBM_OF_EVERYTHING = -113, -51


@dataclass(frozen=True, slots=True)
class Air:
    """One day at one site: the day's means, and how far the hours swing around them."""

    temperature_c: float
    swing_c: float
    sun_c: float
    humidity_pct: float
    signal_dbm: float
    noise: int

    def temperature_at(self, hour: int) -> float:
        """Degrees in the cabinet."""
        noise = unit(self.noise, hour) - 0.5
        return round(self.temperature_c + self.swing_c * HOUR_OF_DAY[hour] + self.sun_c * SUN[hour] + noise, 1)

    def humidity_at(self, hour: int) -> float:
        """Percent; damper when it is cooler."""
        noise = 2 * unit(self.noise, hour + 24) - 1
        return round(min(99.0, max(15.0, self.humidity_pct - 1.5 * self.swing_c * HOUR_OF_DAY[hour] + noise)), 1)

    def signal_at(self, hour: int) -> int:
        """DBm."""
        dbm = round(self.signal_dbm + 4 * unit(self.noise, hour + 48) - 2)
        return min(DBM_OF_EVERYTHING, max(DBM_OF_NOTHING, dbm))


class Climate:
    """The climate of a district under one seed."""

    def __init__(self, parameters: Parameters, streams: Streams) -> None:
        self._of = parameters.under("climate")
        self._signal = parameters.under("network.signal_dbm")
        self._streams = streams
        self.air: Callable[[str, bool, date], Air] = lru_cache(maxsize=4096)(self._air)
        self._weather: Callable[[date], tuple[float, bool, float]] = lru_cache(maxsize=512)(self._draw_weather)
        self._site: Callable[[str], tuple[float, float]] = lru_cache(maxsize=65_536)(self._draw_site)

    def _draw_weather(self, day: date) -> tuple[float, bool, float]:
        """One draw for the whole district: a day's degrees and percent against its season, and whether it is clear."""
        draw = self._streams.stream("weather", day)
        warmer, clear = draw.gauss(0, self._of["weather_sd_c"]), draw.random() < self._of["clear_share"]
        return warmer, clear, draw.gauss(0, self._of["humidity_pct.day_sd"])

    def _draw_site(self, dispenser_id: str) -> tuple[float, float]:
        draw = self._streams.stream("climate", dispenser_id)
        return draw.random(), draw.gauss(self._signal["mean"], self._signal["site_sd"])

    def is_exposed_to_sun(self, dispenser_id: str, *, outdoors: bool) -> bool:
        """Tell whether the sun reaches the cabinet."""
        return outdoors and self._site(dispenser_id)[0] < self._of["sun_exposed_share"]

    def _air(self, dispenser_id: str, outdoors: bool, day: date) -> Air:
        of = self._of
        warmer, clear, damper = self._weather(day)
        number = day.timetuple().tm_yday
        season = -of["year_amplitude_c"] * math.cos(2 * math.pi * (number - COLDEST_DAY) / 365)
        fog = math.exp(-(((number - FOGGIEST_DAY) / FOG_DAYS) ** 2))
        humidity = of["humidity_pct.year_mean"] + of["humidity_pct.fog_season_gain"] * fog + damper - 5 * clear
        noise = self._streams.key("air", dispenser_id, day)
        signal = self._site(dispenser_id)[1] + self._signal["day_sd"] * (unit(noise, 99) * 2 - 1) * math.sqrt(3)
        if not outdoors:
            mean = of["indoor_mean_c"] + 0.3 * season + 0.2 * warmer
            return Air(mean, 1.0, 0.0, humidity - of["humidity_pct.indoor_less"], signal, noise)
        mean = of["year_mean_c"] + season + warmer + of["cabinet_gain_c"]
        sun = of["sun_gain_c"] if clear and self.is_exposed_to_sun(dispenser_id, outdoors=True) else 0.0
        return Air(mean, of["day_amplitude_c"], sun, humidity, signal, noise)
