"""Scenes about orders: each runs once, in its stream and session, in its time, and is answered."""

import secrets

from simulator.conformance.counterpart import QUIET_S, Counterpart, stream_of_nobody

GIVES_A_PACK = ("delivered", "unverified", "in_doubt")


def orders(c: Counterpart) -> None:
    """Everything at once, and an ordinary order behind it: when that is answered, all others were read."""
    c.go_on()
    plain = c.order("self_test", x_future={"of": ["a", "later", "version"]})
    told = f"self_test: {c.answer(plain).get('outcome', 'no answer')}"
    answered = c.checklist.expect("ORDER-ANSWER", bool(c.answer(plain, 0)), "by order_result, once", told)
    c.checklist.expect(
        "IGNORE-UNKNOWN", answered, "order with an unknown field taken", "order with an unknown field lost"
    )
    if not answered and not c.answer(c.order("self_test")):
        return
    c.order("self_test", plain)
    bound = {
        "another stream": c.order("test_vend", slot=1, stream_id=stream_of_nobody()),
        "the session before": c.order("test_vend", slot=1, session=c.session - 1),
        "the session to come": c.order("test_vend", slot=1, session=c.session + 1),
    }
    late = c.order("test_vend", slot=1, expires_after_ms=0)
    lost = c.order("self_test", to=c.stranger)
    c.answer(c.order("self_test"))
    c.settle(QUIET_S)
    for words, order_id in bound.items():
        _answered_and_not_run(c, "ORDER-BOUND", order_id, "refused", words)
    _answered_and_not_run(c, "ORDER-EXPIRY", late, "expired", "0 ms of life")
    told = "an order on the topic of another dispenser was answered"
    c.checklist.expect("TOPIC-OWN", not c.answer(lost, 0), "another's orders were left alone", told)
    once(c, plain, "self_test")


def _answered_and_not_run(c: Counterpart, rule: str, order_id: str, outcome: str, words: str) -> None:
    found = c.answer(order_id, 0).get("outcome", "no answer")
    c.checklist.expect(rule, found == outcome, f"{words}: {outcome}", f"{words}: {found}")
    run = [fact for fact in c.said("vend", order_id=order_id) if fact.value.get("outcome") != "refused"]
    c.checklist.expect(rule, not run, "and not run", f"{words}: it was run")


def vended_once(c: Counterpart) -> None:
    """The same test vend three times: one vend, one answer. Needs a stock, so it comes after the books."""
    order_id = c.order("test_vend", slot=1)
    c.order("test_vend", order_id, slot=1)
    c.answer(order_id)
    c.order("test_vend", order_id, slot=1)
    c.answer(c.order("self_test"))
    c.settle(1.0)
    once(c, order_id, "test_vend")


def once(c: Counterpart, order_id: str, words: str) -> None:
    """Judge an order that was sent more than once."""
    answers, vends = len(c.said("order_result", order_id=order_id)), len(c.said("vend", order_id=order_id))
    told = f"{words} sent again: {answers} answers, {vends} vends"
    c.checklist.expect("ORDER-ONCE", answers <= 1 and vends <= 1, f"{words} sent again did nothing", told)


def vend(c: Counterpart, slot: int) -> dict[str, object]:
    """Order a test vend and return its fact; empty when none came."""
    order_id = c.order("test_vend", slot=slot, order_id=secrets.token_hex(16))
    c.answer(order_id)
    found = c.said("vend", order_id=order_id)
    return dict(found[0].value) if found else {}
