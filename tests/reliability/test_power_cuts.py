"""S2: a medium that drops or tears what was not synced; every moment of a trace, and several ways to tear each."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from device_agent import events as ev
from device_agent.outbox import Outbox
from protocol.codec import encode
from protocol.messages import Ack, LotPacks
from protocol.topics import Channel
from tests.device_agent.machines import Bench
from tests.reliability.forks import Child, needs_strace, traced
from tests.reliability.power_cuts import TRACE, Moment, lay, moments

pytestmark = [pytest.mark.slow]
SEED = 22
WAYS = 3


def a_day(path: Path, rounds: int, *, synced: bool) -> None:
    """Runs in the traced process: vends, a visit, acknowledgements; after each, what is committed is said aloud."""
    bench = Bench(path)
    if not synced:
        bench.outbox._db.execute("PRAGMA synchronous=OFF")
    bench.outbox._db.execute("PRAGMA wal_autocheckpoint=40")  # the log is written back every few commits

    def say() -> None:
        seal = bench.outbox._seal
        os.write(1, f"{seal.number} {seal.digest.hex()} {bench.outbox.acked_through}\n".encode())

    bench.loaded(("GOOD", 20))
    say()
    for round_ in range(rounds):
        bench.vend()
        say()
        bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True))
        bench.tell(ev.LocalRefill(1, "CONDOM-M", added=(LotPacks(lot="LATER", packs=round_ + 1),)))
        bench.tell(ev.LocalCount(1, 19 - round_))
        bench.tell(ev.DoorChanged(open=False), ev.ServiceKeyTurned(on=False))
        say()
        bench.tell(ev.LinkUp())
        outbox = bench.outbox
        ack = Ack(
            server_epoch=1, stream_id=outbox.stream_id, through_seq=outbox.last_seq, digest=outbox.last_digest.hex(),
            server_at_ms=bench.now_ms,
        )  # fmt: skip
        bench.tell(ev.MessageArrived(Channel.ACK, encode(ack)))
        say()


def trace_of(
    directory: Path, rounds: int, *, synced: bool = True
) -> list[tuple[Moment, list[str], dict[str, list[bytes | None]]]]:
    """Trace a day; returns for each moment what had been said, and every way in which its files may be found."""
    card = directory / "card"
    card.mkdir()
    trace = directory / "trace"
    child = Child(lambda: a_day(card / "outbox.sqlite", rounds, synced=synced), directory / "said")
    with traced(child.pid, *TRACE, output=trace):
        child.go()
        assert child.wait() == 0, (directory / "said").read_text()
    found = []
    for number, moment in enumerate(moments(trace, card)):
        throw = random.Random(f"{SEED}/{number}")
        ways = {name: file.ways(throw, WAYS) for name, file in moment.files.items()}
        found.append((moment, list(moment.said), ways))
    return found


def lost(directory: Path, said: list[str], files: dict[str, bytes | None]) -> str | None:
    """What was said to be committed and is not there, or was never there and is; None where all is well."""
    here = directory / "found"
    lay(files, here)
    try:
        outbox = Outbox(here / "outbox.sqlite", "HD-001")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"{type(error).__name__}: {error}"
    else:
        committed = {int(line.split()[0]): line.split()[1] for line in said}
        number, digest = outbox._seal.number, outbox._seal.digest.hex()
        outbox.close()
        last = max(committed, default=0)
        if number < last:
            return f"commit {last} was said, commit {number} is the last one"
        if committed.get(number, digest) != digest:
            return f"commit {number} is another than was said"
        return None
    finally:
        shutil.rmtree(here)


def test_s2_a_card_that_drops_or_tears_what_was_not_synced_loses_nothing_that_was_committed(fast_disk: Path) -> None:
    needs_strace()
    found = trace_of(fast_disk, rounds=4)
    calls = Counter(moment.call for moment, _, _ in found)
    assert calls["fdatasync of outbox.sqlite"] > 0, f"the log was never written back: {calls}"
    for number, (_, said, ways) in enumerate(found):
        for way in range(WAYS + 2):
            problem = lost(fast_disk, said, {name: held[way] for name, held in ways.items()})
            assert problem is None, f"seed {SEED}, moment {number} ({found[number][0].call}), way {way}: {problem}"


def test_s2_an_outbox_that_does_not_wait_for_its_card_is_caught(fast_disk: Path) -> None:
    """The planted defect: without a sync in each commit, some power cut loses what was said."""
    needs_strace()
    found = trace_of(fast_disk, rounds=1, synced=False)
    assert any(lost(fast_disk, said, {name: held[0] for name, held in ways.items()}) for _, said, ways in found)
