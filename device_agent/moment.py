"""A moment as the machine sees it: the agent never reads a clock, it is told."""

from typing import NamedTuple


class Moment(NamedTuple):
    """Wall clock (ms since 1970 UTC) and whether it is trusted; monotonic clock (ms since the agent's boot)."""

    wall_ms: int
    mono_ms: int
    trusted: bool = True
