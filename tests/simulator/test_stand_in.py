"""The stand-in answers as docs/protocol.md says a server does."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import decode_ack, decode_desired, decode_order
from protocol.messages import Ack, AckMessage, DoorOpened, Fork, Gap, LotInfo, Nack, SelfTest, SlotPlan, Status
from protocol.topics import Channel, topic
from simulator.stand_in import StandIn
from tests.fleet_server.machine import BASE_MS, Machine

HERE = topic("HD-001", Channel.FACTS)


def told(stand_in: StandIn, *payloads: bytes) -> list[AckMessage]:
    return [decode_ack(payload) for _, payload in stand_in.take([(HERE, payload) for payload in payloads])]


def a_machine(vends: int = 6) -> Machine:
    machine = Machine()
    for _ in range(vends):
        machine.vend()
    return machine


def test_batches_are_acknowledged_in_order_and_a_repeat_counts_once() -> None:
    stand_in, machine = StandIn(), a_machine()
    first, again, rest = told(stand_in, machine.batch(1, 4), machine.batch(1, 4), machine.batch(3))
    assert [answer.through_seq for answer in (first, again, rest)] == [4, 4, 6]
    assert rest.digest == machine.digests[6].hex()
    assert [type(answer) for answer in (first, again, rest)] == [Ack] * 3
    assert len(stand_in.facts("HD-001")) == 6
    (stream,) = stand_in.peers["HD-001"].streams.values()
    assert (stream.repeated, stream.gaps) == (6, 0)


def test_what_begins_beyond_is_a_gap_and_leaves_nothing_behind() -> None:
    stand_in, machine = StandIn(), a_machine()
    (gap,) = told(stand_in, machine.batch(3))
    assert isinstance(gap, Gap)
    assert gap.through_seq == 0
    assert stand_in.facts("HD-001") == []


def test_other_facts_under_the_same_numbers_are_a_fork_and_a_new_stream_is_ordered() -> None:
    stand_in, machine = StandIn(), a_machine()
    told(stand_in, machine.batch())
    other = Machine(stream_id=machine.stream_id).vend(slot=2).vend()
    (fork,) = told(stand_in, other.batch())
    assert isinstance(fork, Fork)
    assert len(stand_in.facts("HD-001")) == 6
    assert [order["kind"] for order in stand_in.peers["HD-001"].orders.values()] == ["new_stream"]


def test_a_chain_that_does_not_add_up_and_an_envelope_that_cannot_be_read_are_nacked() -> None:
    stand_in, machine = StandIn(), a_machine()
    told(stand_in, machine.batch(1, 4))
    broken = machine.batch(3).replace(machine.digests[2].hex().encode(), b"0" * 64)
    for payload in (broken, b"{", b""):
        (nack,) = told(stand_in, payload)
        assert isinstance(nack, Nack)
        assert nack.through_seq == 4


def test_a_line_that_no_version_can_read_is_kept_and_told() -> None:
    stand_in, machine = StandIn(), a_machine(1)
    machine.tell_line(b'{"kind": "hologram"}').vend()
    (ack,) = told(stand_in, machine.batch())
    assert isinstance(ack, Ack)
    assert (ack.through_seq, ack.quarantined) == (3, [2])
    assert len(stand_in.facts("HD-001")) == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=20))
def test_however_batches_arrive_every_fact_is_kept_once_in_its_place(cuts: list[tuple[int, int]]) -> None:
    stand_in, machine = StandIn(), a_machine(12)
    for first, length in cuts:
        told(stand_in, machine.batch(first, min(12, first + length)))
    told(stand_in, machine.batch())
    (stream,) = stand_in.peers["HD-001"].streams.values()
    assert stream.lines == machine.lines
    assert stream.forked == []


def session(machine: Machine, number: int, *, online: bool = True) -> tuple[str, bytes]:
    status = Status(stream_id=machine.stream_id, session=number, online=online, at_ms=BASE_MS)
    return topic("HD-001", Channel.STATUS), status.model_dump_json().encode()


def let_go(stand_in: StandIn) -> dict[str, list[bytes]]:
    """What waits for machines goes with the next step of the clock."""
    stand_in.request("POST", "/api/v1/clock/advance", {"to": "2026-09-22T00:00:00+00:00"}, {})
    arrived: dict[str, list[bytes]] = {}
    for name, payload in stand_in.take([]):
        arrived.setdefault(name.rpartition("/")[2], []).append(payload)
    return arrived


def test_desired_state_and_open_orders_come_in_every_session_until_answered() -> None:
    stand_in, machine = StandIn(), Machine()
    lots: list[Any] = [
        LotInfo.model_validate({"lot": "L1", "product": "CONDOM-M", "expires_on": "2029-01-01"}, strict=False)
    ]
    stand_in.desire("HD-001", [SlotPlan(slot=1, product="CONDOM-M", capacity=9)], lots)
    order_id = stand_in.order("HD-001", "self_test")
    let_go(stand_in)
    for number in (1, 2):
        stand_in.take([session(machine, number)])
        arrived = let_go(stand_in)
        assert decode_desired(arrived["desired"][-1]).planogram[0].capacity == 9
        order = decode_order(arrived["orders"][-1])
        assert isinstance(order, SelfTest)
        assert (order.order_id, order.session, order.stream_id) == (order_id, number, machine.stream_id)


def test_a_late_will_of_an_old_session_marks_nobody_offline() -> None:
    stand_in, machine = StandIn(), Machine()
    stand_in.take([session(machine, 4), session(machine, 3, online=False)])
    assert stand_in.peers["HD-001"].online
    stand_in.take([session(machine, 4, online=False)])
    assert not stand_in.peers["HD-001"].online


def test_it_says_that_it_keeps_no_ledger() -> None:
    stand_in, machine = StandIn(), Machine()
    machine.tell(DoorOpened(**machine.when(), session="123456", authorised=True))
    told(stand_in, machine.batch())
    assert stand_in.request("GET", "/api/v1/dispensers/HD-001", None, {})[0] == 404
    assert stand_in.keeps_ledger is False
