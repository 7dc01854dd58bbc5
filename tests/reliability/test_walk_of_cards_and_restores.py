"""O2: one machine, its cards, its messages, its restockers' phones and a server that is restored, in any order: one truth at the end.

Two workers of ingest take turns; messages are lost, repeated and reordered; copies of cards are put back and new ones put
in; the server goes back to any of its backups. SOAK_WALKS says how many seeds the long form walks, from RELIABILITY_SEED on.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.reliability.walk import Walk

pytestmark = [pytest.mark.slow]
REPLAYED = os.environ.get("RELIABILITY_SEED")
SHORT_SEEDS = (int(REPLAYED),) if REPLAYED else (6, 11)  # three restores each
FIRST_SEED = int(REPLAYED or "1")
LONG_SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("SOAK_WALKS", "50")))


def walked(owner_url: str, directory: Path, seed: int) -> Walk:
    """Walk, and check where it ends; what fails names the seed and the steps."""
    walk = Walk(owner_url, directory, seed)
    try:
        walk.goes()
        walk.ends()
    except Exception as error:
        error.add_note(str(walk))
        raise
    finally:
        walk.close()
    return walk


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"short-seed{seed}") for seed in SHORT_SEEDS])
def test_o2_a_walk_of_cards_and_restores_ends_in_one_truth(owner_url: str, fast_disk: Path, seed: int) -> None:
    walked(owner_url, fast_disk, seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seeds", [pytest.param(LONG_SEEDS, id=f"long-seed{LONG_SEEDS[0]}-{LONG_SEEDS[-1]}")])
def test_o2_many_walks_of_cards_and_restores_end_in_one_truth(
    fresh_owner_url: Callable[[], AbstractContextManager[str]],
    fast_disk: Path,
    record_property: Callable[[str, object], None],
    seeds: range,
) -> None:
    """Every seed is walked, whatever became of those before."""
    failures, steps, restores = [], 0, 0
    for seed in seeds:
        directory = fast_disk / str(seed)
        directory.mkdir()
        with fresh_owner_url() as url:
            try:
                walk = walked(url, directory, seed)
            except Exception as error:  # noqa: BLE001 - told together at the end
                failures.append(error)
            else:
                steps, restores = steps + len(walk.steps), restores + walk.restores
        shutil.rmtree(directory)
    record_property("measured", f"{len(seeds)} walks, {steps} steps, {restores} restores")
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(seeds)} walks", failures)
