"""The driver of the HDB-1 board and its sensor on real ptys, and their frames."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import effects as ef
from device_agent.events import (
    BoardAnswered,
    BoardFault,
    BoardFaultEnded,
    BoardResult,
    DoorChanged,
    InputsRead,
    SensorRead,
    ServiceKeyTurned,
    SlotChosen,
    VendEnded,
)
from device_agent.hal import modbus_frames as modbus
from device_agent.hal.modbus_board import open_board as open_hdb1
from device_agent.hal.modbus_frames import Function, RefusedError
from device_agent.hal.modbus_line import ModbusLine
from device_agent.hal.ports import BoardError
from device_agent.hal.serial_port import SerialPort
from device_agent.hal.xymd02 import Xymd02
from protocol.messages import Outcome, Vend
from simulator.boards.hdb1_wire import hdb1_wire
from simulator.boards.line import LineFault, PtyLine
from simulator.boards.modbus_wire import ModbusWire, Xymd02Slave
from simulator.boards.physical_board import board_of
from simulator.boards.virtual_board import Fault
from tests.device_agent.lines import Polled, hdb1_line
from tests.device_agent.machines import Bench

READS = st.builds(
    modbus.read,
    st.integers(1, 247),
    st.sampled_from([Function.READ_DISCRETE, Function.READ_INPUT, Function.READ_HOLDING]),
    st.integers(0, 0xFFFF),
    st.integers(1, 60),
)
WRITES = st.builds(
    lambda slave, address, values: modbus.write_registers(slave, address, *values),
    st.integers(1, 247),
    st.integers(0, 0xFFFF),
    st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=8),
)
REQUESTS = READS | WRITES


def answer_to(request: modbus.Request, fill: int) -> bytes:
    head = bytes((request.slave, request.function))
    if request.function in modbus.WRITES:
        return modbus.sealed(head + request.encode()[2:6])
    return modbus.sealed(head + bytes((request.data_length,)) + bytes((fill,)) * request.data_length)


# ---------------------------------------------------------------- frames


def test_frames_are_those_of_the_specification() -> None:
    assert modbus.read(1, Function.READ_INPUT, 1, 2).encode() == bytes.fromhex("01 04 00 01 00 02 20 0b")
    vend = modbus.write_registers(2, 0x10, 1, 11, 1, 42)
    assert vend.encode() == bytes.fromhex("02 10 00 10 00 04 08 00 01 00 0b 00 01 00 2a 51 9a")
    answer = modbus.find_answer(modbus.read(1, Function.READ_INPUT, 1, 2), bytes.fromhex("01 04 04 01 00 02 59 3b 22"))
    assert answer is not None
    assert [register / 10 for register in modbus.registers(answer)] == [25.6, 60.1]
    assert modbus.signed(0xFFCE) == -50


@given(request_=REQUESTS, received=st.binary(max_size=300))
def test_any_bytes_are_no_answer_and_raise_nothing_else(request_: modbus.Request, received: bytes) -> None:
    try:
        found = modbus.find_answer(request_, received)
    except RefusedError:
        return
    assert found is None or len(found) in {0, request_.data_length}


@given(request_=REQUESTS, fill=st.integers(0, 255), noise=st.binary(max_size=20))
def test_an_answer_is_found_behind_noise(request_: modbus.Request, fill: int, noise: bytes) -> None:
    answer = answer_to(request_, fill)
    found = modbus.find_answer(request_, noise + answer)
    assert found is not None
    assert len(found) == (0 if request_.function in modbus.WRITES else request_.data_length)


@given(request_=REQUESTS, fill=st.integers(0, 255), bit=st.integers(0, 2**12))
def test_a_flipped_bit_is_no_answer(request_: modbus.Request, fill: int, bit: int) -> None:
    frame = bytearray(answer_to(request_, fill))
    frame[bit // 8 % len(frame)] ^= 1 << bit % 8
    assert modbus.find_answer(request_, bytes(frame)) is None


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_any_bytes_do_nothing_to_the_simulated_board(chunks: list[bytes]) -> None:
    board = board_of()
    wire = hdb1_wire(board)
    for at_s, chunk in enumerate(chunks):
        wire.advance(float(at_s), chunk)
        wire.advance(at_s + 0.5, b"")
    assert wire.advance(100.0, modbus.read(2, Function.READ_INPUT, 0, 14).encode())
    assert board.turns == 0


def test_a_slave_refuses_what_it_does_not_have() -> None:
    wire = hdb1_wire(board_of())
    for request, code in (
        (modbus.read(2, Function.READ_INPUT, 14, 1), 2),
        (modbus.read(2, Function.READ_HOLDING, 0, 1), 2),
        (modbus.write_registers(2, 0x10, 1, 65, 1, 1), 3),
        (modbus.write_registers(2, 0x10, 9, 1, 1, 1), 3),
        (modbus.write_coil(2, 9, on=True), 2),
        (modbus.read(1, Function.READ_DISCRETE, 0, 1), 1),
        (modbus.write_registers(1, 257, 4800), 2),
    ):
        (answer,) = wire.advance(0.0, request.encode())
        assert (answer[1], answer[2]) == (request.function | 0x80, code)
        with pytest.raises(RefusedError):
            modbus.find_answer(request, answer)


# ---------------------------------------------------------------- the driver


def test_every_result_of_the_board_is_told_as_what_it_is(tmp_path: Path) -> None:
    expected = {
        None: BoardResult.DROPPED,
        Fault.JAM: BoardResult.JAM,
        Fault.ABSENT: BoardResult.MOTOR_ABSENT,
        Fault.OVER_CURRENT: BoardResult.OVER_CURRENT,
        Fault.DID_NOT_FALL: BoardResult.NO_DROP,
        Fault.FELL_UNSEEN: BoardResult.NO_DROP,
        Fault.DOUBLE_DROP: BoardResult.DROPPED,
    }
    with hdb1_line(tmp_path) as (line, board, _):
        polled = Polled(open_hdb1({"port": line.path}))
        assert (polled.driver.last_sequence(), polled.driver.life_count()) == (None, 0)
        for slot, (fault, result) in enumerate(expected.items(), 1):
            board.load(slot, "LOT", 3)
            board.plant(slot, *([fault] if fault else []))
            ended = polled.vend(slot, 100 + slot)
            assert (ended.result, ended.life_count) == (result, slot), fault
            assert ended.duration_ms is not None
        assert not polled.driver.clear_jam(3)
        assert polled.driver.self_test() == (True, "firmware 3, 62 slots well, 1 jammed")
        assert polled.driver.clear_jam(2)
        assert polled.vend(2, 200).result is BoardResult.DROPPED
        assert polled.vend(65, 201).result is BoardResult.NOT_RUN
        board.change(curtain_clear=False)
        assert polled.vend(2, 202).result is BoardResult.CURTAIN_BLOCKED
        board.change(door_open=True, curtain_clear=True)
        assert polled.vend(2, 203).result is BoardResult.DOOR_OPEN
        board.change(key_on=True)
        assert polled.vend(2, 204).result is BoardResult.DROPPED
        assert polled.driver.last_sequence() == 204
        assert board.turns == polled.driver.life_count() == 9
        assert polled.longest_s < 0.1


def test_the_cabinet_is_told(tmp_path: Path) -> None:
    with hdb1_line(tmp_path) as (line, board, _):
        board.change(battery_mv=10_900, tampered=True, mains=False)
        config: dict[str, Any] = {"port": line.path, "sensor_slave": 1, "sensor_every_s": 0.1}
        polled = Polled(open_hdb1(config))
        assert not polled.driver.door_is_open()
        polled.driver.pulse_lock()
        assert board.lock_pulses == 1
        board.change(door_open=True, key_on=True)
        polled.until(lambda: polled.told(DoorChanged) and polled.told(ServiceKeyTurned))
        board.change(door_open=False)
        polled.until(lambda: len(polled.told(DoorChanged)) == 2)
        assert polled.told(DoorChanged)[0] == DoorChanged(open=True, life_count=0)
        assert polled.told(ServiceKeyTurned) == [ServiceKeyTurned(on=True)]
        board.change(curtain_clear=False)
        polled.until(lambda: len(polled.told(InputsRead)) == 2)
        assert polled.told(InputsRead) == [InputsRead(False, True, True), InputsRead(False, True, False)]
        (reading,) = polled.told(SensorRead)
        assert (reading.supply_mv, reading.battery_mv) == (24_100, 10_900)


def spoil_an_exchange(here: Path, fault: LineFault) -> None:
    with hdb1_line(here) as (line, board, _):
        board.load(3, "LOT", 5)
        polled = Polled(open_hdb1({"port": line.path, "answer_s": 0.05}))
        line.to_board.plant(fault, begins_with=b"\x02\x10")
        line.to_driver.plant(fault, begins_with=b"\x02\x10")
        line.to_driver.plant(fault, fault, begins_with=b"\x02\x04")
        assert polled.vend(3, 1).result is BoardResult.DROPPED
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


def test_a_bad_wire_for_ten_vends_is_as_good_as_a_good_one(tmp_path: Path) -> None:
    with hdb1_line(tmp_path, board_of(vend_s=(0.05, 0.1))) as (line, board, _):
        board.load(1, "LOT", 64)
        polled = Polled(open_hdb1({"port": line.path, "answer_s": 0.05}))
        line.to_driver.kinds = line.to_board.kinds = tuple(kind for kind in LineFault if kind is not LineFault.DELAY)
        line.to_driver.share = line.to_board.share = 0.2
        results = [polled.vend(1, sequence, 10).result for sequence in range(1, 11)]
        assert line.to_driver.spoilt + line.to_board.spoilt > 5
        ran = [result for result in results if result is not BoardResult.NOT_RUN]
        assert set(ran) == {BoardResult.DROPPED}
        assert board.turns == board.life_count == len(ran) == 64 - len(board.coils[1])


def test_a_silent_board_and_a_pulled_adapter_are_a_fault_that_ends(tmp_path: Path) -> None:
    with hdb1_line(tmp_path) as (line, board, _):
        board.load(3, "LOT", 5)
        config: dict[str, Any] = {"port": line.path, "offline_after_s": 0.3, "answer_s": 0.05, "vend_s_max": 0.6}
        polled = Polled(open_hdb1(config))
        line.silent = True
        polled.driver.start_vend(3, 1, drop_sensor=True)
        polled.until(lambda: polled.told(BoardFault) and polled.told(VendEnded))
        polled.driver.start_vend(3, 2, drop_sensor=True)
        assert polled.driver.self_test() == (False, "slave 2: no answer to 3 requests")
        assert not polled.driver.clear_jam(3)
        with pytest.raises(BoardError, match="no answer"):
            polled.driver.pulse_lock()
        with pytest.raises(BoardError, match="no answer"):
            polled.driver.stored_result(1)
        line.silent = False
        polled.until(lambda: polled.told(BoardFaultEnded))
        line.unplug()
        polled.until(lambda: len(polled.told(BoardFault)) == 2)
        line.plug_in()
        polled.until(lambda: len(polled.told(BoardFaultEnded)) == 2)
        assert {fault.code for fault in polled.told(BoardFault, BoardFaultEnded)} == {"VMC_OFFLINE"}
        assert [ended.result for ended in polled.told(VendEnded)] == [BoardResult.UNKNOWN, BoardResult.NOT_RUN]
        assert polled.vend(3, 3).result is BoardResult.DROPPED
        assert polled.longest_s < 0.3


def test_an_error_told_to_the_runtime_is_ended_by_the_next_answer(tmp_path: Path) -> None:
    with hdb1_line(tmp_path) as (line, _, _):
        polled = Polled(open_hdb1({"port": line.path, "answer_s": 0.05}))
        line.silent = True
        with pytest.raises(BoardError):
            polled.driver.pulse_lock()
        line.silent = False
        polled.until(lambda: polled.told(BoardFaultEnded))
        assert polled.told(BoardFault) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "board.port = None: expected a text"),
        ({"port": "/nowhere/at/all"}, "port /nowhere/at/all: No such file"),
        ({"port": "x", "slave": 0}, "board.slave = 0: expected a whole number from 1 to 247"),
        ({"port": "x", "parity": "mark"}, "board.parity = 'mark': expected one of none, even, odd"),
        ({"port": "x", "answer_s": True}, "board.answer_s = True: expected seconds"),
        ({"port": "x", "sensor": 1}, "board.sensor = 1: expected one of answer_s"),
    ],
)
def test_a_wrong_configuration_names_the_field(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BoardError, match="^" + words):
        open_hdb1(config)


def test_a_line_without_a_board_is_an_error_in_time(tmp_path: Path) -> None:
    with hdb1_line(tmp_path) as (line, _, _):
        line.silent = True
        began_s = time.monotonic()
        with pytest.raises(BoardError, match="no answer"):
            open_hdb1({"port": line.path, "offline_after_s": 0.2, "answer_s": 0.05})
        assert time.monotonic() - began_s < 1.5


# ---------------------------------------------------------------- the sensor


@pytest.mark.parametrize("parity", ["none", "even"])
def test_the_sensor_on_its_own_line_is_read_and_its_failure_is_a_fault_that_ends(tmp_path: Path, parity: str) -> None:
    board = board_of()
    board.change(temperature_c=-5.3, humidity_pct=61.0)
    slave = Xymd02Slave(board)
    with PtyLine(ModbusWire({1: slave}), tmp_path / "sensor") as line:
        modbus_line = ModbusLine(SerialPort(line.path, 9_600, parity), 0.1)
        sensor, told = Xymd02(modbus_line, 1, 0.02), list[Any]()

        def until(holds: Any) -> None:
            ends_s = time.monotonic() + 5
            while not holds():
                assert time.monotonic() < ends_s
                modbus_line.advance()
                told.extend(sensor.advance(time.monotonic()))
                time.sleep(0.005)

        modbus_line.port.open()
        until(lambda: sensor.reading == (-5.3, 61.0))
        slave.broken = True
        until(lambda: told)
        assert sensor.reading is None
        slave.broken = False
        until(lambda: len(told) == 2)
        assert told == [
            BoardFault("TEMP_SENSOR_FAULT", None, "a reading that no sensor can mean"),
            BoardFaultEnded("TEMP_SENSOR_FAULT"),
        ]
        modbus_line.close()


# ---------------------------------------------------------------- power cuts


@pytest.mark.parametrize("board_too", [False, True])
def test_after_a_power_cut_the_board_says_what_became_of_the_vend(tmp_path: Path, board_too: bool) -> None:
    with hdb1_line(tmp_path) as (line, board, _):
        board.load(3, "LOT", 5)
        polled = Polled(open_hdb1({"port": line.path}))
        polled.vend(3, 40)
        board.vend_s = (0.4, 0.4)
        polled.driver.start_vend(3, 41, drop_sensor=True)
        assert board.turns == 2
        polled.driver.close()
        if board_too:
            line.close()
    with hdb1_line(tmp_path, None if board_too else board) as (line, board, _):
        again = Polled(open_hdb1({"port": line.path}))
        assert (again.driver.last_sequence(), again.driver.life_count()) == (41, 2)
        assert again.driver.stored_result(41) is BoardResult.DROPPED
        assert again.driver.stored_result(40) is again.driver.stored_result(42) is None
        assert again.vend(3, 41).result is BoardResult.DROPPED
        assert (board.turns, len(board.coils[3])) == (2, 3)


class Machine:
    """An agent and a driver, wired as the runtime wires them."""

    def __init__(self, here: Path, line: PtyLine) -> None:
        self.bench, self.line = Bench(here / "outbox.sqlite"), line
        self.power_on(first=True)

    def power_on(self, *, first: bool = False) -> None:
        self.board = open_hdb1({"port": self.line.path})
        if first:
            self.bench.loaded(("GOOD", 40), limits={"daily_packs_max": 100})
        else:
            last, life = self.board.last_sequence(), self.board.life_count()
            self.do(self.bench.start(life_count=life, last_board_sequence=last, door_open=self.board.door_is_open()))

    def power_cut(self) -> None:
        self.board.close()
        self.bench.power_cut()

    def do(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.RunMotor):
                self.board.start_vend(effect.slot, effect.board_sequence, drop_sensor=effect.drop_sensor)
            elif isinstance(effect, ef.AskBoard):
                result = self.board.stored_result(effect.board_sequence)
                answer = BoardAnswered(effect.board_sequence, result, self.board.life_count())
                self.do(self.bench.tell(answer))

    def choose(self) -> None:
        self.do(self.bench.tell(SlotChosen(1)))

    def works(self, seconds: float) -> None:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            for event in self.board.poll():
                self.do(self.bench.tell(event))
            time.sleep(0.005)

    def vends(self) -> list[Vend]:
        return [fact for fact in self.bench.facts() if isinstance(fact, Vend)]


@pytest.mark.parametrize("seed", [7])
def test_power_cuts_at_any_moment_of_a_vend_leave_one_fact_for_every_turn(tmp_path: Path, seed: int) -> None:
    throw = random.Random(seed)
    with hdb1_line(tmp_path, board_of(vend_s=(0.1, 0.2))) as (line, board, _):
        board.load(1, "GOOD", 40)
        machine = Machine(tmp_path, line)
        for _ in range(6):
            machine.choose()
            machine.works(throw.uniform(0, 0.3))
            machine.power_cut()
            machine.power_on()
        machine.works(0.5)
        outcomes = [vend.outcome for vend in machine.vends()]
        assert outcomes == [Outcome.DELIVERED] * 6, f"seed {seed}"
        assert board.turns == 40 - len(board.coils[1]) == 6
        machine.board.close()
