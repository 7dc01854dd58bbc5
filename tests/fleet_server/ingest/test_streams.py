"""What ingest makes of streams: in order, once, and with an answer for everything that a machine may send."""

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from fleet_server.database import Database
from fleet_server.devices import fleet, outgoing, outgoing_store, store
from fleet_server.devices.machines import Announcement
from fleet_server.faults.store import open_faults
from fleet_server.ingest.apply import USELESS_MAX, Received, apply
from fleet_server.ledger.audit import audit
from fleet_server.ledger.reading import slot_stock
from protocol.codec import encode_fact
from protocol.messages import Ack, Fork, Gap, Nack, Outcome, Vend
from protocol.topics import Channel
from tests.fleet_server.fixtures import NOW, send, send_bytes
from tests.fleet_server.machine import BASE_MS, Machine


def answer(database: Database, machine: Machine, *cut: int) -> Any:
    """Send one batch, and return the one answer."""
    (reply,) = send(database, machine, *cut)
    assert reply.dispenser_id == machine.dispenser_id
    return reply.message


def rows(database: Database, table: str) -> int:
    with database.begin() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def faults(database: Database) -> set[str]:
    with database.begin() as connection:
        return {fault.code for fault in open_faults(connection)}


def balance(database: Database, account: str) -> int:
    with database.begin() as connection:
        query = text("SELECT coalesce(sum(units), 0) FROM balances WHERE account = :account")
        return int(connection.execute(query, {"account": account}).scalar_one())


def test_an_ack_names_the_last_fact_and_its_digest(database: Database) -> None:
    machine = Machine().vend().vend().vend()
    ack = answer(database, machine)
    assert isinstance(ack, Ack)
    assert (ack.through_seq, ack.digest) == (3, machine.digests[3].hex())
    assert ack.sent_at_ms == BASE_MS


def test_a_repeated_batch_is_acknowledged_again_and_booked_once(database: Database) -> None:
    machine = Machine().vend().vend()
    first, again = answer(database, machine), answer(database, machine)
    assert first == again
    assert rows(database, "facts") == 2
    assert balance(database, "dispensed/HD-001") == 2


def test_a_batch_cut_anew_over_the_cursor_applies_only_what_is_new(database: Database) -> None:
    machine = Machine().vend().vend().vend().vend().vend()
    answer(database, machine, 1, 3)
    assert answer(database, machine, 2, 5).through_seq == 5
    assert rows(database, "facts") == 5
    assert balance(database, "dispensed/HD-001") == 5


def test_a_batch_beyond_the_cursor_is_a_gap_and_applies_nothing(database: Database) -> None:
    machine = Machine().vend().vend().vend()
    answer(database, machine, 1, 1)
    gap = answer(database, machine, 3, 3)
    assert isinstance(gap, Gap)
    assert gap.through_seq == 1
    assert rows(database, "facts") == 1


def test_a_stream_that_does_not_begin_with_its_first_fact_leaves_nothing_behind(database: Database) -> None:
    machine = Machine().vend().vend()
    assert isinstance(answer(database, machine, 2, 2), Gap)
    assert rows(database, "streams") == 0
    assert answer(database, machine).through_seq == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b[:0], "batch header"),
        (lambda b: b"\xff\xfe" + b, "batch header"),
        (lambda b: b.replace(b'"first_seq":1', b'"first_seq":9223372036854775807', 1), "expected none above"),
        (lambda b: b.replace(b'"v":1', b'"v":9', 1), "v = 9"),
        (lambda b: b.replace(b'"first_seq":1', b'"first_seq":0', 1), "first_seq = 0"),
        (lambda b: b.partition(b"\n")[0], "batch of 0 facts: expected 1 to 100"),
        (lambda b: b + b"\n" + b"x" * 5000, "5000 bytes: expected 1 to 4096"),
        (lambda b: b + b"\n{}" * 100, "batch of 102 facts: expected 1 to 100"),
        (lambda b: b + b"\n" + b"\n".join([b"y" * 4000] * 20), "expected at most 65536"),
    ],
)
def test_an_envelope_that_cannot_be_read_is_refused_with_its_reason_and_kept(
    database: Database, spoil: Any, words: str
) -> None:
    machine = Machine().vend()
    answer(database, machine)
    machine.vend()
    (reply,) = send_bytes(database, "HD-001", spoil(machine.batch()))
    assert isinstance(reply.message, Nack)
    assert words in reply.message.reason
    assert reply.message.through_seq == 1
    assert (rows(database, "facts"), rows(database, "dead_letters")) == (1, 1)
    assert answer(database, machine).through_seq == 2


