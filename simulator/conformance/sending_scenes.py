"""Scenes about sending: where the dispenser begins, what answers make it send again, and what silence does."""

from typing import Any, Final

from simulator.conformance.counterpart import ANSWER_S_MAX, QUIET_S, Counterpart, stream_of_nobody
from simulator.conformance.record import Sent
from simulator.real_time import monotonic

RESEND_S_MAX: Final = 4.0
BULK_FACTS: Final = 120
REFUSED_FACTS: Final = 20
BULK_S_MAX: Final = 30.0
FOREIGN_EPOCHS_AHEAD: Final = 1_000
FRESH_CONNECTION_S_MAX: Final = 75.0
"""60 s of silence, and a while for the new connection."""
SAME_MOMENT_S: Final = 0.5
"""A broker may deliver two topics of one sender in either order, so far apart."""


def opening(c: Counterpart) -> None:
    """Learn the stream from an answer to an order, and ask for all of it with an epoch that nobody has seen."""
    c.settle(1.0)  # one that announces itself too early is judged in a later session
    c.order("self_test")
    c.until(lambda: any(record.batches for record in c.streams.values()), ANSWER_S_MAX)
    c.epoch = c.wall_ms // 1000
    c.acknowledge(through_seq=0)
    began = c.until(lambda: c.record.last > 0, RESEND_S_MAX)
    if began:
        c.checklist.expect("EPOCH", True, "a higher epoch with cursor 0 brought everything from 1")
    else:
        began = _begin_by_gap(c)
    if not began and c.record.batches:
        c.record.join(c.record.batches[-1].last_seq + 1, bytes(32))
    c.go_on()
    c.settle()


def _begin_by_gap(c: Counterpart) -> bool:
    """Call for the facts of one that has never been answered: for it a cursor of 0 is no lower one, so nothing follows."""
    c.acknowledge("gap", through_seq=0)
    began = c.until(lambda: c.record.last > 0, ANSWER_S_MAX)
    if not began:
        c.checklist.expect("EPOCH", False, "", "a higher epoch with cursor 0 did not bring the facts from 1")
    return began


def answers(c: Counterpart) -> None:
    """Gap, foreign streams and lower epochs, each on a fact that only waits for its answer."""
    c.hold()
    first = c.new_fact()
    second = c.new_fact()
    if not first or not second:
        c.go_on()
        return
    _acknowledged_half(c, first)
    if _called_back(c, second):
        _misled(c)
    else:
        for rule in ("OTHER-STREAM", "ACK-DIGEST", "EPOCH"):
            c.checklist.unobserved(rule, "GO-BACK did not work, so that nothing shows what is pending")
    c.go_on()
    c.settle(0.3)


def _acknowledged_half(c: Counterpart, first: int) -> None:
    """Of two pending facts one is acknowledged: only the other may come again."""
    c.acknowledge(through_seq=first)
    c.settle(0.3)


def _called_back(c: Counterpart, second: int) -> bool:
    """Three gap answers for one gap."""
    since = len(c.record.batches)
    for _ in range(3):
        c.acknowledge("gap", through_seq=second - 1)
        c.settle(0.1)  # a batch of the same millisecond would pass for a repetition by the transport
    c.until(lambda: len(c.record.batches) > since, RESEND_S_MAX)
    c.settle(QUIET_S)
    again = c.record.batches[since:]
    times = c.resent(since, second)
    told = f"three gap answers through {second - 1}: {times} times from {second}"
    came = c.checklist.expect("GO-BACK", times == 1, "once for three answers", told)
    if again:
        lowest = min(batch.first_seq for batch in again)
        held = "what was acknowledged stayed away, what was not came again"
        c.checklist.expect("ACK-ENDS-PENDING", lowest == second, held, f"{lowest} came again, {second} was due")
    c.go_on()
    c.settle(0.3)
    return came


