"""Sending, orders, configuration and time: what the agent owes the server."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent import effects as ef
from device_agent import events as ev
from device_agent.books import refold
from device_agent.outbox import SlotBook
from protocol.codec import decode_batch, decode_status, encode, first_digest, next_digest
from protocol.messages import (
    Ack,
    Books,
    ClockChanged,
    ConfigApplied,
    DoorClosed,
    DoorOpened,
    Fork,
    Gap,
    LotPacks,
    Nack,
    NewStream,
    OrderResult,
    Outcome,
    Reboot,
    Refusal,
    SlotClaim,
    SlotPlan,
    Started,
    StockLevel,
    Unlock,
    Vend,
)
from protocol.topics import Channel
from tests.device_agent.machines import NOON_MS, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "outbox.sqlite")


class Server:
    """An honest cursor: applies in order, once, and says where it stands."""

    def __init__(self, dispenser_id: str, epoch: int = 1) -> None:
        self.dispenser_id, self.epoch = dispenser_id, epoch
        self.lines: list[bytes] = []
        self.stream_id = ""
        self.digest = b""

    def take(self, payload: bytes) -> bytes:
        batch = decode_batch(payload)
        header = batch.header
        if header.stream_id != self.stream_id:
            self.stream_id, self.lines = header.stream_id, []
            self.digest = first_digest(self.dispenser_id, header.stream_id)
        if header.first_seq > len(self.lines) + 1:
            return self.say(Gap)
        digest = bytes.fromhex(header.prev_digest)
        for place, line in enumerate(batch.lines):
            digest = next_digest(digest, line)
            if header.first_seq + place > len(self.lines):
                self.lines.append(line)
                self.digest = digest
            else:
                assert self.lines[header.first_seq + place - 1] == line
        return self.say(Ack)

    def say(self, kind: type[Ack] | type[Gap] | type[Fork] | type[Nack], **more: str) -> bytes:
        message = kind(
            server_epoch=self.epoch,
            stream_id=self.stream_id,
            through_seq=len(self.lines),
            digest=self.digest.hex(),
            server_at_ms=NOON_MS,
            **more,  # type: ignore[arg-type]
        )
        return encode(message)


def batches(effects: list[ef.Effect]) -> list[bytes]:
    return [e.payload for e in effects if isinstance(e, ef.Publish) and e.channel is Channel.FACTS]


def answer(payload: bytes) -> ev.MessageArrived:
    return ev.MessageArrived(Channel.ACK, payload)


def test_a_fact_stays_pending_until_the_server_says_so(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    (batch,) = batches(bench.tell(ev.LinkUp()))
    assert bench.outbox.pending == bench.outbox.last_seq
    bench.tell(answer(Server("HD-001").take(batch)))
    assert bench.outbox.pending == 0
    assert batches(bench.passes(100).tick()) == []


def test_nothing_acknowledged_for_a_minute_asks_for_a_fresh_connection(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    bench.tell(ev.LinkUp())
    seen = [effect for _ in range(62) for effect in bench.passes(1).tick()]
    assert any(isinstance(effect, ef.Reconnect) for effect in seen)
    assert len(batches(seen)) <= 12  # a full window, three times


def test_many_gap_answers_resend_once(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    bench.tell(ev.LinkUp())
    server = Server("HD-001")
    server.stream_id = bench.outbox.stream_id
    server.digest = first_digest("HD-001", server.stream_id)
    sent = [len(batches(bench.tell(answer(server.say(Gap))))) for _ in range(5)]
    assert sent == [1, 0, 0, 0, 0]


def test_a_lower_cursor_counts_only_in_a_new_epoch_of_the_server(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    server = Server("HD-001")
    for batch in batches(bench.tell(ev.LinkUp())):
        bench.tell(answer(server.take(batch)))
    restored = Server("HD-001")
    restored.stream_id, restored.digest = server.stream_id, first_digest("HD-001", server.stream_id)
    assert batches(bench.tell(answer(restored.say(Gap)))) == []
    restored.epoch = 2
    again = batches(bench.tell(answer(restored.say(Gap))))
    assert decode_batch(again[0]).header.first_seq == 1


def test_an_attempt_that_never_came_up_has_used_its_number_up(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    wills = [decode_status(bench.agent.will(bench.at())) for _ in range(3)]
    (status,) = [e for e in bench.tell(ev.LinkUp()) if isinstance(e, ef.Publish) and e.channel is Channel.STATUS]
    came_up = decode_status(status.payload)
    assert came_up.online
    assert came_up.session == wills[2].session > wills[1].session > wills[0].session


def test_an_attempt_that_reached_no_broker_writes_nothing_and_leaves_its_number(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    first = decode_status(bench.agent.will(bench.at(), went_nowhere=True))
    changes = bench.outbox._db.total_changes
    again = [decode_status(bench.agent.will(bench.at(), went_nowhere=True)) for _ in range(3)]
    assert {will.session for will in again} == {first.session}
    assert bench.outbox._db.total_changes == changes
    bench.tell(ev.LinkUp(), ev.LinkDown())
    assert decode_status(bench.agent.will(bench.at(), went_nowhere=True)).session == first.session + 1


def test_a_burst_of_nacks_is_waited_for_once_and_one_for_nothing_sent_not_at_all(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    server = Server("HD-001")
    server.stream_id = bench.outbox.stream_id
    server.digest = first_digest("HD-001", server.stream_id)
    bench.tell(ev.LinkUp())
    for _ in range(50):
        bench.tell(answer(server.say(Nack, reason="somebody sent rubbish in its name")))
    again = batches(bench.passes(13).tick())
    for batch in again:
        bench.tell(answer(server.take(batch)))
    while bench.outbox.pending:
        for batch in batches(bench.passes(13).tick()):
            bench.tell(answer(server.take(batch)))
    assert again
    bench.tell(answer(server.say(Nack, reason="somebody sent rubbish in its name")))
    assert batches(bench.tell(ev.SlotChosen(99)))


def test_a_nack_cuts_the_batch_smaller_and_waits(bench: Bench) -> None:
    bench.loaded(("GOOD", 30))
    for _ in range(10):
        bench.vend()
    (batch,) = batches(bench.tell(ev.LinkUp()))
    server = Server("HD-001")
    server.stream_id = bench.outbox.stream_id
    server.digest = first_digest("HD-001", server.stream_id)
    assert batches(bench.tell(answer(server.say(Nack, reason="unreadable")))) == []
    later = [b for _ in range(40) for b in batches(bench.passes(1).tick())]
    assert 0 < len(decode_batch(later[0]).lines) <= 50
    assert len(decode_batch(batch).lines) >= len(decode_batch(later[0]).lines)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_over_any_lossy_link_every_fact_arrives_once_and_in_order(seed: int, vends: int) -> None:
    draw = random.Random(seed)
    bench = Bench(Path(":memory:"))
    bench.loaded(("GOOD", 60))
    for _ in range(vends):
        bench.vend()
    server = Server("HD-001")
    wire = batches(bench.tell(ev.LinkUp()))
    for _ in range(3_000):
        if bench.outbox.pending == 0:
            break
        draw.shuffle(wire)
        arrived, wire = wire, []
        for payload in arrived:
            for _copy in range(draw.choice([0, 1, 1, 2])):
                reply = server.take(payload)
                if draw.random() > 0.3:
                    wire += batches(bench.tell(answer(reply)))
        for effect in bench.passes(draw.choice([0.2, 5, 30])).tick():
            if isinstance(effect, ef.Reconnect):
                wire += batches(bench.tell(ev.LinkDown(), ev.LinkUp()))
            elif isinstance(effect, ef.Publish) and effect.channel is Channel.FACTS:
                wire.append(effect.payload)
    assert bench.outbox.pending == 0, f"seed {seed}"
    assert server.lines == list(bench.outbox.lines_after(0))
    bench.outbox.close()


# ---------------------------------------------------------------- orders


def order(
    bench: Bench, kind: type[Unlock] | type[Reboot] | type[NewStream], name: str = "a", **more: object
) -> ev.MessageArrived:
    fields: dict[str, object] = {
        "order_id": name * 32,
        "stream_id": bench.outbox.stream_id,
        "session": bench.outbox.meta["session"],
        "expires_after_ms": 60_000,
    }
    return ev.MessageArrived(Channel.ORDERS, encode(kind.model_validate(fields | more)))


def results(bench: Bench) -> list[str]:
    return [str(fact.outcome) for fact in bench.facts() if isinstance(fact, OrderResult)]


def test_an_order_runs_once_however_often_it_comes(bench: Bench) -> None:
    bench.loaded()
    bench.tell(ev.LinkUp())
    message = order(bench, Unlock)
    pulses = [e for e in bench.tell(message, message) if isinstance(e, ef.PulseLock)]
    bench.power_cut().start()
    pulses += [e for e in bench.tell(message) if isinstance(e, ef.PulseLock)]
    assert len(pulses) == 1
    assert results(bench) == ["done"]


def test_an_order_past_its_life_is_expired_by_the_monotonic_clock(bench: Bench) -> None:
    bench.loaded()
    bench.tell(ev.LinkUp())
    message = order(bench, Unlock)
    bench.passes(61)
    bench.now_ms -= 3_600_000
    assert not any(isinstance(e, ef.PulseLock) for e in bench.tell(message))
    assert results(bench) == ["expired"]


def test_an_order_of_another_session_or_stream_is_refused(bench: Bench) -> None:
    bench.loaded()
    bench.tell(ev.LinkUp())
    bench.tell(order(bench, Unlock, "b", session=7), order(bench, Unlock, "c", stream_id="0" * 32))
    assert results(bench) == ["refused", "refused"]


def test_an_old_card_that_is_put_back_begins_sessions_above_those_of_the_one_it_replaces(bench: Bench) -> None:
    bench.loaded()
    copied = {"session": 3}
    bench.outbox.record(meta=copied)
    bench.tell(ev.LinkUp(), ev.LinkDown())
    assert bench.outbox.meta["session"] == bench.now_ms // 1000
    bench.tell(ev.LinkUp(), ev.LinkDown(), ev.LinkUp(), ev.LinkDown())
    before = bench.outbox.meta["session"]
    assert before == bench.now_ms // 1000 + 2
    bench.outbox.record(meta=copied)
    bench.passes(60).tell(ev.LinkUp())
    assert bench.outbox.meta["session"] > before


def test_an_ordered_restart_is_answered_after_it(bench: Bench) -> None:
    bench.loaded()
    bench.tell(ev.LinkUp())
    assert any(isinstance(e, ef.Restart) for e in bench.tell(order(bench, Reboot)))
    assert results(bench) == []
    bench.power_cut().start()
    assert results(bench) == ["done"]


def test_a_restored_card_that_is_behind_the_server_heeds_the_fork_and_acknowledges_nothing(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    (batch,) = batches(bench.tell(ev.LinkUp()))
    server = Server("HD-001")
    server.take(batch)
    server.lines += [b"{}"] * 20  # what the newer card had told
    bench.tell(answer(server.say(Fork)))
    assert bench.outbox.acked_through == 0
    bench.vend()
    assert [batches(bench.passes(100).tick()) for _ in range(20)] == [[]] * 20
    bench.tell(ev.LinkDown(), ev.LinkUp())
    assert batches(bench.tell(order(bench, NewStream)))


@pytest.mark.parametrize("ahead", [5, 0, -3])
def test_a_card_whose_batches_became_small_shows_a_server_that_is_ahead_what_it_has_of_its_own(
    bench: Bench, ahead: int
) -> None:
    """Four facts at a time, all of them known and none acknowledged, it sent the same ones for ever: no fork was ever found."""
    bench.loaded(("GOOD", 20))
    for _ in range(20):
        bench.passes(60).vend()
    bench.tell(ev.LinkUp())
    for _ in range(12):
        bench.passes(400).tick()
    through = bench.outbox.last_seq + ahead
    said = Ack(
        server_epoch=1, stream_id=bench.outbox.stream_id, through_seq=through, digest="0" * 64, server_at_ms=NOON_MS
    )
    sent = [decode_batch(payload) for payload in batches(bench.tell(answer(encode(said))))]
    assert sent[0].header.first_seq == min(through, bench.outbox.last_seq)
    assert sent[-1].header.first_seq + len(sent[-1].lines) - 1 == bench.outbox.last_seq
    assert batches(bench.tell(answer(encode(said)))) == [], "however often it is said"
    assert bench.outbox.acked_through == 0


def test_a_fork_that_nobody_ends_asks_again_by_a_fresh_connection_after_an_hour(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    (batch,) = batches(bench.tell(ev.LinkUp()))
    server = Server("HD-001")
    server.take(batch)
    server.lines += [b"{}"] * 20
    bench.tell(answer(server.say(Fork)))
    assert not reconnects(bench.passes(3_500).tick())
    assert reconnects(bench.passes(101).tick())
    assert not reconnects(bench.passes(3_500).tick())
    assert batches(bench.tell(ev.LinkDown(), ev.LinkUp())), "a new session tries the stream again"


def reconnects(effects: list[ef.Effect]) -> bool:
    return any(isinstance(effect, ef.Reconnect) for effect in effects)


def test_a_new_stream_begins_with_started_and_keeps_the_former_facts_aside(bench: Bench) -> None:
    bench.loaded(("GOOD", 3)).vend()
    bench.tell(ev.LinkUp())
    before = bench.outbox.stream_id
    assert reconnects(bench.tell(order(bench, NewStream))), "what was announced names the stream before"
    assert bench.outbox.stream_id != before
    assert isinstance(bench.facts()[0], Started)
    assert results(bench) == ["done"]
    assert bench.outbox.slots[1].queue == [("GOOD", 2)]
    kept = bench.outbox._db.execute("SELECT count(*) FROM former_facts WHERE stream_id = ?", (before,)).fetchone()
    assert kept[0] > 0


def test_a_door_that_is_open_while_a_new_stream_begins_is_told_in_that_one_too(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    bench.tell(ev.LinkUp(), ev.DoorChanged(open=True))
    bench.tell(order(bench, NewStream))
    bench.passes(60).tell(ev.DoorChanged(open=False))
    told = [fact for fact in bench.facts() if isinstance(fact, DoorOpened | DoorClosed)]
    assert [type(fact) for fact in told] == [DoorOpened, DoorClosed]
    assert told[0].session == told[1].session


def test_an_unauthorised_door_is_told_from_one_that_was_unlocked(bench: Bench) -> None:
    bench.loaded()
    bench.tell(ev.LinkUp())
    bench.tell(order(bench, Unlock), ev.DoorChanged(open=True))
    assert [f.authorised for f in bench.facts() if f.kind == "door_opened"] == [True]


# ---------------------------------------------------------------- configuration and time


def test_books_are_folded_under_what_the_machine_did_since(bench: Bench) -> None:
    bench.loaded(("GOOD", 2))
    as_of = bench.outbox.last_seq
    bench.vend()
    bench.books(("GOOD", 2), ("LATER", 5), as_of=as_of)
    assert bench.outbox.slots[1].queue == [("GOOD", 1), ("LATER", 5)]
    applied = [fact for fact in bench.facts() if isinstance(fact, ConfigApplied)]
    assert applied[-1].applied


def test_books_of_facts_that_the_machine_never_wrote_are_refused_whole(bench: Bench) -> None:
    bench.loaded(("GOOD", 2))
    bench.books(("LATER", 5), as_of=bench.outbox.last_seq + 10)
    assert bench.outbox.slots[1].queue == [("GOOD", 2)]
    answered = [fact for fact in bench.facts() if isinstance(fact, ConfigApplied)][-1]
    assert not answered.applied
    assert "as_of_seq" in answered.detail


@given(st.lists(st.integers(1, 9), max_size=5), st.lists(st.sampled_from(list(Outcome)), max_size=30))
def test_refolding_a_book_never_invents_a_pack(lots: list[int], outcomes: list[Outcome]) -> None:
    queue = [LotPacks(lot=f"L{n}", packs=packs) for n, packs in enumerate(lots)]
    books = Books(version=1, stream_id="0" * 32, as_of_seq=0, slots=[SlotClaim(slot=1, queue=queue)])
    when = {"at_ms": 1, "mono_ms": 1, "boot_id": "0" * 8, "clock_trusted": True}
    facts = [Vend(**when, slot=1, outcome=o, reason=Refusal.LIMIT if o is Outcome.REFUSED else None) for o in outcomes]  # type: ignore[arg-type]
    taken = sum(o in {Outcome.DELIVERED, Outcome.UNVERIFIED, Outcome.IN_DOUBT} for o in outcomes)
    folded = refold(books, {1: SlotBook()}, facts)[1]
    assert sum(packs for _, packs in folded.queue) == max(0, sum(lots) - taken)
    assert all(packs > 0 for _, packs in folded.queue)


def test_a_coil_of_many_lots_is_claimed_in_facts_of_their_size(bench: Bench) -> None:
    """What somebody fills in at the machine's own page is not bounded as a message is."""
    plans = [SlotPlan(slot=slot, product="CONDOM-M", capacity=30) for slot in range(1, 13)]
    bench.loaded(planogram=plans)
    for slot in range(1, 13):
        for n in range(25):
            lot = LotPacks(lot=f"{'GOOD' if n % 2 else 'LATER'}-LONGEST-NAME-{n:03d}"[:20], packs=1)
            bench.tell(ev.LocalRefill(slot, "CONDOM-M", (lot,)))
    for packs in (9_000, 9_000):
        bench.tell(ev.LocalCount(1, 0), ev.LocalRefill(1, "CONDOM-M", (LotPacks(lot="GOOD", packs=packs),)))
    bench.tell(ev.LocalRefill(1, "CONDOM-M", (LotPacks(lot="GOOD", packs=9_000),)))
    while not (claims := [fact for fact in bench.facts() if isinstance(fact, StockLevel)]):
        bench.passes(3600).tick()
    by_slot = {claim.slot: claim.queue for fact in claims for claim in fact.slots}
    assert by_slot[1] == [LotPacks(lot="GOOD", packs=10_000)]
    assert [len(by_slot[slot]) for slot in range(2, 13)] == [20] * 11


