"""`python -m simulator conformance`: the scenes in their order, and the checklist at the end."""

import argparse
import json
import os
import sys
from typing import Any

from protocol.topics import Channel, TopicError, topic
from simulator.conformance import order_scenes, power_scenes, sending_scenes, stock_scenes
from simulator.conformance.checklist import SLOW, Checklist
from simulator.conformance.commands import CommandError, Means
from simulator.conformance.counterpart import Counterpart
from simulator.mqtt import BridgeError, Listener

SIGHT_S_MAX = 90.0
"""How long a dispenser may take to come online: some wait for a minute between two attempts."""


class SilentError(RuntimeError):
    """Nothing was heard of the dispenser."""


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


def main(options: argparse.Namespace) -> int:
    """Run; 1 where a rule was broken, 2 where nothing could be tested."""
    means = Means(
        ask=options.ask_command,
        restart=options.restart_command,
        door=options.door_command,
        patience_s=options.patience,
        quick=options.quick,
    )
    try:
        checklist = examine(os.environ.get("SIMULATOR_BROKER_URL", options.broker), options.dispenser, means)
    except (BridgeError, TopicError, SilentError, CommandError) as error:
        sys.stderr.write(f"simulator: {error}\n")
        return 2
    sys.stdout.write((json.dumps(checklist.as_json()) if options.json else checklist.as_table()) + "\n")
    return 0 if checklist.good else 1


def examine(broker: str, dispenser_id: str, means: Means) -> Checklist:
    """Test one dispenser; raises BridgeError, TopicError, SilentError and CommandError."""
    topic(dispenser_id, Channel.FACTS)
    checklist = Checklist()
    listener = Listener(broker, dispenser_id)
    counterpart = Counterpart(listener, dispenser_id, checklist)
    try:
        listener.start()
        if not counterpart.until(lambda: counterpart.known, SIGHT_S_MAX):
            raise SilentError(f"--dispenser {dispenser_id}: no `online` on status within {SIGHT_S_MAX:.0f} s")
        _play(counterpart, means)
        counterpart.forget_desired()
    finally:
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
