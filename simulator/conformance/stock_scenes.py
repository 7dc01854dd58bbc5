"""Scenes about what the dispenser may give: desired states, books, lots, doors."""

from typing import Any, Final

from protocol.topics import Channel
from simulator.conformance.commands import Means
from simulator.conformance.counterpart import ANSWER_S_MAX, QUIET_S, Counterpart, stream_of_nobody
from simulator.conformance.order_scenes import GIVES_A_PACK, vend

GOOD, NEXT, EXPIRED, BLOCKED, UNKNOWN = "GOOD-1", "GOOD-2", "EXPIRED-1", "BLOCKED-1", "UNKNOWN-1"
PRODUCT: Final = "CONFORMANCE"
FORBIDDEN: Final = {2: ("expired", EXPIRED), 3: ("blocked", BLOCKED), 4: ("unknown", UNKNOWN)}
PACKS: Final = 50


def _lot(lot: str, expires_on: str, *, blocked: bool = False) -> dict[str, Any]:
    return {"lot": lot, "product": PRODUCT, "expires_on": expires_on, "blocked": blocked}


def desired_state(version: int, **other: Any) -> dict[str, Any]:
    """Four slots without limits: 1 may vend, 2 to 4 are to hold what must never come out."""
    planogram = [{"slot": slot, "product": PRODUCT, "capacity": PACKS, "enabled": True} for slot in (1, 2, 3, 4)]
    far, past = "2099-12-31", "2020-01-01"
    lots = [_lot(GOOD, far), _lot(NEXT, far), _lot(EXPIRED, past), _lot(BLOCKED, far, blocked=True)]
    limits = {"cooldown_s": 0, "daily_packs_max": 1_000}
    hours = {"opens_hour": 0, "closes_hour": 24}
    value = {"v": 1, "version": version, "planogram": planogram, "lots": lots, "limits": limits, "opening_hours": hours}
    return value | other


def _applied(c: Counterpart, what: str, version: int) -> list[bool]:
    return [bool(fact.value.get("applied")) for fact in c.said("config_applied", what=what, version=version)]


def _fence(c: Counterpart) -> None:
    """Wait until the dispenser has read what was sent before."""
    c.answer(c.order("self_test"))
    c.settle(QUIET_S)


def desired(c: Counterpart) -> None:
    """A new state, the same again, an older one, half of one, one for somebody else."""
    base = c.wall_ms // 1000
    c.send(Channel.DESIRED, desired_state(base, x_future=1))
    c.until(lambda: _applied(c, "desired", base), ANSWER_S_MAX)
    taken = _applied(c, "desired", base) == [True]
    c.checklist.expect("DESIRED-WHOLE", taken, "a newer one was applied and answered", "a newer one was not applied")
    c.checklist.expect(
        "IGNORE-UNKNOWN", taken, "desired with an unknown field taken", "desired with an unknown field lost"
    )
    answers = len(c.said("config_applied", what="desired"))
    c.send(Channel.DESIRED, desired_state(base))
    c.send(Channel.DESIRED, desired_state(base - 1, planogram=[]))
    c.send(Channel.DESIRED, desired_state(base + 5), c.stranger)
    _fence(c)
    changed = len(c.said("config_applied", what="desired")) - answers
    told = f"an older, a repeated or another's state was answered {changed} times"
    c.checklist.expect("DESIRED-WHOLE", not changed, "older and repeated ones changed nothing", told)
    broken = desired_state(base + 1, planogram=[{"slot": 1, "product": PRODUCT, "capacity": PACKS}, {"slot": 0}])
    c.send(Channel.DESIRED, broken)
    _fence(c)
    half = True in _applied(c, "desired", base + 1)
    c.send(Channel.DESIRED, desired_state(base + 2))
    whole = c.until(lambda: True in _applied(c, "desired", base + 2), ANSWER_S_MAX)
    told = "a state with a slot that cannot be was applied"
    c.checklist.expect("DESIRED-WHOLE", not half, "one with an impossible slot was not applied", told)
    c.checklist.expect("DESIRED-WHOLE", whole, "the next one was", "the state after a broken one was not applied")


def _books(c: Counterpart, version: int, as_of_seq: int, queue: list[tuple[str, int]], **other: Any) -> list[bool]:
    """Send books and return the answers to them."""
    slots = [{"slot": 1, "queue": [{"lot": lot, "packs": packs} for lot, packs in queue]}]
    slots += [{"slot": slot, "queue": [{"lot": lot, "packs": 5}]} for slot, (_, lot) in FORBIDDEN.items()]
    value = {"v": 1, "version": version, "stream_id": c.record.stream_id, "as_of_seq": as_of_seq, "slots": slots}
    c.send(Channel.BOOKS, value | other)
    c.until(lambda: _applied(c, "books", version), ANSWER_S_MAX / 2)
    return _applied(c, "books", version)


