"""The drivers of real boards on real ptys: frames that hold, wires that fail, ports that vanish, power that is cut."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.events import (
    BoardFault,
    BoardFaultEnded,
    BoardResult,
    DoorChanged,
    SensorRead,
    SlotChosen,
    VendEnded,
)
from device_agent.hal import fafb_frames as fafb
from device_agent.hal.fafb_board import open_board as open_fafb
from device_agent.hal.fafb_frames import Command, Frame
from device_agent.hal.ports import BoardError
from simulator.boards.line import LineFault
from simulator.boards.physical_board import board_of
from simulator.boards.virtual_board import Fault
from tests.device_agent.lines import Polled, fafb_line

VENDS = st.builds(
    lambda number, sensor, slot: Frame(Command.DRIVE, number, bytes((sensor, 0)) + fafb.selection(slot)),
    st.integers(0, 255),
    st.booleans(),
    st.integers(0, 65_535),
)
STATUSES = st.builds(
    lambda number, status, slot: Frame(Command.VEND_STATUS, number, bytes((status,)) + fafb.selection(slot)),
    st.integers(0, 255),
    st.sampled_from(list(fafb.VendStatus)),
    st.integers(0, 65_535),
)
TEXTS = st.builds(
    Frame, st.sampled_from([Command.MENU, Command.MENU_ANSWER, 0x99]), st.integers(0, 255), st.binary(max_size=254)
)
FRAMES = st.one_of(VENDS, STATUSES, TEXTS, st.just(fafb.POLL), st.just(fafb.ACK))


# ---------------------------------------------------------------- FA FB frames


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (fafb.POLL, "fa fb 41 00 40"),
        (fafb.ACK, "fa fb 42 00 43"),
        (Frame(Command.DRIVE, 1, b"\x01\x00" + fafb.selection(10)), "fa fb 06 05 01 01 00 00 0a 08"),
    ],
)
def test_frames_are_those_of_the_public_text(frame: Frame, text: str) -> None:
    assert fafb.encode(frame) == bytes.fromhex(text)
    assert fafb.Reader().feed(bytes.fromhex(text)) == [frame]


@given(frames=st.lists(FRAMES, max_size=8), cuts=st.lists(st.integers(1, 30), max_size=40))
def test_frames_come_back_however_the_port_cuts_them(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(map(fafb.encode, frames))
    reader, seen = fafb.Reader(), list[Frame]()
    for cut in [*cuts, len(data)]:
        seen += reader.feed(data[:cut])
        data = data[cut:]
    assert seen == frames
    assert reader.discarded == 0


@given(st.lists(st.binary(max_size=600), max_size=10))
def test_any_bytes_are_read_without_raising_and_in_bounded_memory(chunks: list[bytes]) -> None:
    reader = fafb.Reader()
    for chunk in chunks:
        for frame in reader.feed(chunk):
            assert len(frame.text) <= fafb.TEXT_MAX
    reader.silence()
    assert not reader.is_inside


@given(frame=st.one_of(VENDS, STATUSES, st.just(fafb.POLL), st.just(fafb.ACK)), bit=st.integers(0, 79))
def test_a_flipped_bit_costs_the_frame_and_not_the_next(frame: Frame, bit: int) -> None:
    data = bytearray(fafb.encode(frame))
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    reader = fafb.Reader()
    following = Frame(Command.SLOT_CHECKED, 9, b"\x01\x00\x07")
    seen = reader.feed(bytes(data)) + reader.feed(fafb.encode(following)) + reader.silence()
    # A flipped command byte can make no other good frame: the XOR stands at the same place.
    assert seen == [following]


@given(noise=st.binary(max_size=40).filter(lambda noise: b"\xfa" not in noise), frame=FRAMES)
def test_noise_between_frames_is_passed_over(noise: bytes, frame: Frame) -> None:
    reader = fafb.Reader()
    assert reader.feed(noise + fafb.encode(frame) + noise + fafb.encode(frame)) == [frame, frame]


# ---------------------------------------------------------------- FA FB driver


def test_every_result_of_the_controller_is_told_as_what_it_is(tmp_path: Path) -> None:
    expected = {
        None: BoardResult.DROPPED,
        Fault.JAM: BoardResult.JAM,
        Fault.ABSENT: BoardResult.MOTOR_ABSENT,
        Fault.OVER_CURRENT: BoardResult.JAM,
        Fault.DID_NOT_FALL: BoardResult.NO_DROP,
        Fault.FELL_UNSEEN: BoardResult.NO_DROP,
        Fault.DOUBLE_DROP: BoardResult.DROPPED,
    }
    with fafb_line(tmp_path) as (line, board, _):
        polled = Polled(open_fafb({"port": line.path}))
        for slot, (fault, result) in enumerate(expected.items(), 1):
            board.load(slot, "LOT", 3)
            board.plant(slot, *([fault] if fault else []))
            assert polled.vend(slot, 100 + slot).result == result, fault
        fell = {slot: 3 - len(coil) for slot, coil in board.coils.items()}
        assert fell == {1: 1, 2: 0, 3: 0, 4: 0, 5: 0, 6: 1, 7: 2}
        assert polled.driver.clear_jam(2)
        assert polled.vend(2, 200).result is BoardResult.DROPPED
        assert not polled.driver.clear_jam(3)
        assert board.turns == 8
        assert polled.longest_s < 0.25
        polled.driver.close()


def test_door_keypad_climate_and_the_missing_lock_are_told(tmp_path: Path) -> None:
    with fafb_line(tmp_path) as (line, board, wire):
        board.change(door_open=True)
        polled = Polled(open_fafb({"port": line.path, "status_every_s": 0.1}))
        assert polled.driver.door_is_open()
        polled.driver.pulse_lock()
        polled.driver.pulse_lock()
        board.change(door_open=False)
        polled.until(lambda: polled.told(DoorChanged))
        wire.press(12)
        wire.press(0)
        board.change(door_open=True)
        polled.until(lambda: len(polled.told(DoorChanged)) == 2 and polled.told(SlotChosen))
        assert polled.told(DoorChanged) == [DoorChanged(open=False), DoorChanged(open=True)]
        assert polled.told(SlotChosen) == [SlotChosen(12)]
        assert [fault.code for fault in polled.told(BoardFault, BoardFaultEnded)] == ["LOCK_FAULT", "LOCK_FAULT"]
        assert polled.told(SensorRead)[0] == SensorRead(temperature_c=23.4, humidity_pct=55.0)
        assert polled.driver.self_test() == (True, "controller answers, door open, 23.4 C")


def spoil_an_exchange(here: Path, fault: LineFault) -> None:
    """Command, acknowledgement and result: each of them is spoilt in turn."""
    with fafb_line(here) as (line, board, _):
        board.load(3, "LOT", 5)
        polled = Polled(open_fafb({"port": line.path}))
        line.to_board.plant(fault, begins_with=b"\xfa\xfb\x06")
        line.to_driver.plant(fault, begins_with=b"\xfa\xfb\x04")
        line.to_driver.plant(fault, begins_with=b"\xfa\xfb\x42")
        line.to_driver.plant(fault, fault, begins_with=b"\xfa\xfb\x41")
        assert polled.vend(3, 1).result is BoardResult.DROPPED
        polled.until(lambda: not line.to_driver.planted and not line.to_board.planted)
        assert polled.vend(3, 2).result is BoardResult.DROPPED
        assert (board.turns, len(board.coils[3])) == (2, 3)
        assert len(polled.told(VendEnded)) == 2


def test_a_spoilt_exchange_turns_the_motor_once(tmp_path: Path) -> None:
    """All kinds at once, each with its own board: it is mostly waiting."""
    places = {fault: tmp_path / fault for fault in LineFault}
    for place in places.values():
        place.mkdir()
    with ThreadPoolExecutor(len(places)) as pool:
        for done in [pool.submit(spoil_an_exchange, place, fault) for fault, place in places.items()]:
            done.result()


def test_a_bad_wire_for_ten_vends_never_repeats_one_nor_invents_a_result(tmp_path: Path) -> None:
    with fafb_line(tmp_path) as (line, board, _):
        board.load(1, "LOT", 64)
        polled = Polled(open_fafb({"port": line.path, "vend_s_max": 3.0}))
        line.to_driver.share = line.to_board.share = 0.12
        results = [polled.vend(1, sequence, 10).result for sequence in range(1, 11)]
        assert line.to_driver.spoilt + line.to_board.spoilt > 5
        assert board.turns <= 10
        assert set(results) <= {BoardResult.DROPPED, BoardResult.UNKNOWN, BoardResult.NOT_RUN}
        assert results.count(BoardResult.DROPPED) >= 6
        assert results.count(BoardResult.DROPPED) <= 64 - len(board.coils[1]) <= 10 - results.count(BoardResult.NOT_RUN)


def test_a_dead_controller_and_a_pulled_adapter_are_a_fault_that_ends(tmp_path: Path) -> None:
    with fafb_line(tmp_path) as (line, board, _):
        board.load(3, "LOT", 5)
        polled = Polled(open_fafb({"port": line.path, "offline_after_s": 0.4}))
        line.silent = True
        polled.until(lambda: polled.told(BoardFault))
        polled.driver.start_vend(3, 1, drop_sensor=True)
        well, words = polled.driver.self_test()
        assert (well, polled.driver.clear_jam(3)) == (False, False)
        assert "no answer" in words
        line.silent = False
        polled.until(lambda: polled.told(BoardFaultEnded))
        line.unplug()
        polled.until(lambda: len(polled.told(BoardFault)) == 2)
        line.plug_in()
        polled.until(lambda: len(polled.told(BoardFaultEnded)) == 2)
        assert {fault.code for fault in polled.told(BoardFault, BoardFaultEnded)} == {"VMC_OFFLINE"}
        assert polled.told(VendEnded) == [VendEnded(1, BoardResult.NOT_RUN)]
        assert polled.vend(3, 2).result is BoardResult.DROPPED
        assert board.turns == 1


def test_a_vend_during_which_the_line_dies_is_unknown_in_time(tmp_path: Path) -> None:
    with fafb_line(tmp_path) as (line, board, _):
        board.load(3, "LOT", 5)
        polled = Polled(open_fafb({"port": line.path, "offline_after_s": 0.3, "vend_s_max": 0.5}))
        polled.driver.start_vend(3, 1, drop_sensor=True)
        polled.until(lambda: board.turns)
        line.unplug()
        polled.until(lambda: polled.told(VendEnded))
        assert polled.told(VendEnded)[0].result is BoardResult.UNKNOWN
        assert polled.driver.stored_result(1) is BoardResult.UNKNOWN
        assert polled.driver.stored_result(2) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "board.port = None: expected a text"),
        ({"port": "/nowhere/at/all"}, "port /nowhere/at/all: No such file"),
        ({"port": "/dev/null"}, "port /dev/null"),
        ({"port": "x", "baud_rate": 12_345}, "board.baud_rate = 12345: expected one of"),
        ({"port": "x", "offline_after_s": "3"}, "board.offline_after_s = '3': expected seconds"),
        ({"port": "x", "prot": 1}, "board.prot = 1: expected one of baud_rate"),
        ({"port": "x", "memory": "/nowhere/at/all/"}, "port x"),
    ],
)
def test_a_wrong_configuration_names_the_field(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BoardError, match="^" + words):
        open_fafb(config)


def test_a_line_without_a_controller_and_one_already_taken_are_errors(tmp_path: Path) -> None:
    with fafb_line(tmp_path) as (line, _, _):
        first = open_fafb({"port": line.path})
        with pytest.raises(BoardError, match="temporarily unavailable"):
            open_fafb({"port": line.path})
        first.close()
        first.close()
        line.silent = True
        with pytest.raises(BoardError, match="no controller answers"):
            open_fafb({"port": line.path, "offline_after_s": 0.2})


# ---------------------------------------------------------------- power cuts


@pytest.mark.parametrize("away_s", [0.0, 1.0])
def test_after_a_power_cut_in_the_middle_the_note_and_the_controller_say_what_became_of_the_vend(
    tmp_path: Path, away_s: float
) -> None:
    """The controller repeats its result five times: a kiosk that is back by then knows, a later one knows that it cannot."""
    config: dict[str, Any] = {"memory": str(tmp_path / "note.json"), "vend_s_max": 0.5}
    with fafb_line(tmp_path, board_of(vend_s=(0.1, 0.1)), poll_s=0.07) as (line, board, _):
        board.load(3, "LOT", 5)
        config["port"] = line.path
        polled = Polled(open_fafb(config))
        polled.driver.start_vend(3, 41, drop_sensor=True)
        polled.until(lambda: board.turns)
        polled.driver.close()
        time.sleep(away_s)
        again = Polled(open_fafb(config))
        assert again.driver.identity().runs_sequence_once
        assert again.driver.last_sequence() == 41
        assert again.driver.stored_result(41) is (BoardResult.UNKNOWN if away_s else BoardResult.DROPPED)
        assert again.driver.stored_result(42) is None
        again.driver.start_vend(3, 41, drop_sensor=True)
        assert again.vend(3, 42).result is BoardResult.DROPPED
        assert board.turns == 2


def test_a_damaged_note_is_no_matter_to_pass_over(tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    note.write_text('{"sequence": 1')
    with fafb_line(tmp_path) as (line, _, _), pytest.raises(BoardError, match=r"board\.memory"):
        open_fafb({"port": line.path, "memory": str(note)})