def _misled(c: Counterpart) -> None:
    """Answers that must not count: afterwards the fact can still be called for."""
    foreign = {"stream_id": stream_of_nobody(), "server_epoch": c.epoch + FOREIGN_EPOCHS_AHEAD}
    seen = _still_pending(c, foreign)
    if seen is not None:
        told = "an answer that named another stream ended a pending fact"
        c.checklist.expect(
            "OTHER-STREAM", seen, "an answer for another stream, of a later epoch, changed nothing", told
        )
    seen = _still_pending(c, {"server_epoch": c.epoch - 1})
    if seen is not None:
        told = "an answer of a lower epoch ended a pending fact"
        c.checklist.expect("EPOCH", seen, "an answer of a lower epoch was ignored", told)
    seen = _still_pending(c, {"digest": bytes(32).hex()})
    if seen is not None:
        told = "an answer with another digest ended a pending fact"
        c.checklist.expect("ACK-DIGEST", seen, "an answer with another digest acknowledged nothing", told)
    seen = _still_pending(c, {"x_future": 1}, QUIET_S)
    if seen is not None:
        told = "an answer with an unknown field did not end a pending fact"
        c.checklist.expect("IGNORE-UNKNOWN", not seen, "answer with an unknown field taken", told)
    _lower_cursors(c)


def _lower_cursors(c: Counterpart) -> None:
    """A cursor below what is acknowledged: in the same epoch, and in a higher one.

    The answer of a lower epoch before it takes in who believes it: the true epoch would then be a higher one.
    """
    c.hold()
    low, fact = max(0, c.record.last - 2), c.new_fact()
    c.acknowledge(through_seq=fact, server_epoch=c.epoch - 1)
    c.settle(0.3)
    since = len(c.record.batches)
    c.acknowledge(through_seq=low)
    c.settle()
    resent = any(batch.first_seq <= low + 1 for batch in c.record.batches[since:])
    told = f"a cursor of {low} in the same epoch brought acknowledged facts again"
    c.checklist.expect("EPOCH", not resent, "a lower cursor in the same epoch was ignored", told)
    c.epoch += 1
    since = len(c.record.batches)
    c.acknowledge(through_seq=low)
    came = c.until(lambda: c.resent(since, low + 1), RESEND_S_MAX)
    held = "a lower cursor in a higher epoch brought the facts after it"
    c.checklist.expect("EPOCH", bool(came), held, f"a cursor of {low} in a higher epoch brought nothing")
    if came:
        c.checklist.expect("KEEP", True, "acknowledged facts were still there for a restored server")


def _still_pending(c: Counterpart, other: dict[str, Any], seconds: float = RESEND_S_MAX) -> bool | None:
    """Answer a fact with these fields, and see whether it can still be called for; None where there was no fact."""
    c.hold()
    fact = c.new_fact()
    if not fact:
        return None
    c.acknowledge(through_seq=fact, **other)
    c.settle(0.3)
    since = len(c.record.batches)
    c.acknowledge("gap", through_seq=fact - 1)
    came = c.until(lambda: c.resent(since, fact), seconds)
    c.go_on()
    c.settle(0.2)
    return bool(came)


def bulk(c: Counterpart) -> None:
    """Many facts at once, first unanswered and then from the beginning: limits, window, other cuts."""
    c.hold()
    ids = [c.order("self_test", session=c.session + 1) for _ in range(BULK_FACTS)]
    c.settle()
    c.go_on()
    c.until(lambda: len(c.said("order_result", order_id=ids[-1])), BULK_S_MAX)
    c.settle(0.3)
    c.epoch += 1
    c.answering = False
    since, through = len(c.record.batches), max(1, c.record.last - BULK_FACTS)
    last = c.record.last
    c.acknowledge(through_seq=through)
    c.until(lambda: any(batch.last_seq == last for batch in c.record.batches[since:]), RESEND_S_MAX)
    c.go_on()


def fork(c: Counterpart) -> None:
    """Tell it that its numbers came with other bytes; nothing may follow until a new stream is ordered."""
    c.go_on()
    c.settle()
    c.hold()
    if not c.new_fact():
        return
    former, since = c.record, len(c.record.batches)
    c.acknowledge("fork", through_seq=former.last - 1)
    c.settle()  # the broker may deliver two topics in either order
    c.order("self_test")
    c.settle(2.5)
    told = f"{len(former.batches) - since} batches of the forked stream"
    c.checklist.expect("FORK-STOPS", len(former.batches) == since, "silence after fork", told)
    # Of another session, as a server would that knows the card from before it was copied.
    order_id = c.order("new_stream", session=c.session + 1_000)
    began = c.until(lambda: c.record is not former and c.record.last > 0, ANSWER_S_MAX)
    c.checklist.expect("FORK-STOPS", began, "a new stream began by order", "no new stream came by order")
    if began:
        c.go_on()
        began_on = c.record.stream_id
        announced = c.until(lambda: any(p.online and p.stream_id == began_on for p in c.presences), ANSWER_S_MAX)
        c.checklist.expect("NEW-STREAM", announced, "a fresh connection announces it", "no announcement names it")
        told = "the order for a new stream was not answered"
        c.checklist.expect("ORDER-ANSWER", bool(c.answer(order_id)), "by order_result, once", told)
        c.settle(0.3)


