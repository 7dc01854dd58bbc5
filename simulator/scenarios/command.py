"""`python -m simulator scenario|list|check|schema|parameters`: scenarios as checks."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from simulator.bridges import InProcessBridge, open_in_process
from simulator.connecting import CANNOT_BEGIN, ROLES, Connection, add_arguments, connected, passwords_of
from simulator.fleet import People
from simulator.mqtt import MqttBridge
from simulator.parameters import Parameters
from simulator.progress import shown
from simulator.scenarios import outcome as oc
from simulator.scenarios.form import Scenario
from simulator.scenarios.playing import Stage, play
from simulator.scenarios.reading import ScenarioError, load, shipped
from simulator.server_api import HttpTransport, ServerApi, ServerError, Transport

BAD_INPUT: Final = 2
COMMANDS: Final = ("scenario", "list", "check", "schema", "parameters")
NO_SERVER: Final = (
    "--server and --broker, or --in-process: expected one of them; `dispenser-fleet simulate` starts a server of its own, "
    "and --in-process simulator.stand_in:connect plays without one"
)


class InputError(ValueError):
    """What the command line asks for cannot be done."""


def add_parsers(commands: Any) -> None:
    """Describe the subcommands."""
    run = commands.add_parser("scenario", help="play scenarios in virtual time, and judge what they expect")
    run.add_argument("names", nargs="+", metavar="FILE|NAME", help="a YAML file, or a shipped scenario (see `list`)")
    run.add_argument("--seed", type=int, help="instead of the file's")
    run.add_argument("--seeds", type=int, default=1, metavar="N", help="play N seeds, from the first on")
    run.add_argument("--days", type=float, help="instead of the file's")
    run.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    run.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    run.add_argument("--replay-as", default="python -m simulator scenario", help=argparse.SUPPRESS)
    run.add_argument(
        "--served",
        metavar="MODULE:FACTORY",
        help="makes a new server over a broker for every run; takes --in-process-option",
    )
    add_arguments(run, password_required=False)
    commands.add_parser("list", help="list the shipped scenarios")
    check = commands.add_parser("check", help="validate scenario files, without playing them")
    check.add_argument("names", nargs="+", metavar="FILE|NAME")
    commands.add_parser("schema", help="print the JSON Schema of a scenario file, for editors")
    commands.add_parser("parameters", help="list the world's parameters, with their values and what they rest on")


def main(options: argparse.Namespace) -> int:
    """Run one command: 0 where everything holds, 1 where an expectation does not, 2 for bad input."""
    try:
        match options.command:
            case "scenario":
                return _play(options)
            case "list":
                _list()
            case "check":
                for name in options.names:
                    sys.stdout.write(f"{name}: good, {len(load(name).expect)} expectations\n")
            case "schema":
                sys.stdout.write(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")
            case _:
                _parameters()
    except (ScenarioError, InputError, ServerError, *CANNOT_BEGIN) as error:
        sys.stderr.write(f"simulator: {error}\n")
        return BAD_INPUT
    return 0


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the form."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Scenario.model_json_schema()}


def _list() -> None:
    table = Table("name", "days", "what it is about")
    for name in shipped():
        scenario = load(name)
        table.add_row(name, f"{scenario.days:g}", scenario.description.strip())
    Console().print(table)


def _parameters() -> None:
    for parameter in Parameters():
        words = f"  {parameter.words}" if parameter.words else ""
        sys.stdout.write(f"{parameter.name} = {parameter.value!r}{words}  [{parameter.basis}]\n")


# ---------------------------------------------------------------- playing


def _play(options: argparse.Namespace) -> int:
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: expected 1 or more")
    given = {name: value for name in ("seed", "days") if (value := getattr(options, name)) is not None}
    scenarios = [load(name, given) for name in options.names]
    runs = [
        (it, name, it.seed + n) for name, it in zip(options.names, scenarios, strict=True) for n in range(options.seeds)
    ]
    if len(runs) > 1 and not (options.in_process or options.served):
        raise InputError("--server: expected one scenario and one seed, for a server has one history")
    console = Console(stderr=options.json)
    outcomes = []
    for scenario, name, seed in runs:
        bar = shown(Console(stderr=True), scenario.name, scenario.start_ms, scenario.end_ms)
        with bar as report, stage(options, scenario) as here:
            outcome = play(scenario, seed, here, report)
        outcome.replay = _replay(options, name, seed)
        outcomes.append(outcome)
        if not options.json:
            oc.print_table(outcome, console)
        if not outcome.passed:
            sys.stderr.write(outcome.words() + "\n")
    if options.junit is not None:
        options.junit.write_text(oc.junit(outcomes), encoding="utf-8")
    if options.json:
        passed = all(outcome.passed for outcome in outcomes)
        sys.stdout.write(json.dumps({"passed": passed, "runs": [outcome.to_json() for outcome in outcomes]}) + "\n")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


@contextmanager
def stage(options: argparse.Namespace, scenario: Scenario) -> Iterator[Stage]:
    """Connect to the server that the options name; a factory makes a new one for every run."""
    factory = options.in_process or options.served
    if factory is None:
        if not options.server or options.password_file is None:
            raise InputError(NO_SERVER)
        with connected(options) as connection:
            yield Stage(connection, patience_s=options.patience)
        return
    pairs = (option.partition("=") for option in options.in_process_option)
    begins = datetime.fromtimestamp(scenario.start_ms / 1000, UTC).isoformat()
    history = {"begins": begins, "dispensers": ",".join(scenario.dispensers())}
    made: Any = open_in_process(factory, {**history, **{name: value for name, _, value in pairs}})
    try:
        if options.in_process:
            connection = Connection(InProcessBridge(made), _people(options, made.request))
            yield Stage(connection, getattr(made, "keeps_ledger", True), options.patience)
            return
        bridge = MqttBridge(made.broker_url)
        bridge.start()
        try:
            yield Stage(
                Connection(bridge, _people(options, HttpTransport(made.server_url))), patience_s=options.patience
            )
        finally:
            bridge.stop()
    finally:
        made.close()


def _people(options: argparse.Namespace, transport: Transport) -> People:
    passwords = dict.fromkeys(ROLES, "") if options.password_file is None else passwords_of(options.password_file)
    return People(*(ServerApi(transport, role, passwords[role], options.patience) for role in ROLES))


def _replay(options: argparse.Namespace, name: str, seed: int) -> str:
    """Return the command that plays this run again. Passwords are in files and environment variables, never in it."""
    words = [*shlex.split(options.replay_as), name, "--seed", str(seed)]
    if options.days is not None:
        words += ["--days", f"{options.days:g}"]
    if options.replay_as == "python -m simulator scenario":
        for flag, value in (("--in-process", options.in_process), ("--server", options.server)):
            words += [flag, value] if value else []
        words += ["--password-file", str(options.password_file)] if options.password_file else []
    return shlex.join(words)
