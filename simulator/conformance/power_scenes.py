"""Scenes in which the power is cut: what was said stays said, what was begun is settled, and the end was announced."""

from typing import Any, Final

from simulator.conformance.commands import Means
from simulator.conformance.counterpart import ANSWER_S_MAX, Counterpart
from simulator.conformance.order_scenes import once
from simulator.conformance.record import StreamRecord

NEW_SESSION_S_MAX: Final = 90.0
WILL_S_MAX: Final = 10.0
MOTOR_TURNS_S: Final = 0.3
"""So long after the order for a vend its motor turns; the power is cut then."""


def power_cut(c: Counterpart, means: Means) -> None:
    """Cut the power with a fact that only the broker has, while the motor turns."""
    if not means.restart:
        return
    c.hold()
    fact, life, session = c.new_fact(), _life(c), c.session
    former, presences, boot = c.record, len(c.presences), _latest(c, "boot_id")
    former.power_was_cut = True
    c.settle(0.3)
    begun = c.order("test_vend", slot=1)
    c.settle(MOTOR_TURNS_S)
    since, said, breaches = len(former.batches), former.last, c.checklist.failed()
    means.run(c, means.restart)
    began = c.until(lambda: [p for p in c.presences[presences:] if p.online and not p.retained], NEW_SESSION_S_MAX)
    if not began:
        c.checklist.expect("SESSION", False, "", f"no session within {NEW_SESSION_S_MAX:.0f} s of the restart")
        return
    c.until(lambda: len(former.batches) > since or c.record is not former, ANSWER_S_MAX)
    c.settle(0.3)
    if c.record is not former:
        c.checklist.expect("DURABLE", False, "", "another stream after the power cut: the former one is lost")
    elif fact:
        _come_again(c, former, since, fact, breaches)
    c.go_on()
    _will(c, former, session, presences)
    after = [f for f in c.said("started") if f.value.get("boot_id") != boot and f.value.get("reason") == "start"]
    told = f"no fact `started` of another boot after {said}"
    c.checklist.expect("STARTED", bool(after), "started, with another boot_id", told)
    _settled(c, begun, life, after[0].value if after else {})
    former.power_was_cut = False


def _come_again(c: Counterpart, record: StreamRecord, since: int, fact: int, breaches: list[str]) -> None:
    """Judge where the new session begins to send; nothing of it where the numbering itself went wrong."""
    expect = c.checklist.expect
    if set(c.checklist.failed()) - set(breaches):
        return
    sent = record.batches[since:]
    lowest = min((batch.first_seq for batch in sent), default=None)
    told = f"fact {fact} was with the broker only; the new session began at {lowest or 'nothing'}"
    if expect("KEEP", lowest is not None and lowest <= fact, "what only the broker had came again", told):
        expect("DURABLE", True, "facts said before the power cut are there, byte for byte")
        held = "a new session began behind the acknowledged ones"
        told = f"{lowest} came in the new session, acknowledged through {record.acked}"
        expect("ACK-ENDS-PENDING", lowest is not None and lowest > record.acked, held, told)


def _will(c: Counterpart, record: StreamRecord, session: int, presences: int) -> None:
    def wills() -> list[tuple[str, int]]:
        return [(p.stream_id, p.session) for p in c.presences[presences:] if not p.online]

    c.until(wills, WILL_S_MAX)
    due = (record.stream_id, session)
    told = f"wills heard: {wills() or 'none'}, expected one of session {session}"
    c.checklist.expect("WILL", due in wills(), "told the end of the session that was cut", told)
    kept = c.ask_for_retained()
    told = "the broker retains nothing on status"
    c.checklist.expect("WILL", kept is not None, "status is retained", told)


def _settled(c: Counterpart, begun: str, life: int | None, started: dict[str, Any]) -> None:
    """What became of the vend that was cut off? The board's life counter knows, even where the agent does not."""
    answer = c.answer(begun)
    vends = c.said("vend", order_id=begun)
    after = started.get("life_count")
    if vends and vends[0].value.get("boot_id") == started.get("boot_id"):
        c.checklist.expect("INTENT", True, f"a vend cut off was settled as {vends[0].value.get('outcome')}")
    elif vends:
        c.checklist.unobserved("INTENT", "the vend had ended before the power was cut")
    elif life is not None and after is not None and after > life:
        told = f"the board's life counter went from {life} to {after}, and no fact tells of a vend"
        c.checklist.expect("INTENT", False, "", told)
    else:
        c.checklist.unobserved("INTENT", "the motor had not turned yet, or the board does not count its life")
    if answer:
        c.order("test_vend", begun, slot=1)
        c.answer(c.order("self_test"))
        c.settle(1.0)
        once(c, begun, "an order begun before the power cut,")
    else:
        c.checklist.unobserved("ORDER-ONCE", "the order before the power cut was not answered: it may not have arrived")


def _life(c: Counterpart) -> int | None:
    counts = [f.value["life_count"] for f in c.record.facts if f.value.get("life_count") is not None]
    return max(counts, default=None)


def _latest(c: Counterpart, name: str) -> Any:
    return c.record.facts[-1].value.get(name) if c.record.facts else None


def greetings(c: Counterpart) -> None:
    """Every order that was sent at the sight of a new session must have arrived."""
    c.greets = False
    c.go_on()
    for order_id in c.greetings:
        told = "an order sent as soon as `online` was seen did not arrive"
        c.checklist.expect("SUBSCRIBE-FIRST", bool(c.answer(order_id)), "it arrived", told)
