"""Random numbers by purpose: every draw has a stream of its own, named by what it is for, the same in every process."""

import hashlib
import math
import random
from typing import Final

MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


class Streams:
    """The streams of one seed. One machine's draws never depend on another's, nor a day's on where a run was stopped."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, *purpose: object) -> random.Random:
        """Return the stream of one purpose; about 10 µs."""
        return random.Random("/".join(str(part) for part in (self.seed, *purpose)))  # noqa: S311 - simulation

    def key(self, *purpose: object) -> int:
        """Return the 64 bits of one purpose, for `unit`; about 2 µs."""
        text = "/".join(str(part) for part in (self.seed, *purpose))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def unit(key: int, number: int) -> float:
    """Return the `number`-th of a key's numbers, evenly from 0 to 1 (SplitMix64); well below 1 µs."""
    z = (key + number * 0x9E37_79B9_7F4A_7C15) & MASK
    z = (z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB & MASK
    return (z ^ (z >> 31)) / 2.0**64


def poisson(draw: random.Random, mean: float) -> int:
    """Knuth's method; the means here are small."""
    limit, product, number = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        number += 1
    return number
