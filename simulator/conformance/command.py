"""`python -m simulator conformance`: the scenes in their order, and the checklist at the end."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from protocol.topics import Channel, TopicError, topic
from simulator.conformance import order_scenes, power_scenes, sending_scenes, stock_scenes
from simulator.conformance.checklist import SLOW, Checklist
from simulator.conformance.commands import CommandError, Means
from simulator.conformance.counterpart import Counterpart
from simulator.mqtt import BridgeError, Listener

BROKER_S_MAX = 10.0
SIGHT_S_MAX = 90.0
"""How long a dispenser may take to come online: some wait for a minute between two attempts."""


class SilentError(RuntimeError):
    """Nothing was heard of the dispenser."""


class ArgumentError(ValueError):
    """An argument that cannot be used; its text is for the caller."""


def add_parser(commands: Any) -> None:
    """Describe the subcommand."""
    it = commands.add_parser("conformance", help="play the server, and test an implementation of docs/protocol.md")
    it.add_argument("--broker", required=True, help="mqtt://USER:PASSWORD@HOST:PORT; better: SIMULATOR_BROKER_URL")
    it.add_argument("--dispenser", required=True, metavar="ID", help="the one under test; its store is used up by it")
    it.add_argument("--ask-command", metavar="CMD", help="asks for a pack at slot {slot}, as a visitor does")
    it.add_argument("--door-command", metavar="CMD", help="makes the door {position}: open or closed")
    it.add_argument("--restart-command", metavar="CMD", help="cuts the power (kill -9) and gives it back")
    it.add_argument("--patience", type=float, default=80.0, metavar="SECONDS", help="longest wait for one timeout")
    it.add_argument("--quick", action="store_true", help=f"leave out what waits for timeouts: {', '.join(SLOW)}")
    it.add_argument("--json", action="store_true", help="print one line of JSON")
    it.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, too")


def main(options: argparse.Namespace) -> int:
    """Run; 1 where a rule was broken, 2 where nothing could be tested."""
    broker = os.environ.get("SIMULATOR_BROKER_URL", options.broker)
    try:
        checklist = examine(broker, options.dispenser, _means(options))
        sys.stdout.write((json.dumps(checklist.as_json()) if options.json else checklist.as_table()) + "\n")
        if options.junit:
            options.junit.write_bytes(checklist.as_junit(f"conformance of {options.dispenser}"))
    except (ArgumentError, BridgeError, TopicError, SilentError, CommandError, OSError) as error:
        sys.stderr.write(f"simulator: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("simulator: interrupted\n")
        return 2
    return 0 if checklist.good else 1


def _means(options: argparse.Namespace) -> Means:
    """Read what the caller lets us do; raises ArgumentError before anything is begun."""
    if not 0 < options.patience < float("inf"):
        raise ArgumentError(f"--patience = {options.patience}: expected seconds above 0")
    if options.ask_command and "{slot}" not in options.ask_command:
        raise ArgumentError(f"--ask-command = {options.ask_command!r}: expected {{slot}} in it")
    if options.door_command and "{position}" not in options.door_command:
        raise ArgumentError(f"--door-command = {options.door_command!r}: expected {{position}} in it")
    if options.junit and not options.junit.parent.is_dir():
        raise ArgumentError(f"--junit {options.junit}: expected a file in a directory that is there")
    return Means(
        ask=options.ask_command,
        restart=options.restart_command,
        door=options.door_command,
        patience_s=options.patience,
        quick=options.quick,
    )


def examine(broker: str, dispenser_id: str, means: Means) -> Checklist:
    """Test one dispenser; raises BridgeError, TopicError, SilentError and CommandError."""
    topic(dispenser_id, Channel.FACTS)
    checklist = Checklist()
    listener = Listener(broker, dispenser_id)
    counterpart = Counterpart(listener, dispenser_id, checklist)
    try:
        listener.start(BROKER_S_MAX)
        if not counterpart.until(lambda: counterpart.known, SIGHT_S_MAX):
            raise SilentError(f"--dispenser {dispenser_id}: no `online` on status within {SIGHT_S_MAX:.0f} s")
        _play(counterpart, means)
    finally:
        counterpart.forget_desired()
        listener.stop()
    return checklist


def _play(c: Counterpart, means: Means) -> None:
    sending_scenes.opening(c)
    c.greets = True
    order_scenes.orders(c)
    sending_scenes.answers(c)
    stock_scenes.desired(c)
    stock_scenes.books(c)
    order_scenes.vended_once(c)
    stock_scenes.lots(c, means)
    stock_scenes.doors(c, means)
    power_scenes.power_cut(c, means)
    sending_scenes.bulk(c)
    if means.quick:
        c.checklist.skip(SLOW)
    else:
        sending_scenes.silence(c, means.patience_s)
    power_scenes.greetings(c)
    sending_scenes.fork(c)
    for record in c.streams.values():
        record.conclude()
