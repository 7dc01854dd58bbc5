"""Bytes of MQTT, in whatever pieces they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.ingest import packets
from fleet_server.ingest.packets import PAYLOAD_BYTES_MAX, Control, PacketError, Publish, Reader

TOPIC = "fleet/v1/HD-001/facts"
messages = st.lists(st.tuples(st.integers(1, 65_535), st.binary(max_size=300)), max_size=20)


def read(data: bytes, sizes: list[int]) -> list[Publish | Control]:
    reader, found = Reader(), []
    for size in sizes:
        found += reader.feed(data[:size])
        data = data[size:]
    return found + reader.feed(data)


@given(messages, st.lists(st.integers(0, 200), max_size=30))
def test_packets_are_the_same_however_the_bytes_are_cut(sent: list[tuple[int, bytes]], sizes: list[int]) -> None:
    data = b"".join(
        packets.publish(TOPIC, payload, mid, retain=False) + packets.pubacks([mid]) for mid, payload in sent
    )
    expected: list[Publish | Control] = []
    for mid, payload in sent:
        expected += [Publish(TOPIC, payload, mid), Control(packets.PUBACK, mid.to_bytes(2, "big"))]
    assert read(data, sizes) == expected


@pytest.mark.parametrize("step", [1_000, 70_000, 262_144, 10_000_000])
def test_an_over_long_message_is_cut_short_and_what_comes_after_it_is_read(step: int) -> None:
    data = packets.publish(TOPIC, b"x" * 3_000_000, 7, retain=False) + packets.publish(TOPIC, b"next", 8, retain=False)
    reader, found, held = Reader(), [], 0
    for place in range(0, len(data), step):
        found += reader.feed(data[place : place + step])
        held = max(held, len(reader._rest))
    assert found == [Publish(TOPIC, b"x" * PAYLOAD_BYTES_MAX, 7), Publish(TOPIC, b"next", 8)]
    assert held <= packets.PACKET_BYTES_MAX + 8


@given(st.binary(max_size=400))
def test_any_bytes_are_packets_or_an_error_and_nothing_else(data: bytes) -> None:
    try:
        Reader().feed(data)
    except PacketError:
        return


def test_a_message_of_qos_0_wants_no_answer() -> None:
    body = len(TOPIC).to_bytes(2, "big") + TOPIC.encode() + b"read"
    assert Reader().feed(b"\x30" + bytes([len(body)]) + body) == [Publish(TOPIC, b"read", 0)]
