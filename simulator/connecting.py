"""How a simulation reaches its server: by broker and HTTP, or in this process. Shared by every command that plays."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simulator.bridges import Bridge, FactoryError, InProcessBridge, open_in_process
from simulator.fleet import People
from simulator.mqtt import BridgeError, MqttBridge
from simulator.server_api import HttpTransport, ServerApi, Transport

ROLES: Final = ("administrator", "dispatcher", "restocker")
CANNOT_BEGIN: Final = (BridgeError, FactoryError, OSError, KeyError, ValueError)
"""What `connected` raises where the options name nothing that can be used."""


@dataclass
class Connection:
    """The bridge of the machines, and the people's way to the API."""

    bridge: Bridge
    people: People


def add_arguments(parser: argparse.ArgumentParser, *, password_required: bool = True) -> None:
    """Add the options that say where the server is."""
    parser.add_argument(
        "--broker", help="mqtt://USER:PASSWORD@HOST:PORT; better: user and password by SIMULATOR_BROKER_URL"
    )
    parser.add_argument("--server", help="http://HOST:PORT of the fleet server")
    parser.add_argument(
        "--in-process", metavar="MODULE:FACTORY", help="instead of --broker and --server: a server in this process"
    )
    parser.add_argument(
        "--in-process-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="for the factory; may be repeated",
    )
    parser.add_argument(
        "--password-file", type=Path, required=password_required, help=f"JSON: passwords of {', '.join(ROLES)}"
    )
    parser.add_argument(
        "--patience", type=float, default=120.0, help="real seconds to wait for a server or broker that is away"
    )


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[Connection]:
    """Connect as the options say; raises one of CANNOT_BEGIN."""
    passwords = passwords_of(options.password_file)
    bridge, transport, close = _in_process(options) if options.in_process else _over_broker(options)
    people = (ServerApi(transport, role, passwords[role], options.patience) for role in ROLES)
    try:
        yield Connection(bridge, People(*people))
    finally:
        close()


def _in_process(options: argparse.Namespace) -> tuple[Bridge, Transport, Callable[[], None]]:
    pairs = (option.partition("=") for option in options.in_process_option)
    server = open_in_process(options.in_process, {name: value for name, _, value in pairs})
    return InProcessBridge(server), server.request, server.close


def _over_broker(options: argparse.Namespace) -> tuple[Bridge, Transport, Callable[[], None]]:
    broker = os.environ.get("SIMULATOR_BROKER_URL", options.broker)
    if not broker or not options.server:
        raise BridgeError("--broker and --server: expected both, or --in-process")
    bridge = MqttBridge(broker)
    bridge.start()
    return bridge, HttpTransport(options.server), bridge.stop


def passwords_of(path: Path) -> dict[str, str]:
    """Read who signs in with what."""
    passwords: dict[str, str] = json.loads(path.read_text())
    missing = [role for role in ROLES if role not in passwords]
    if missing:
        raise ValueError(f"--password-file {path}: expected passwords of {', '.join(ROLES)}; {missing[0]} is missing")
    return passwords