def test_a_chain_that_does_not_add_up_is_refused(database: Database) -> None:
    machine = Machine().vend().vend()
    answer(database, machine, 1, 1)
    header, line = machine.batch(2, 2).split(b"\n")
    wrong = header.replace(machine.digests[1].hex().encode(), b"ab" * 32)
    (reply,) = send_bytes(database, "HD-001", wrong + b"\n" + line)
    assert not isinstance(reply.message, Ack)
    assert rows(database, "facts") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"kind":"sublimated"}', "sublimated"),
        (b"not json", "Invalid JSON"),
        (encode_fact(Vend(**Machine().when(), slot=1, outcome=Outcome.DELIVERED)).replace(b'"v":1', b'"v":7'), "v = 7"),
        (encode_fact(Vend(**Machine().when(), slot=1, outcome=Outcome.DELIVERED)).replace(b":1,", b":-4,"), "-4"),
    ],
)
def test_a_line_that_no_version_can_read_is_kept_shown_and_acknowledged_and_the_stream_goes_on(
    database: Database, line: bytes, words: str
) -> None:
    machine = Machine().vend()
    machine.tell_line(line).vend()
    ack = answer(database, machine)
    assert isinstance(ack, Ack)
    assert (ack.through_seq, ack.quarantined) == (3, [2])
    with database.begin() as connection:
        kept = fleet.facts_page(connection, "HD-001", limit=10)[1]
    assert (kept.line, kept.kind) == (line, None)
    assert words in str(kept.quarantine_reason)
    assert "FACT_QUARANTINED" in faults(database)
    assert balance(database, "dispensed/HD-001") == 2


def test_a_restored_card_forks_its_stream_and_is_told_to_begin_a_new_one(database: Database) -> None:
    machine = Machine().vend().vend().vend()
    answer(database, machine)
    restored = Machine(stream_id=machine.stream_id).tell_line(machine.lines[0]).vend(slot=2).vend(slot=2)
    fork = answer(database, restored)
    assert isinstance(fork, Fork)
    answer(database, restored)
    assert rows(database, "facts") == 3
    assert rows(database, "forked_facts") == 3
    assert "STREAM_FORKED" in faults(database)
    with database.begin() as connection:
        orders = connection.execute(text("SELECT payload->>'kind' FROM outgoing WHERE channel = 'orders'")).scalars()
        assert list(orders) == ["new_stream"]


def live(database: Database, machine: Machine, session: int) -> None:
    with database.begin() as connection:
        store.announce(connection, [Announcement("HD-001", machine.stream_id, session, online=True, received_at=NOW)])


def at_hour(hour: float) -> dict[str, Any]:
    return {"at_ms": BASE_MS + int(hour * 3_600_000)}


def vend(machine: Machine, hour: float, *, trusted: bool = True) -> Machine:
    fields = machine.when() | at_hour(hour) | {"clock_trusted": trusted}
    return machine.tell(Vend(**fields, slot=1, product="CONDOM-M", outcome=Outcome.DELIVERED))


@pytest.mark.parametrize(("trusted", "announced"), [(True, True), (True, False), (False, True)])
def test_an_old_card_that_goes_on_where_it_was_copied_forks_too_once_another_stream_has_followed(
    database: Database, trusted: bool, announced: bool
) -> None:
    """Nothing of it contradicts: it had told everything when it was copied. What it tells now comes after the second stream."""
    old, new = vend(Machine(), 0), vend(Machine(), 1)
    live(database, old, 1)
    answer(database, old)
    live(database, new, 1)
    answer(database, new)
    if announced:
        live(database, old, 2)
    assert isinstance(answer(database, old), Ack), "what it repeats is known"
    vend(vend(old, 2, trusted=trusted), 3, trusted=trusted)
    assert isinstance(answer(database, old, 2), Fork)
    assert rows(database, "forked_facts") == 2
    assert balance(database, "dispensed/HD-001") == 2
    with database.begin() as connection:
        orders = connection.execute(text("SELECT payload->>'kind' FROM outgoing WHERE channel = 'orders'")).scalars()
        assert list(orders) == ["new_stream"]


