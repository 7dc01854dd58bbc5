"""What the conformance checklist found in our own agent."""

import json
from pathlib import Path

import pytest

from device_agent import effects as ef
from device_agent import events as ev
from protocol.codec import HEADER_BYTES_MAX, decode_batch, encode, first_digest
from protocol.messages import BatchHeader, Nack, OrderResult, Refusal, Unlock, Vend
from protocol.topics import Channel
from protocol.versions import BATCH_BYTES_MAX, STREAM_SEQ_MAX
from tests.device_agent.machines import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "outbox.sqlite")


def batches(effects: list[ef.Effect]) -> list[bytes]:
    return [e.payload for e in effects if isinstance(e, ef.Publish) and e.channel is Channel.FACTS]


def test_a_batch_stays_below_its_limit_with_its_header(bench: Bench) -> None:
    bench.loaded(("GOOD", 30))
    for number in range(150):
        order = Unlock(order_id=f"{number:032x}", stream_id=bench.outbox.stream_id, session=9, expires_after_ms=0)
        bench.tell(ev.MessageArrived(Channel.ORDERS, encode(order)))
    sent = batches(bench.tell(ev.LinkUp()))
    assert len(sent) > 1
    assert max(map(len, sent)) <= BATCH_BYTES_MAX
    longest = BatchHeader(
        dispenser_id="A" * 32, stream_id="0" * 32, first_seq=STREAM_SEQ_MAX, prev_digest="0" * 64, sent_at_ms=2**53,
        oldest=True,
    )  # fmt: skip
    assert len(longest.model_dump_json()) < HEADER_BYTES_MAX


def test_a_nack_makes_a_small_batch_smaller_too(bench: Bench) -> None:
    bench.loaded(("GOOD", 30))
    for _ in range(7):
        bench.vend()
    (refused,) = batches(bench.tell(ev.LinkUp()))
    stream_id = bench.outbox.stream_id
    nack = Nack(
        server_epoch=1, stream_id=stream_id, through_seq=0, digest=first_digest("HD-001", stream_id).hex(),
        server_at_ms=0, reason="unreadable",
    )  # fmt: skip
    bench.tell(ev.MessageArrived(Channel.ACK, encode(nack)))
    again = [batch for _ in range(40) for batch in batches(bench.passes(1).tick())]
    assert len(decode_batch(again[0]).lines) == len(decode_batch(refused).lines) // 2


@pytest.mark.parametrize(
    ("lot", "reason"), [("OLD", Refusal.EXPIRED), ("HEATED", Refusal.BLOCKED_LOT), ("NOBODY", Refusal.BLOCKED_LOT)]
)
def test_a_test_vend_gives_out_no_expired_blocked_or_unknown_lot_either(
    bench: Bench, lot: str, reason: Refusal
) -> None:
    bench.loaded((lot, 3))
    bench.tell(ev.LinkUp())
    order = {
        "kind": "test_vend", "slot": 1, "order_id": "a" * 32, "stream_id": bench.outbox.stream_id,
        "session": bench.outbox.meta["session"],
        "expires_after_ms": 60_000,
    }  # fmt: skip
    bench.tell(ev.MessageArrived(Channel.ORDERS, json.dumps(order).encode()))
    bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True), ev.SlotChosen(1))
    assert [fact.reason for fact in bench.facts() if isinstance(fact, Vend)] == [reason, reason]
    assert [fact.outcome for fact in bench.facts() if isinstance(fact, OrderResult)] == ["failed"]
    assert not any(isinstance(effect, ef.RunMotor) for effect in bench.asked)


def test_a_test_vend_may_turn_an_empty_or_jammed_slot_of_a_good_lot(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    bench.vend(ev.BoardResult.JAM)
    bench.tell(ev.ServiceKeyTurned(on=True), ev.DoorChanged(open=True), ev.SlotChosen(1))
    assert len([effect for effect in bench.asked if isinstance(effect, ef.RunMotor)]) == 2
