"""Python's collector of cycles beside a fleet: millions of objects that live to its end, and little rubbish that only it can find."""

import gc
from typing import Final

_USUAL: Final = gc.get_threshold()
SELDOM: Final = (50_000, 20, 100)


def spare() -> None:
    """Leave what is there now out of every collection, and collect more seldom: with 10,000 machines it was a third of the time."""
    gc.freeze()
    gc.set_threshold(*SELDOM)


def usual() -> None:
    """Look through everything again, as often as Python does by itself."""
    gc.unfreeze()
    gc.set_threshold(*_USUAL)
