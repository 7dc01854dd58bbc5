"""What machine and server tell each other of a coil. Pure."""

from collections.abc import Iterable

from protocol.versions import PACKS_MAX, QUEUE_LOTS_MAX


def claimable(queue: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return a queue of (lot, packs) as a claim can name it: adjacent packs of one lot once, no more packs and lots than it may."""
    runs: list[tuple[str, int]] = []
    for lot, packs in queue:
        before = runs.pop()[1] if runs and runs[-1][0] == lot else 0
        runs.append((lot, min(before + packs, PACKS_MAX)))
    return runs[:QUEUE_LOTS_MAX]
