"""The rules of the conformance kit for board drivers: one function each, named as the checklist names it.

A check returns what it saw, raises BrokenRuleError where the rule does not hold, and UnseenError where it does not apply.
"""

from collections.abc import Callable
from typing import Final

from device_agent.events import BoardFault, BoardFaultEnded, BoardResult, DoorChanged, VendEnded
from device_agent.hal.ports import BoardError
from simulator.board_driven import PATIENCE_S, SLOT, Driven, expect
from simulator.boards.line import LineFault
from simulator.boards.virtual_board import Fault
from simulator.real_time import monotonic

NOWHERE: Final = 9_999
NOISY_VENDS: Final = 6
NOISE_SHARE: Final = 0.1
IN_DOUBT: Final = {BoardResult.UNKNOWN, BoardResult.NOT_RUN}


# ---------------------------------------------------------------- vends


def identity(it: Driven) -> str:
    """The identity is a Board, and always the same."""
    it.open()
    board = it.identity()
    expect(board == it.identity(), "a second identity() differs")
    claims = [name for name, claimed in (("once", board.runs_sequence_once), ("life", board.counts_life)) if claimed]
    return f"{board.model}, claims: {', '.join(claims) or 'nothing'}"


def vend_ends(it: Driven) -> str:
    """Every vend ends in exactly one VendEnded with its id; a pack has fallen."""
    it.rig.load(SLOT, 5)
    it.open()
    results = [it.vend(sequence) for sequence in (11, 12, 13)]
    it.settle()
    expect(results == [BoardResult.DROPPED] * 3, f"results {results}")
    expect(len(it.of(VendEnded)) == 3, f"{len(it.of(VendEnded))} VendEnded of 3 vends")  # noqa: PLR2004 - of three
    expect((it.rig.turns(), it.rig.packs()) == (3, 2), f"{it.rig.turns()} turns, {it.rig.packs()} of 5 packs left")
    return "3 vends, 3 turns, 3 packs"


def results(it: Driven) -> str:
    """What goes wrong is told as what it is."""
    it.open()
    expected = {
        Fault.DID_NOT_FALL: {BoardResult.NO_DROP},
        Fault.FELL_UNSEEN: {BoardResult.NO_DROP},
        Fault.OVER_CURRENT: {BoardResult.OVER_CURRENT, BoardResult.JAM},
        Fault.JAM: {BoardResult.JAM, BoardResult.OVER_CURRENT},
        Fault.ABSENT: {BoardResult.MOTOR_ABSENT},
    }
    for slot, (fault, allowed) in enumerate(expected.items(), 1):
        it.rig.load(slot, 3)
        it.rig.plant(slot, fault)
        found = it.vend(20 + slot, slot)
        expect(found in allowed, f"{fault} was told as {found}")
    return ", ".join(expected)


def unknown_slot(it: Driven) -> str:
    """A slot that no board has ends the vend, or is a BoardError; no motor turns a pack out."""
    it.rig.load(SLOT, 2)
    it.open()
    try:
        found = str(it.vend(31, NOWHERE))
    except BoardError:
        found = "BoardError"
    expect(it.rig.packs() == 2, "a pack fell")  # noqa: PLR2004 - those loaded
    expect(found != BoardResult.DROPPED, "told as dropped")
    return found


def runs_once(it: Driven) -> str:
    """The same sequence id again, while it runs and after, turns nothing and has the same result."""
    it.rig.load(SLOT, 5)
    it.open()
    it.needs(once=True)
    it.start(41)
    it.start(41)
    it.until(lambda: it.ended(41), "VendEnded")
    it.settle()
    again = it.vend(41)
    expect(again is it.ended(41)[0].result, f"first {it.ended(41)[0].result}, then {again}")
    it.open()
    again = it.vend(41)
    expect(again is BoardResult.DROPPED, f"{again} after opening again")
    expect(it.rig.turns() == 1, f"{it.rig.turns()} turns")
    return "asked four times, also after opening again: 1 turn"


def stored_result(it: Driven) -> str:
    """What is stored is what was told, and None for an id that never ran."""
    it.rig.load(SLOT, 5)
    it.open()
    it.needs(once=True)
    expect(it.call("stored_result", 51) is None, "a result before anything ran")
    it.vend(51)
    it.rig.plant(SLOT, Fault.DID_NOT_FALL)
    told = it.vend(52)
    stored = it.call("stored_result", 52)
    expect(stored is told, f"told {told}, stored {stored}")
    expect(it.call("stored_result", 53) is None, "a result of an id that never ran")
    expect(it.call("last_sequence") == 52, f"last_sequence() is {it.call('last_sequence')}")  # noqa: PLR2004 - the last
    return f"{stored} stored, None for what never ran"


