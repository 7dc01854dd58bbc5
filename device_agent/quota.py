"""Pick-up limits that need no identity: a cool-down and a daily cap per slot, on monotonic time."""

from collections import defaultdict, deque
from typing import Final

from protocol.messages import Limits

DAY_MS: Final = 86_400_000


class Quota:
    """Packs given per slot in the last 24 hours. It begins anew with the agent: a restart costs a visitor nothing."""

    def __init__(self) -> None:
        self._given_ms: dict[int, deque[int]] = defaultdict(deque)

    def allows(self, slot: int, limits: Limits, mono_ms: int) -> bool:
        """Tell whether one more pack of this slot may be given now."""
        given = self._given_ms[slot]
        while given and mono_ms - given[0] >= DAY_MS:
            given.popleft()
        if given and mono_ms - given[-1] < limits.cooldown_s * 1000:
            return False
        return len(given) < limits.daily_packs_max

    def gave(self, slot: int, mono_ms: int) -> None:
        """Note a pack given."""
        self._given_ms[slot].append(mono_ms)
