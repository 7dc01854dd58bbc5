"""S4, S5, S6: a disk that is full, a card that is an old copy, a file of which one byte is another."""

import random
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.machine import State
from device_agent.outbox import Outbox, OutboxError, open_or_set_aside
from protocol.messages import FaultCleared, FaultRaised, Outcome, Vend
from tests.device_agent.machines import Bench

SEED = 66
FLIPS = 200
REGIONS = ("facts", "slots", "meta", "intents", "seal", "log", "anywhere")


def contents(path: Path) -> tuple[object, ...]:
    """Everything that decisions rest on, as the file gives it."""
    with closing(sqlite3.connect(path)) as db:
        queries = (
            "SELECT seq, line, digest FROM facts", "SELECT kind, name, value FROM state", "SELECT number, digest FROM seal",
        )  # fmt: skip
        return tuple(tuple(db.execute(query)) for query in queries)


def busy_outbox(directory: Path) -> Bench:
    """A machine in the middle of a vend, with facts, books and settings in its file and in its log."""
    bench = Bench(directory / "outbox.sqlite")
    bench.loaded(("GOOD", 30), ("LATER", 5))
    for _ in range(12):
        bench.vend()
    bench.outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    bench.vend()
    bench.tell(ev.SlotChosen(1))
    return bench