def _power_cut(it: Driven, *, board_too: bool) -> str:
    it.rig.load(SLOT, 5)
    it.open()
    once = it.identity().runs_sequence_once
    it.vend(61)
    it.start(62)
    it.until(lambda: it.rig.turns() == 2, "the motor turns")  # noqa: PLR2004 - the second vend
    it.close()
    if board_too:
        it.rig.power(on=False)
        it.rig.power(on=True)
    it.open()
    stored = it.call("stored_result", 62)
    allowed = {BoardResult.DROPPED, BoardResult.UNKNOWN} | (set() if once else {None})
    expect(stored in allowed, f"the motor turned and a pack fell; stored_result() says {stored}")
    if once:
        expect(it.call("stored_result", 63) is None, "a result of an id that never ran")
        expect(it.call("last_sequence") == 62, f"last_sequence() is {it.call('last_sequence')}")  # noqa: PLR2004 - cut
        it.vend(62)
        expect(it.rig.turns() == 2, "the same id turned the motor again")  # noqa: PLR2004 - two ids
    expect(it.vend(63) is BoardResult.DROPPED, "the next vend fails")
    return f"stored: {stored}"


def power_cut_of_the_kiosk(it: Driven) -> str:
    """A vend that a power cut interrupts has its true result afterwards, or UNKNOWN; never "did not run"."""
    return _power_cut(it, board_too=False)


def power_cut_of_both(it: Driven) -> str:
    """The same where the board loses its power too."""
    return _power_cut(it, board_too=True)


def life_grows(it: Driven) -> str:
    """life_count() grows by one for every turn, for none that is repeated, and outlives power cuts."""
    it.rig.load(SLOT, 5)
    it.open()
    it.needs(life=True)
    before = it.call("life_count")
    told = []
    for sequence in (71, 72):
        it.vend(sequence)
        told.append(it.ended(sequence)[0].life_count)
    it.vend(72)
    it.open()
    after = it.call("life_count")
    expect(told == [before + 1, before + 2], f"{before}, then {told} in VendEnded")
    expect(after == before + 2, f"{after} after opening again")
    return f"{before} to {after} in 2 vends"


# ---------------------------------------------------------------- the cabinet


def door(it: Driven) -> str:
    """DoorChanged follows the door, once each way; door_is_open() agrees."""
    it.rig.door(is_open=True)
    it.open()
    expect(it.call("door_is_open"), "opened with the door open: door_is_open() is False")
    for is_open in (False, True):
        it.rig.door(is_open=is_open)
        it.until(lambda opens=is_open: [e.open for e in it.of(DoorChanged)][-1:] == [opens], "DoorChanged")  # type: ignore[misc]
        expect(it.call("door_is_open") == is_open, f"door_is_open() is not {is_open}")
    it.settle()
    expect(len(it.of(DoorChanged)) == 2, f"{len(it.of(DoorChanged))} DoorChanged for 2 changes")  # noqa: PLR2004 - two
    return "2 changes told once"


def jam_cleared(it: Driven) -> str:
    """clear_jam() makes a jammed slot work again, and is False for a missing motor."""
    it.rig.load(SLOT, 3)
    it.open()
    it.rig.plant(SLOT, Fault.JAM)
    it.vend(81)
    expect(it.call("clear_jam", SLOT) is True, "clear_jam() of a jam is not True")
    expect(it.vend(82) is BoardResult.DROPPED, "no vend after it")
    it.rig.plant(SLOT, Fault.ABSENT)
    it.vend(83)
    expect(it.call("clear_jam", SLOT) is False, "clear_jam() of a missing motor is not False")
    return "cleared; a missing motor is not"


def self_test(it: Driven) -> str:
    """A good board tests well; a dead one does not, or is a BoardError."""
    it.open()
    well, words = it.call("self_test")
    expect(well is True, f"a good board: {words}")
    it.rig.power(on=False)
    try:
        well_too, _ = it.call("self_test")
    except BoardError:
        well_too = False
    expect(not well_too, "a dead board is well")
    return str(words)


def closes_twice(it: Driven) -> str:
    """close() may be called again."""
    it.open()
    it.call("close")
    it.close()
    return "closed"


# ---------------------------------------------------------------- the wire


def no_board(it: Driven) -> str:
    """A port that is not there, or a board that is silent, is a BoardError at opening or a VMC_OFFLINE soon after."""
    seen = []
    it.rig.power(on=False)
    for changes in ({"port": "/nowhere/at/all"}, {}) if "port" in it.config else ({},):
        try:
            it.open(**changes)
        except BoardError as error:
            seen.append(str(error))
        else:
            it.events.clear()
            it.until(lambda: [f.code for f in it.of(BoardFault)] == ["VMC_OFFLINE"], "BoardError or VMC_OFFLINE")
            seen.append("VMC_OFFLINE")
    return "; ".join(seen)