def test_an_old_card_that_goes_on_after_a_hole_is_a_fork_and_leaves_no_hole(database: Database) -> None:
    """A hole that was noted and then not passed made the audit differ, and every later word of the card a dead letter."""
    old, new = vend(Machine(), 0), vend(Machine(), 1)
    answer(database, old)
    answer(database, new)
    for hour in range(2, 6):
        vend(old, hour)
    for _ in range(2):
        assert isinstance(send_bytes(database, "HD-001", old.batch(4, oldest=True))[0].message, Fork)
    assert (rows(database, "stream_gaps"), rows(database, "forked_facts")) == (0, 2)
    with database.begin() as connection:
        assert audit(connection).differences == []


def test_a_machine_that_begins_streams_without_end_is_heard_up_to_a_limit_and_its_first_stream_is_still_known(
    database: Database,
) -> None:
    first = Machine().vend()
    answer(database, first)
    others = [Machine().vend() for _ in range(3 * USELESS_MAX)]
    received = [Received("fleet/v1/HD-001/facts", "HD-001", other.batch()) for other in others]
    with database.begin() as connection:
        _, tally = apply(connection, received, NOW, 1)
    assert (tally.facts, tally.dropped) == (USELESS_MAX, 2 * USELESS_MAX)
    assert answer(database, first) == answer(database, first)
    assert rows(database, "streams") == 1 + USELESS_MAX


def test_a_forked_card_that_counts_its_sessions_from_an_old_number_still_gets_its_order(database: Database) -> None:
    machine = Machine().vend().vend().vend()
    live(database, machine, 400)
    answer(database, machine)
    with database.begin() as connection:
        gone = Announcement("HD-001", machine.stream_id, 400, online=False, received_at=NOW)
        store.announce(connection, [gone])
    restored = Machine(stream_id=machine.stream_id).tell_line(machine.lines[0]).vend(slot=2)
    live(database, restored, 27)
    assert isinstance(answer(database, restored), Fork)
    with database.begin() as connection:
        (waits,) = [waits for waits, *_ in outgoing_store.due(connection, NOW) if waits.channel is Channel.ORDERS]
    assert waits.payload["kind"] == "new_stream"


def test_the_way_out_of_a_fork_is_sent_on_the_forked_stream_alone(database: Database) -> None:
    """A third card in between must not use it up."""
    cards = [Machine().vend(), Machine().vend(), Machine().vend()]
    for session, card in enumerate([*cards, cards[0], cards[2], cards[1]], 1):
        live(database, card, session)
        answer(database, card.vend())
        with database.begin() as connection:
            due = [
                waits.payload for waits, *_ in outgoing_store.due(connection, NOW) if waits.channel is Channel.ORDERS
            ]
        expected = [{"kind": "new_stream", "stream_id": card.stream_id}] if session in {4, 6} else []
        assert due == expected, session


def test_a_fork_whose_way_out_came_too_late_gets_another(database: Database) -> None:
    """The machine was away for longer than an order lives; the job that notes it may be away itself."""
    machine = Machine().vend()
    answer(database, machine)
    restored = Machine(stream_id=machine.stream_id).vend(slot=2)
    live(database, restored, 1)
    for days, orders in ((0, 1), (0, 1), (2, 2)):
        send_bytes(database, "HD-001", restored.batch(), now=NOW + timedelta(days=days))
        with database.begin() as connection:
            pending = outgoing.pending(connection, "HD-001")
        assert len([order for order in pending if order.channel is Channel.ORDERS]) == orders


def test_what_a_replaced_card_had_sent_before_is_in_its_place_though_it_arrives_late(database: Database) -> None:
    old, new = vend(vend(Machine(), 0), 1), vend(Machine(), 2)
    live(database, old, 1)
    answer(database, old, 1, 1)
    live(database, new, 1)
    answer(database, new)
    assert isinstance(answer(database, old, 2), Ack)
    assert balance(database, "dispensed/HD-001") == 3


def test_a_new_stream_of_a_machine_asks_for_a_count(database: Database) -> None:
    answer(database, Machine().vend())
    assert not {"STREAM_REPLACED", "COUNT_DUE"} & faults(database)
    answer(database, Machine().vend())
    assert faults(database) >= {"STREAM_REPLACED", "COUNT_DUE"}


def test_a_dispenser_that_nobody_registered_is_refused_by_name_and_its_facts_are_kept(database: Database) -> None:
    stranger = Machine("HD-999").vend()
    nack = answer(database, stranger)
    assert isinstance(nack, Nack)
    assert "HD-999" in nack.reason
    assert "registered" in nack.reason
    assert (rows(database, "facts"), rows(database, "dead_letters")) == (0, 1)


