"""N9: the whole fleet comes back in the same moment."""

import random
from collections.abc import Callable

import pytest

from device_agent import events as ev
from tests.reliability.conftest import Scale
from tests.reliability.crowd import Crowd
from tests.reliability.fleet import Fleet, register
from tests.reliability.invariants import lines_of

pytestmark = pytest.mark.slow
BACK_S_MAX = 60


def test_n9_a_whole_fleet_reconnects_at_once_and_is_back_within_a_minute(
    fleet: Fleet, scale: Scale, record_property: Callable[[str, object], None]
) -> None:
    throw = scale.throw()
    ids = [f"N9-{scale.seed}-{n:04d}" for n in range(scale.of(300, 1_000))]
    register(fleet.url, ids)
    crowd = Crowd(ids, fleet.installation.address, scale.seed)
    try:
        crowd.until(crowd.nothing_pending, 300)
        fleet.installation.kill("broker")
        crowd.until(lambda: not any(member.up_at_s for member in crowd.members), 60)
        for member in crowd.members:
            member.tried_at_s.clear()
            for _ in range(throw.randint(1, 5)):
                member.tell(ev.SlotChosen(99))
        fleet.installation.restart("broker")
        took_s = crowd.until(crowd.all_up, BACK_S_MAX)
        pending = sum(member.outbox.pending for member in crowd.members)
        drained_s = crowd.until(crowd.nothing_pending, 30 + pending / 100)
        record_property("measured", f"{len(ids)} back after {took_s:.1f} s, nothing pending {drained_s:.1f} s later")
        firsts = [min(member.tried_at_s) for member in crowd.members]
        tenths = [int((first - min(firsts)) * 10) for first in firsts]
        # In one tenth of a second there would be all of them without jitter.
        assert max(tenths.count(tenth) for tenth in tenths) < len(ids) / 2, scale.note
        for member in random.Random(scale.seed).sample(crowd.members, 20):
            kept = [line for _, _, line in lines_of(fleet.url, member.id)]
            assert kept == list(member.outbox.lines_after(0)), f"{scale.note}: {member.id}"
    finally:
        crowd.close()
    fleet.settle(scale.note)