def copied(source: Path, target: Path) -> Path:
    """The card as it is at this moment, in a directory of its own: the index of the log is not on a card that matters."""
    target.mkdir()
    for name in ("outbox.sqlite", "outbox.sqlite-wal", "outbox.mark", "outbox.reserve"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target / "outbox.sqlite"


def place_in(region: str, path: Path, throw: random.Random) -> tuple[Path, int]:
    """A byte of the region, in the file in which the present content of it stands."""
    log = Path(f"{path}-wal")
    if region == "log":
        return log, throw.randrange(log.stat().st_size)
    if region == "anywhere":
        return path, throw.randrange(path.stat().st_size)
    facts, state, seals = contents(path)
    values = {kind: [value.encode() for k, _, value in state if k == kind] for kind in ("slot", "meta", "intent")}  # type: ignore[attr-defined]
    needles = {
        "facts": [line for _, line, _ in facts] + [digest for *_, digest in facts],  # type: ignore[attr-defined]
        "slots": values["slot"], "meta": values["meta"], "intents": values["intent"],
        "seal": [digest for _, digest in seals],  # type: ignore[attr-defined]
    }  # fmt: skip
    needle = throw.choice(needles[region])
    data = path.read_bytes()
    return path, data.rindex(needle) + throw.randrange(len(needle))


def flip(path: Path, place: int, throw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= throw.randrange(1, 256)
    path.write_bytes(data)


def test_s6_one_flipped_byte_is_noticed_or_changes_nothing_and_never_vends_on_wrong_books(tmp_path: Path) -> None:
    bench = busy_outbox(tmp_path)
    card = tmp_path / "card"
    copied(tmp_path, card)
    checkpointed = tmp_path / "checkpointed"
    whole = contents(copied(card, checkpointed))
    noticed = dict.fromkeys(REGIONS, 0)
    for number in range(FLIPS):
        throw = random.Random(f"{SEED}/{number}")
        region = REGIONS[number % len(REGIONS)]
        here = tmp_path / str(number)
        path = copied(card if region == "log" else checkpointed, here)
        flipped, place = place_in(region, path, throw)
        flip(flipped, place, throw)
        note = f"seed {SEED}, flip {number}: {region}, {flipped.name} at {place}"
        before = path.read_bytes()
        outbox, why = open_or_set_aside(path, "HD-001")
        outbox.close()
        if why is None:
            assert contents(path) == whole, f"{note}: believed, and other than what was committed"
            assert region in {"log", "anywhere"}, f"{note}: not noticed"
        else:
            noticed[region] += 1
            assert path.with_suffix(".damaged-1").read_bytes() == before or region == "log", (
                f"{note}: not kept as it was"
            )
            refuses_to_vend(path, why, note)
        shutil.rmtree(here)
    bench.outbox.close()
    assert min(noticed.values()) > 0, f"seed {SEED}: noticed {noticed} of {FLIPS} flips"


def refuses_to_vend(path: Path, why: str, note: str) -> None:
    """On the new outbox the machine tells what happened, believes nothing and gives nothing."""
    bench = Bench(path)
    bench.start(last_board_sequence=14)
    effects = bench.tell(ev.BoardFault("STORAGE_DAMAGED", None, why[:200]), ev.SlotChosen(1))
    assert not [effect for effect in effects if isinstance(effect, ef.RunMotor)], note
    assert [f.code for f in bench.facts() if isinstance(f, FaultRaised)] == ["STORAGE_DAMAGED"], note
    bench.outbox.close()


def test_s6_a_last_commit_that_the_log_has_lost_is_noticed(tmp_path: Path) -> None:
    """SQLite reads a log up to the first frame that does not add up, and says nothing: the mark beside it does."""
    bench = busy_outbox(tmp_path)
    path = copied(tmp_path, tmp_path / "card")
    log = Path(f"{path}-wal")
    flip(log, log.stat().st_size - 100, random.Random(1))
    outbox, why = open_or_set_aside(path, "HD-001")
    assert why is not None
    assert "not there any more" in why
    assert outbox.intents == []
    outbox.close()
    bench.outbox.close()


# ---------------------------------------------------------------- S5


def test_s5_a_board_that_is_ahead_of_an_old_card_is_followed(tmp_path: Path) -> None:
    """Under a number that the board has run already it would answer with the old result, and turn nothing."""
    bench = Bench(tmp_path / "outbox.sqlite")
    bench.loaded(("GOOD", 9)).vend()
    old = copied(tmp_path, tmp_path / "old")
    ran = [e.board_sequence for _ in range(3) for e in bench.vend() if isinstance(e, ef.RunMotor)]
    bench.outbox.close()
    again = Bench(old)
    again.start(last_board_sequence=ran[-1])
    (motor,) = (e for e in again.tell(ev.SlotChosen(1)) if isinstance(e, ef.RunMotor))
    assert motor.board_sequence == ran[-1] + 1
    again.outbox.close()


# ---------------------------------------------------------------- S4


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system with room for little more than the outbox and its reserve; skips where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return disk


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        size = 65_536
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2
    return filler


@pytest.mark.root
def test_s4_a_full_disk_puts_the_machine_out_of_service_and_room_brings_it_back(small_disk: Path) -> None:
    try:
        _fill_and_make_room(small_disk)
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)


def _fill_and_make_room(disk: Path) -> None:
    bench = Bench(disk / "outbox.sqlite")
    bench.loaded(("GOOD", 20))
    turned = 0

    def ask() -> None:
        nonlocal turned
        for effect in bench.passes(1).tell(ev.SlotChosen(1)):
            if isinstance(effect, ef.RunMotor):
                turned += 1
                filler.append(fill(disk))  # the disk fills while the motor turns
                bench.tell(ev.VendEnded(effect.board_sequence, ev.BoardResult.DROPPED, 1500, turned))

    filler: list[Path] = []
    for _ in range(5):
        ask()
    assert bench.agent.state is State.OUT_OF_SERVICE
    assert turned >= 1
    assert not (disk / "outbox.reserve").exists()
    for _ in range(3):
        bench.passes(31).tick()
        assert not [e for e in bench.tell(ev.SlotChosen(1)) if isinstance(e, ef.RunMotor)]
    vends = [fact for fact in bench.facts() if isinstance(fact, Vend) and fact.outcome is Outcome.DELIVERED]
    assert len(vends) == turned, "a pack was given that is not counted"

    # A start on the full disk is no reason to give up what is on it, and vends nothing either.
    bench.outbox.close()
    fill(disk)
    with pytest.raises(OutboxError, match=r"full|I/O|open"):
        open_or_set_aside(disk / "outbox.sqlite", "HD-001")
    assert not list(disk.glob("*.damaged-*"))
    filler[0].write_bytes(b"\0" * (filler[0].stat().st_size - 100_000))
    bench.power_cut().start(last_board_sequence=turned)
    assert bench.agent.state is State.OUT_OF_SERVICE
    assert not [e for e in bench.tell(ev.SlotChosen(1)) if isinstance(e, ef.RunMotor)]
    filler[0].unlink()
    bench.passes(31).tick()
    assert str(bench.agent.state) == "ready"
    assert (disk / "outbox.reserve").exists()
    codes = [f.kind for f in bench.facts() if isinstance(f, FaultRaised | FaultCleared) and f.code == "STORAGE_FULL"]
    assert codes[-2:] == ["fault_raised", "fault_cleared"]
    bench.vend()
    assert sum(packs for _, packs in bench.outbox.slots[1].queue) == 20 - turned - 1
    bench.outbox.close()
    assert Outbox(disk / "outbox.sqlite", "HD-001").intents == []
