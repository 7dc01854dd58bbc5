"""P1, P2, S3: the agent's process is killed at random, at each of its writes, and fails to write."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent.__main__ import main
from protocol.messages import Count, FaultRaised, Outcome, Refill, Vend
from simulator.boards.file_board import do
from tests.reliability.conftest import Scale
from tests.reliability.fleet import Fleet
from tests.reliability.forks import Child, needs_strace, traced, until
from tests.reliability.kiosks import PACKS, Kiosk

pytestmark = [pytest.mark.slow]
WRITES = "pwrite64,fdatasync"
WRITES_OF_A_VEND = 10
"""At least: there is no more to fail when the vend is over."""


def test_p1_an_agent_killed_at_random_loses_and_doubles_nothing(fleet: Fleet, scale: Scale) -> None:
    throw = scale.throw()
    for _ in range(scale.of(6, 50)):
        fleet.work(throw, throw.randint(1, 4))
        machine = throw.choice(fleet.machines)
        machine.kill()
        machine.start()
    fleet.settle(scale.note)


def killed_at_each_write(
    directory: Path, begin: Callable[[Kiosk], None], ended: Callable[[Kiosk], bool], check: Callable[[Kiosk, str], None]
) -> int:
    """Kill the agent at the n-th write after `begin`, for each n until it `ended` first; returns how many there are."""
    for n in itertools.count(1):
        kiosk = Kiosk(directory / str(n))
        child = kiosk.start()
        note = f"killed at write {n}"
        with traced(child.pid, "-e", f"trace={WRITES}", "-e", f"inject={WRITES}:signal=KILL:when={n}"):
            begin(kiosk)
            until(lambda: child.ended() is not None or ended(kiosk), f"{note}: the agent dies or is done {kiosk.log()}")  # noqa: B023 - called at once
        survived = child.ended() is None
        child.kill()
        check(kiosk, note)
        shutil.rmtree(kiosk.directory)
        if survived:
            return n - 1
    raise AssertionError


def vend_ended(kiosk: Kiosk) -> bool:
    return bool(kiosk.board.state_now()["screen"][2:] == ["vend:delivered"])


def out_of_service(kiosk: Kiosk) -> bool:
    return bool(kiosk.board.state_now()["screen"][0] == "out_of_service")


def one_outcome(kiosk: Kiosk, note: str) -> None:
    vends = [fact for fact in kiosk.settled() if isinstance(fact, Vend)]
    state = kiosk.board.state_now()
    outcomes = [vend.outcome for vend in vends]
    given = PACKS - len(state["coils"]["1"])
    assert given == state["life_count"] <= 1, f"{note}: the motor turned {state['life_count']} times"
    assert outcomes.count(Outcome.DELIVERED) == given, f"{note}: {given} given, {outcomes}"
    assert len(outcomes) <= 1, f"{note}: {outcomes}"
    book = kiosk.opened("slots")[1].queue
    assert book == [("GOOD", PACKS - given)], f"{note}: {given} given, the book says {book}"


def test_p2_an_agent_killed_at_each_write_of_a_vend_has_exactly_one_outcome(fast_disk: Path) -> None:
    needs_strace()
    writes = killed_at_each_write(fast_disk, lambda kiosk: do(kiosk.board, "ask", "1"), vend_ended, one_outcome)
    assert writes >= WRITES_OF_A_VEND, "a vend is two commits, each of several pages"


def entered(kiosk: Kiosk) -> bool:
    """Both entries are in the file."""
    return {Refill, Count} <= kiosk.kinds_now()


def enter(kiosk: Kiosk) -> None:
    """A refill, then a count, at the machine's own keys."""
    do(kiosk.board, "load", "1:LATER:4")
    do(kiosk.board, "refill", "1:CONDOM-M:LATER:4")
    do(kiosk.board, "count", f"1:{PACKS + 3}")