def _noisy(it: Driven, *kinds: LineFault, share: float = NOISE_SHARE) -> str:
    it.rig.load(SLOT, 40)
    it.open()
    it.rig.spoil(share, *kinds)
    found = []
    for sequence in range(91, 91 + NOISY_VENDS):
        turns, packs = it.rig.turns(), it.rig.packs()
        result = it.vend(sequence, seconds=2 * PATIENCE_S)
        turned, fell = it.rig.turns() - turns, packs - it.rig.packs()
        expect(turned <= 1, f"sequence {sequence} turned {turned} times")
        expect(result in IN_DOUBT | {BoardResult.DROPPED}, f"sequence {sequence} was told as {result}")
        expect(result is not BoardResult.DROPPED or fell == 1, f"told as dropped, {fell} packs fell")
        expect(result is not BoardResult.NOT_RUN or not turned, "told as not run, and the motor turned")
        found.append(result)
    it.rig.spoil(0.0)
    it.settle()
    expect(len(it.of(VendEnded)) == NOISY_VENDS, f"{len(it.of(VendEnded))} VendEnded of {NOISY_VENDS} vends")
    sure = found.count(BoardResult.DROPPED)
    expect(sure > NOISY_VENDS // 2, f"only {sure} of {NOISY_VENDS} vends were sure")
    return f"{sure} of {NOISY_VENDS} vends sure, the others in doubt"


def survives_garbage(it: Driven) -> str:
    """Random bytes before every message change nothing."""
    return _noisy(it, LineFault.NOISE, share=0.9)


def survives_flipped_bits(it: Driven) -> str:
    """A wrong checksum is no message."""
    return _noisy(it, LineFault.FLIP_BIT)


def survives_lost_bytes(it: Driven) -> str:
    """What is lost is sent again, and not run again."""
    return _noisy(it, LineFault.LOSE, LineFault.DROP_BYTE)


def survives_duplicates(it: Driven) -> str:
    """What comes twice counts once."""
    return _noisy(it, LineFault.DUPLICATE, share=0.5)


def survives_delays(it: Driven) -> str:
    """What comes late is no answer to what was asked since."""
    return _noisy(it, LineFault.DELAY, share=0.05)


def _lost_and_found(it: Driven, lose: Callable[[], None], find: Callable[[], None]) -> str:
    it.rig.load(SLOT, 5)
    it.open()
    it.vend(101)
    began_s = monotonic()
    lose()
    it.until(lambda: it.of(BoardFault), "VMC_OFFLINE")
    took_s = monotonic() - began_s
    try:
        it.vend(102)
    except BoardError:
        pass
    else:
        expect(it.ended(102)[0].result in IN_DOUBT, f"a vend without a board was told as {it.ended(102)[0].result}")
    find()
    it.until(lambda: it.of(BoardFaultEnded), "BoardFaultEnded")
    it.settle()
    told = [(type(event).__name__, event.code) for event in it.of(BoardFault, BoardFaultEnded)]
    expect(told == [("BoardFault", "VMC_OFFLINE"), ("BoardFaultEnded", "VMC_OFFLINE")], f"told {told}")
    expect(it.vend(103) is BoardResult.DROPPED, "no vend afterwards")
    return f"told after {took_s:.1f} s, ended when it was over"


def silence_is_told(it: Driven) -> str:
    """A board that falls silent is VMC_OFFLINE, once, and its return ends it."""
    return _lost_and_found(it, lambda: it.rig.power(on=False), lambda: it.rig.power(on=True))


def pulled_adapter(it: Driven) -> str:
    """A port that vanishes is VMC_OFFLINE, and is opened again when it is back."""
    return _lost_and_found(it, lambda: it.rig.adapter(plugged=False), lambda: it.rig.adapter(plugged=True))


CHECKS: Final[dict[str, Callable[[Driven], str]]] = {
    "IDENTITY": identity,
    "VEND-ENDS": vend_ends,
    "RESULTS": results,
    "UNKNOWN-SLOT": unknown_slot,
    "RUNS-ONCE": runs_once,
    "STORED-RESULT": stored_result,
    "POWER-CUT-KIOSK": power_cut_of_the_kiosk,
    "POWER-CUT-BOTH": power_cut_of_both,
    "LIFE-GROWS": life_grows,
    "DOOR": door,
    "JAM-CLEARED": jam_cleared,
    "SELF-TEST": self_test,
    "CLOSES": closes_twice,
    "NO-BOARD": no_board,
    "GARBAGE": survives_garbage,
    "FLIPPED-BITS": survives_flipped_bits,
    "LOST-BYTES": survives_lost_bytes,
    "DUPLICATES": survives_duplicates,
    "DELAYS": survives_delays,
    "SILENCE-TOLD": silence_is_told,
    "PULLED-ADAPTER": pulled_adapter,
}