def books(c: Counterpart) -> None:
    """Books of another stream, of a fact never written, and of a fact before the last vend."""
    version = c.wall_ms // 1000
    queue = [(GOOD, 1), (NEXT, PACKS)]
    foreign = _books(c, version, 0, queue, stream_id=stream_of_nobody())
    never = _books(c, version + 1, c.record.last + 1_000, queue)
    expect = c.checklist.expect
    expect("BOOKS-REFOLD", foreign == [False], "of another stream: refused", f"of another stream: applied {foreign}")
    expect("BOOKS-REFOLD", never == [False], "of a fact never written: refused", f"of a fact to come: applied {never}")
    as_of = c.record.last
    taken = _books(c, version + 2, as_of, queue, x_future=1) == [True]
    expect("BOOKS-REFOLD", taken, "its own: taken", "its own: not taken")
    expect("IGNORE-UNKNOWN", taken, "books with an unknown field taken", "books with an unknown field lost")
    first = vend(c, 1)
    if first.get("outcome") not in GIVES_A_PACK or first.get("lot") != GOOD:
        what = f"{first.get('outcome')} {first.get('reason', '')} {first.get('lot', '')}".strip()
        c.checklist.unobserved("BOOKS-REFOLD", f"refolding: the vend at slot 1 was {what}")
        return
    _books(c, version + 3, as_of, queue)
    lot = vend(c, 1).get("lot")
    told = f"books as of a fact before a vend: the next pack was {lot}, expected {NEXT}"
    expect("BOOKS-REFOLD", lot == NEXT, "an own vend after them was folded on top", told)


def lots(c: Counterpart, means: Means) -> None:
    """Ask for packs that must never come out, by order and, where it can be done, at the machine."""
    if vend(c, 1).get("outcome") not in GIVES_A_PACK:
        return
    for slot, (words, lot) in FORBIDDEN.items():
        before = c.record.last
        vend(c, slot)
        if means.ask:
            means.run(c, means.ask, slot=slot)
            c.until(lambda since=before: len(_vends(c, since)) > 1, ANSWER_S_MAX / 2)  # type: ignore[misc]
        given = [fact for fact in _vends(c, before) if fact.get("outcome") in GIVES_A_PACK]
        ways = "by order and at the machine" if means.ask else "by order"
        c.checklist.expect("EXPIRED-NEVER", not given, f"{words}: refused {ways}", f"{words} lot {lot}: it came out")
    if not means.ask:
        c.checklist.unobserved("EXPIRED-NEVER", "asking at the machine needs --ask-command")


def _vends(c: Counterpart, since: int) -> list[dict[str, Any]]:
    return [fact.value for fact in c.record.facts if fact.seq > since and fact.value.get("kind") == "vend"]


def doors(c: Counterpart, means: Means) -> None:
    """Open the door twice, and ask for a pack while it is open."""
    if not means.door:
        return
    codes: list[str] = []
    for _ in range(2):
        opened_at = c.record.last
        means.run(c, means.door, position="open")
        c.until(lambda since=opened_at: _after(c, "door_opened", since), ANSWER_S_MAX)  # type: ignore[misc]
        asked_at = c.record.last
        if means.ask and not codes:
            means.run(c, means.ask, slot=1)
            c.until(lambda since=asked_at: _vends(c, since), 2)  # type: ignore[misc]
            served = [v for v in _vends(c, asked_at) if v.get("outcome") in GIVES_A_PACK and not v.get("test")]
            told = "a pack came out while the door was open"
            c.checklist.expect("DOOR-SERVES-NOBODY", not served, "nobody was served with the door open", told)
            tested = vend(c, 1)
            told = f"a vend by order was {tested.get('outcome')} with test = {tested.get('test')}"
            held = tested.get("test") is True or tested.get("outcome") not in GIVES_A_PACK
            c.checklist.expect("DOOR-SERVES-NOBODY", held, "a vend by order was a test", told)
        means.run(c, means.door, position="closed")
        c.until(lambda since=opened_at: _after(c, "door_closed", since), ANSWER_S_MAX)  # type: ignore[misc]
        opened, closed = _after(c, "door_opened", opened_at), _after(c, "door_closed", opened_at)
        same = len(opened) == len(closed) == 1 and opened == closed and len(opened[0]) == 6 and opened[0].isdecimal()  # noqa: PLR2004 - six digits
        c.checklist.expect("DOOR-CODE", same, "six digits, the same twice", f"opened {opened}, closed {closed}")
        codes += opened
    told = f"two openings had the code {codes[0] if codes else None}"
    c.checklist.expect("DOOR-CODE", len(set(codes)) == len(codes), "another one for every opening", told)


def _after(c: Counterpart, kind: str, since: int) -> list[str]:
    return [str(fact.value.get("session")) for fact in c.said(kind) if fact.seq > since]
