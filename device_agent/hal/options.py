"""Reads a driver's section of the configuration file; what is wrong is a BoardError that names field, value and expectation."""

from typing import Any

from device_agent.hal.ports import BoardError


class Options:
    """The section; every key must be asked for before `done`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config, self._known = config, set[str]()

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; without a default it must be there."""
        value = self._take(name, default)
        if not isinstance(value, str) or not value:
            raise BoardError(f"board.{name} = {value!r}: expected a text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a text, or None where the key is not given."""
        return self.text(name) if self._take(name, None) is not None else None

    def seconds(self, name: str, default: float) -> float:
        """Return a time from 0 up to an hour."""
        value = self._take(name, default)
        hour_s = 3600
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= hour_s:
            raise BoardError(f"board.{name} = {value!r}: expected seconds, more than 0 and at most {hour_s}")
        return float(value)

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        """Return a whole number."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise BoardError(f"board.{name} = {value!r}: expected a whole number from {lowest} to {highest}")
        return value

    def _take(self, name: str, default: Any) -> Any:
        self._known.add(name)
        return self._config.get(name, default)

    def done(self) -> None:
        """Refuse keys that nobody asked for: a misspelt one would be ignored in silence."""
        for name in self._config.keys() - self._known:
            expected = ", ".join(sorted(self._known))
            raise BoardError(f"board.{name} = {self._config[name]!r}: expected one of {expected}")