def silence(c: Counterpart, patience_s: float) -> None:
    """Refuse a batch, wait until it comes again, and from then on never answer."""
    before = _pending_bulk(c)
    if before is None:
        return
    since, nacked_s = len(c.record.batches), monotonic()
    c.acknowledge("nack", through_seq=c.record.acked)
    c.until(lambda: len(c.record.batches) > since, patience_s)
    c.settle(0.3)
    again = c.record.batches[since:]
    if not again:
        c.checklist.expect("NACK-SMALLER", False, "", f"nothing came within {patience_s:.0f} s")
        c.go_on()
        return
    waited_s = again[0].at_s - nacked_s
    told = f"{_size(again[0])} facts after {waited_s:.1f} s, {_size(before)} before"
    smaller = _size(again[0]) < _size(before) and again[0].first_seq == before.first_seq
    c.checklist.expect("NACK-SMALLER", waited_s > 0.5 and smaller, told, told)  # noqa: PLR2004 - half a second is a pause
    _keep_silent(c, again[0], patience_s)


def _pending_bulk(c: Counterpart) -> Sent | None:
    """Return a batch of several facts that waits for its answer."""
    c.go_on()
    c.settle(0.3)
    c.answering = False
    c.epoch += 1
    since = len(c.record.batches)
    c.acknowledge(through_seq=max(0, c.record.last - REFUSED_FACTS))
    c.until(lambda: len(c.record.batches) > since, RESEND_S_MAX)
    c.settle(0.3)
    sent = c.record.batches[since:]
    return sent[0] if sent and _size(sent[0]) > 1 else None


def _size(sent: Sent) -> int:
    return sent.last_seq - sent.first_seq + 1


def _keep_silent(c: Counterpart, first: Sent, patience_s: float) -> None:
    """Never answer: the window comes again, and after 60 s the connection is given up for a new one."""
    session, since, sessions = c.session, len(c.record.batches), len(c.presences)
    ends_s = min(FRESH_CONNECTION_S_MAX, patience_s)
    c.until(lambda: c.session > session, ends_s - (monotonic() - first.at_s))
    told_s = [p.at_s - SAME_MOMENT_S * p.online for p in c.presences[sessions:] if not p.retained]
    ended_s = min(told_s, default=monotonic())
    waited_s = ended_s - first.at_s
    again = [b for b in c.record.batches[since:] if b.first_seq == first.first_seq and b.at_s < ended_s]
    told = f"nothing came again in {waited_s:.0f} s"
    after_s = [round(batch.at_s - first.at_s, 1) for batch in again]
    held = f"again after {', '.join(map(str, after_s))} s"
    if c.checklist.expect("TIMEOUT", bool(again), held, told):
        smaller = _size(again[0]) < _size(first) or _size(first) == 1
        told = f"{_size(again[0])} facts again, {_size(first)} before"
        c.checklist.expect("TIMEOUT", smaller, "in smaller batches", told)
        pauses = [later - earlier for earlier, later in zip([0.0, *after_s], after_s, strict=False)]
        if len(pauses) > 1:
            grew = max(pauses) > 1.1 * pauses[0]  # jitter may shorten one of them
            c.checklist.expect("TIMEOUT", grew, "pauses grew", f"pauses did not grow: {pauses}")
    fresh = c.session > session
    if fresh or patience_s >= FRESH_CONNECTION_S_MAX:
        told = f"no new session in {waited_s:.0f} s of silence"
        c.checklist.expect("WATCHDOG", fresh, f"a new session after {waited_s:.0f} s", told)
    else:
        c.checklist.unobserved("WATCHDOG", f"--patience ended after {waited_s:.0f} s")
    c.go_on()
    c.settle(1.0)