def test_a_machine_that_speaks_in_the_name_of_another_books_nothing(database: Database) -> None:
    """X1: the topic says who it is; the header of another machine under it is refused."""
    other = Machine("HD-002").vend()
    assert send_bytes(database, "HD-001", other.batch()) == []
    assert (rows(database, "facts"), rows(database, "dead_letters")) == (0, 1)
    assert balance(database, "dispensed/HD-002") == 0


def test_two_machines_with_the_same_stream_id_do_not_meet(database: Database) -> None:
    one, other = Machine("HD-001", "a" * 32).vend(), Machine("HD-002", "a" * 32).vend().vend()
    assert answer(database, one).through_seq == 1
    assert answer(database, other).through_seq == 2


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_whole_history_replayed_three_times_and_shuffled_changes_no_balance(database: Database, seed: int) -> None:
    """P6. Each example is one more stream of the same machine."""
    throw = random.Random(seed)
    machine = Machine()
    for _ in range(30):
        if throw.random() < 0.1:
            machine.door(f"{throw.randrange(10**6):06d}")
        machine.vend(throw.choice([1, 2]), throw.choice([Outcome.DELIVERED, Outcome.UNVERIFIED, Outcome.JAM]))
    last = len(machine.lines)
    cuts = [(first, min(last, first + throw.randint(0, 20))) for first in range(1, last + 1)] * 3
    answer(database, machine)
    with database.begin() as connection:
        before = connection.execute(text("SELECT * FROM balances ORDER BY 1, 2, 3")).all()
    throw.shuffle(cuts)
    received = [Received("fleet/v1/HD-001/facts", "HD-001", machine.batch(*cut)) for cut in cuts]
    duplicates = 0
    for first in range(0, len(received), USELESS_MAX):
        with database.begin() as connection:
            replies, tally = apply(connection, received[first : first + USELESS_MAX], NOW, 1)
        assert [(type(r.message), r.message.through_seq) for r in replies] == [(Ack, last)], f"seed {seed}"
        assert tally.facts == 0, f"seed {seed}"
        duplicates += tally.duplicates
    assert duplicates == sum(last - first + 1 for first, last in cuts), f"seed {seed}"
    with database.begin() as connection:
        assert connection.execute(text("SELECT * FROM balances ORDER BY 1, 2, 3")).all() == before, f"seed {seed}"
    with database.begin() as connection:
        assert audit(connection).differences == [], f"seed {seed}"


def test_reality_wins_over_the_book_and_a_count_is_due(database: Database) -> None:
    """Domain: vends of a slot that the book has empty are applied as what they are."""
    answer(database, Machine().vend().vend())
    with database.begin() as connection:
        stock = slot_stock(connection)["HD-001", 1]
    assert stock.units == -2
    assert "BOOK_BELOW_ZERO" in faults(database)


def test_facts_of_a_clock_far_ahead_are_kept_with_a_time_that_can_be(database: Database) -> None:
    machine = Machine().vend()
    ahead = machine.when() | {"at_ms": BASE_MS + 400 * 86_400_000}
    machine.tell(Vend(**ahead, slot=1, outcome=Outcome.DELIVERED)).vend()
    assert answer(database, machine).through_seq == 3
    with database.begin() as connection:
        kept = fleet.facts_page(connection, "HD-001", limit=10)
    assert all(fact.corrected_at <= NOW for fact in kept)
    assert kept[1].at is not None
    assert kept[1].at > NOW  # the machine's own word is kept beside the corrected one


def test_repeats_from_before_and_after_a_gap_of_the_stream_are_repeats_and_no_fork(database: Database) -> None:
    machine = Machine()
    for _ in range(60):
        machine.vend()
    answer(database, machine, 1, 10)
    assert send_bytes(database, "HD-001", machine.batch(31, 60, oldest=True))[0].message.through_seq == 60
    cuts = [(1, 5), (5, 8), (32, 36), (3, 4), (40, 45), (52, 60), (9, 10), (31, 31)]
    received = [Received("fleet/v1/HD-001/facts", "HD-001", machine.batch(*cut)) for cut in cuts]
    with database.begin() as connection:
        replies, tally = apply(connection, received, NOW, 1)
    assert [(type(reply.message), reply.message.through_seq) for reply in replies] == [(Ack, 60)]
    assert (tally.forks, tally.duplicates) == (0, sum(last - first + 1 for first, last in cuts))
