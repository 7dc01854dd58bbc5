"""`python -m simulator.boards.wire fafb|hdb1 --state FILE --link PATH`: a simulated board on a pty, for foreign firmware to drive.

The board's state is in the file and outlives the process: killing it is a power cut of the board. What visitors, restockers and
bad luck do is read as lines from standard input; `help` lists them.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from simulator.boards.fafb_wire import FafbWire
from simulator.boards.hdb1_wire import hdb1_wire
from simulator.boards.line import LineFault, PtyLine, Wire
from simulator.boards.physical_board import CABINET, VEND_S, PhysicalBoard, board_of
from simulator.boards.virtual_board import Fault

WIRES: Final[dict[str, Callable[[PhysicalBoard], Wire]]] = {"fafb": FafbWire, "hdb1": hdb1_wire}
HELP: Final = f"""\
load SLOT LOT PACKS      put packs behind all others
take SLOT LOT            take all packs of a lot out
plant SLOT FAULT...      let the next turns go wrong: {", ".join(Fault)}
mend SLOT                put a missing motor back and clear a jam
press SLOT               choose at the keypad (fafb)
set NAME VALUE           {", ".join(CABINET)}
spoil FAULT...           spoil the next messages to the driver: {", ".join(LineFault)}
noise SHARE              spoil this share of all messages, both ways
silent on|off            the board has no power, the wire is there
unplug, plug             the adapter is pulled out and put back
state                    show what is physically there
wire                     show what was heard: good frames, repeats, answers that came late (fafb)
help, quit
"""


class WordsError(ValueError):
    """A line that nobody understands."""


def obey(line: PtyLine, board: PhysicalBoard, words: list[str]) -> str:
    """Do what one line of standard input says; returns what to answer. Raises WordsError."""
    try:
        with line.lock:
            return _obey(line, board, words)
    except (ValueError, IndexError, KeyError) as error:
        raise WordsError(f"{' '.join(words)}: {error}; try help") from None


def _obey(line: PtyLine, board: PhysicalBoard, words: list[str]) -> str:  # noqa: C901, PLR0912 - one arm a word
    match words:
        case ["load", slot, lot, packs]:
            board.load(int(slot), lot, int(packs))
        case ["take", slot, lot]:
            taken = board.take_out(int(slot), lot)
            board.keep()
            return f"{taken} packs"
        case ["plant", slot, *faults]:
            board.plant(int(slot), *map(Fault, faults))
        case ["mend", slot]:
            board.absent.discard(int(slot))
            board.clear_jam(int(slot))
        case ["press", slot] if isinstance(line.wire, FafbWire):
            line.wire.press(int(slot))
        case ["set", name, value]:
            kind = type(getattr(board, name)) if name in CABINET else str
            board.change(**{name: value in {"1", "on", "true", "yes"} if kind is bool else kind(value)})
        case ["spoil", *faults]:
            line.to_driver.plant(*map(LineFault, faults))
        case ["noise", share]:
            line.to_driver.share = line.to_board.share = float(share)
        case ["silent", "on" | "off" as value]:
            line.silent = value == "on"
        case ["unplug"]:
            line.unplug()
        case ["plug"]:
            line.plug_in()
        case ["state"]:
            return _state(board)
        case ["wire"]:
            return _wire(line.wire)
        case ["help"]:
            return HELP.rstrip()
        case _:
            raise WordsError("not understood")
    return "done"


def _state(board: PhysicalBoard) -> str:
    coils = ", ".join(f"{slot}: {len(coil)} packs" for slot, coil in sorted(board.coils.items())) or "no packs"
    cabinet = ", ".join(f"{name} {getattr(board, name)}" for name in CABINET)
    return f"{coils}; jammed {sorted(board.jammed)}; {board.turns} turns, life count {board.life_count}; {cabinet}"


def _wire(wire: Wire) -> str:
    if isinstance(wire, FafbWire):
        return f"{wire.heard} frames heard, {wire.repeats} repeated, {wire.late_answers} later than 100 ms"
    return f"{wire.heard} frames heard"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Serve until standard input says quit, or a signal ends the process; 2 where the arguments are wrong."""
    parser = argparse.ArgumentParser(prog="python -m simulator.boards.wire", description=__doc__)
    parser.add_argument("kind", choices=sorted(WIRES))
    parser.add_argument("--state", type=Path, help="file of the board's physical state, made if it is not there")
    parser.add_argument("--link", type=Path, help="path at which the port appears")
    parser.add_argument("--seed", default="board", help="seed of durations and of bad luck")
    parser.add_argument("--by-chance", action="store_true", help="jams and missed drops at the rates of faults.csv")
    parser.add_argument("--vend-s", type=float, nargs=2, default=VEND_S, metavar=("LOW", "HIGH"), help="time of a vend")
    options = parser.parse_args(arguments)
    low_s, high_s = options.vend_s
    if not 0 < low_s <= high_s:
        parser.error(f"--vend-s = {low_s} {high_s}: expected two numbers of seconds, the lower first")
    try:
        board = board_of(options.state, options.seed, by_chance=options.by_chance, vend_s=(low_s, high_s))
        line = PtyLine(WIRES[options.kind](board), options.link, options.seed)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"--state = {str(options.state)!r}, --link = {str(options.link)!r}: {error}\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with line:
        _say(f"{options.kind} at {line.path}")
        for text in sys.stdin:
            if text.split() == ["quit"]:
                return 0
            if words := text.split():
                try:
                    _say(obey(line, board, words))
                except WordsError as error:
                    _say(str(error))
        # Standard input has ended, as in the background: serve on until a signal comes.
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
