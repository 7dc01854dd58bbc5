"""When to try the broker again: after a while that doubles, with jitter, so that a fleet does not come back in one second. Pure."""

import random
from typing import Final

FIRST_DELAY_S: Final = 1.0


class BackOff:
    """The pauses between attempts of one machine."""

    def __init__(self, delay_s_max: float, randomness: random.Random) -> None:
        self._delay_s_max, self._randomness = delay_s_max, randomness
        self._delay_s = FIRST_DELAY_S

    def connected(self) -> None:
        """Begin with the shortest pause again."""
        self._delay_s = FIRST_DELAY_S

    def next_delay_s(self) -> float:
        """Return the pause before the next attempt, and double the one after it."""
        delay_s = self._delay_s * self._randomness.uniform(0.5, 1.5)
        self._delay_s = min(self._delay_s * 2, self._delay_s_max)
        return delay_s