def test_a_message_that_cannot_be_read_changes_nothing(bench: Bench) -> None:
    bench.loaded(("GOOD", 2))
    seq = bench.outbox.last_seq
    for channel in (Channel.ACK, Channel.ORDERS, Channel.DESIRED, Channel.BOOKS):
        bench.tell(ev.MessageArrived(channel, b"{nonsense"), ev.MessageArrived(channel, json.dumps({"v": 9}).encode()))
    assert bench.outbox.last_seq == seq


def test_a_jump_of_the_wall_clock_is_a_fact_of_its_own(bench: Bench) -> None:
    bench.loaded(("GOOD", 3))
    bench.now_ms -= 5 * 365 * 86_400_000
    bench.vend()
    jumps = [fact for fact in bench.facts() if isinstance(fact, ClockChanged)]
    assert len(jumps) == 1
    assert jumps[0].was_ms - jumps[0].at_ms > 4 * 365 * 86_400_000


def test_a_clock_that_nobody_has_set_does_not_make_an_expired_lot_good(bench: Bench) -> None:
    bench.loaded(("GOOD", 1), ("OLD", 3)).vend()
    bench.now_ms, bench.trusted = 1_000, False
    bench.power_cut().start()
    bench.vend()
    refused = [fact for fact in bench.facts() if isinstance(fact, Vend)][-1]
    assert refused.reason is not None
    assert refused.reason.value == "expired"
