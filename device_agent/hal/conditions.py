"""Faults that a driver watches: told once when they have lasted, ended once when they have been gone for as long."""

from dataclasses import dataclass

from device_agent.events import BoardFault, BoardFaultEnded


@dataclass(slots=True)
class Condition:
    """One fault code with its patience."""

    code: str
    raise_after_s: float = 0.0
    clear_after_s: float = 0.0
    told: bool = False
    _since_s: float | None = None

    def see(self, bad: bool | None, now_s: float, detail: str = "") -> list[BoardFault | BoardFaultEnded]:
        """Take one observation; None says nothing either way."""
        if bad is None or bad == self.told:
            self._since_s = None
            return []
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s < (self.raise_after_s if bad else self.clear_after_s):
            return []
        self.told, self._since_s = bad, None
        return [BoardFault(self.code, None, detail[:200])] if bad else [BoardFaultEnded(self.code)]