def each_entry_once(kiosk: Kiosk, note: str) -> None:
    facts = kiosk.settled()
    refills, counts = ([f for f in facts if isinstance(f, kind)] for kind in (Refill, Count))
    assert len(refills) <= 1, note
    assert len(counts) <= len(refills), f"{note}: the count was entered after the refill"
    book = kiosk.opened("slots")[1].queue
    expected = [("GOOD", PACKS - len(counts))] + [("LATER", 4)] * len(refills)
    assert book == expected, f"{note}: {len(refills)} refills, {len(counts)} counts, the book says {book}"


def test_p2_an_agent_killed_at_each_write_of_a_refill_and_a_count_keeps_each_once_or_not_at_all(
    fast_disk: Path,
) -> None:
    needs_strace()
    writes = killed_at_each_write(fast_disk, enter, entered, each_entry_once)
    assert writes >= 10


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_s3_a_disk_that_fails_once_costs_no_pack_and_counts_none_twice(fast_disk: Path, call: str) -> None:
    """The commit's fate is looked up in the file: it happened, or nothing was vended."""
    needs_strace()
    left = 0
    for n in itertools.count(1):
        kiosk = Kiosk(fast_disk / str(n))
        child = kiosk.start()
        with traced(child.pid, "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={n}"):
            do(kiosk.board, "ask", "1")
            until(lambda: out_of_service(kiosk) or Vend in kiosk.kinds_now(), f"{call} {n} fails or the vend ends")  # noqa: B023 - called at once
        assert child.ended() is None, kiosk.log()
        out = out_of_service(kiosk)
        child.kill()
        one_outcome(kiosk, f"{call} {n} failed")
        left += out
        if n > WRITES_OF_A_VEND:
            break
    assert left > 0, "no failure was noticed"


def test_s3_a_disk_that_goes_on_failing_puts_the_machine_out_of_service(fast_disk: Path) -> None:
    needs_strace()
    kiosk = Kiosk(fast_disk / "1")
    child = kiosk.start()
    with traced(child.pid, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"):
        do(kiosk.board, "ask", "1")
        until(lambda: out_of_service(kiosk), "it leaves the service")
        do(kiosk.board, "ask", "1")
        until(lambda: not kiosk.board.state_now()["inbox"], "the next visitor is seen")
        assert kiosk.board.state_now()["life_count"] == 0, "a pack was given that cannot be counted"
    child.kill()
    one_outcome(kiosk, "after the disk works again")


def test_s6_an_agent_on_a_damaged_card_sets_it_aside_tells_it_and_gives_nothing(fast_disk: Path) -> None:
    kiosk = Kiosk(fast_disk / "1")
    held = bytearray(kiosk.outbox.read_bytes())
    book = f'["GOOD",{PACKS}]'.encode()
    held[held.rindex(book) + len(book) - 2] ^= 0b1100  # 5 packs become 9
    kiosk.outbox.write_bytes(held)
    child = kiosk.start()
    do(kiosk.board, "ask", "1")
    until(kiosk.serves, "the visitor is seen")
    child.terminate()
    assert child.wait() == 0, kiosk.log()
    facts = kiosk.facts()
    assert [(fact.code, "seal" in fact.detail) for fact in facts if isinstance(fact, FaultRaised)] == [
        ("STORAGE_DAMAGED", True)
    ]
    assert kiosk.outbox.with_suffix(".damaged-1").read_bytes() == held
    assert kiosk.board.state_now()["life_count"] == 0


def test_s3_an_agent_that_cannot_open_its_card_says_so_and_leaves_it_as_it_is(fast_disk: Path) -> None:
    needs_strace()
    kiosk = Kiosk(fast_disk / "1")
    held = kiosk.outbox.read_bytes()
    child = Child(lambda: main(["--config", str(kiosk.config)]), kiosk.directory / "agent.log")
    with traced(child.pid, "-P", str(kiosk.outbox), "-e", "trace=pread64", "-e", "inject=pread64:error=EIO"):
        child.go()
        assert child.wait() == 1
    assert "I/O error" in kiosk.log()
    assert kiosk.board.state_now()["screen"] == ["out_of_service", "", ""]
    assert kiosk.outbox.read_bytes() == held
    assert not list(kiosk.directory.glob("*.damaged-*"))
    assert kiosk.settled()
