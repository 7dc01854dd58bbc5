"""`python -m simulator run` plays days in virtual time over a real broker; `live` goes on with the wall clock."""

import argparse
import json
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from simulator import fleet as fl
from simulator.access import availability, lost_hours
from simulator.auditor import Auditor, Findings
from simulator.conformance import command as conformance
from simulator.connecting import CANNOT_BEGIN, Connection, add_arguments, connected
from simulator.progress import shown
from simulator.scenarios import command as scenarios
from simulator.server_api import ServerError
from simulator.world import DAY_MS, World, sites

console = Console(stderr=True)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    add_arguments(shared)
    shared.add_argument(
        "--data-dir", type=Path, help="where the machines keep their own state; without it, in memory for this run"
    )
    shared.add_argument("--seed", type=int, default=1)
    shared.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    run = commands.add_parser("run", parents=[shared], help="play days of history in virtual time")
    run.add_argument("--days", type=float, required=True)
    run.add_argument("--start", help="ISO time at which a new history begins; default: so that it ends now")
    live = commands.add_parser("live", parents=[shared], help="go on with the wall clock until interrupted")
    live.add_argument("--speed", type=float, default=1.0)
    conformance.add_parser(commands)
    scenarios.add_parsers(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 for what cannot be started, 1 for a run whose books do not agree."""
    options = parser().parse_args(arguments)
    if options.command == "conformance":
        return conformance.main(options)
    if options.command in scenarios.COMMANDS:
        return scenarios.main(options)
    try:
        with connected(options) as connection:
            return _run(options, connection) if options.command == "run" else _live(options, connection)
    except (ServerError, *CANNOT_BEGIN) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2


def _start_ms(options: argparse.Namespace) -> int:
    if getattr(options, "start", None):
        return int(datetime.fromisoformat(options.start).timestamp() * 1000)
    days = getattr(options, "days", 0)
    return int(time.time() * 1000 - days * DAY_MS)


def _fleet(options: argparse.Namespace, connection: Connection, start_ms: int) -> fl.Fleet:
    return fl.Fleet(World(options.seed), sites(), connection.bridge, connection.people, start_ms, options.data_dir)


def _run(options: argparse.Namespace, connection: Connection) -> int:
    began_s = time.monotonic()
    fleet = _fleet(options, connection, _start_ms(options))
    ends_ms = int(fleet.now_ms + options.days * DAY_MS)
    with shown(console, "history", fleet.now_ms, ends_ms) as report:
        fleet.play(ends_ms, options.patience, report)
        fleet.finish(options.patience)
    findings = Auditor(connection.people.administrator).compare(fleet.machines)
    fleet.close()
    summary = _summary(fleet, findings, time.monotonic() - began_s, options.days)
    _print(summary, findings, fleet, as_json=options.json)
    return 1 if findings.residuals else 0


def _summary(fleet: fl.Fleet, findings: Findings, seconds: float, days: float) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for machine in fleet.machines.values():
        outcomes.update(machine.truth.tally.outcomes)
    return {
        "seed": fleet.world.seed,
        "days": days,
        "dispensers": len(fleet.machines),
        "facts": sum(machine.facts() for machine in fleet.machines.values()),
        "digest": fleet.digest(),
        "requests": sum(machine.truth.tally.requests for machine in fleet.machines.values()),
        "dispenses": outcomes["vend:delivered"],
        "outcomes": dict(sorted(outcomes.items())),
        "restocks": fleet.work.visits,
        "packs_loaded": fleet.work.packs_loaded,
        "events": sum(machine.truth.tally.events for machine in fleet.machines.values()),
        "seconds": round(seconds, 1),
        "slots": findings.slots,
        "physical_packs": findings.physical,
        "ledger_packs": findings.ledger,
        "unobservable": dict(sorted(findings.itemised.items())),
        "residual": len(findings.residuals),
        "availability": round(availability([machine.truth.access for machine in fleet.machines.values()]), 4),
        "lost_access_hours": {
            cause: round(hours, 1)
            for cause, hours in lost_hours([machine.truth.access for machine in fleet.machines.values()]).items()
        },
        "problems": len(fleet.work.problems),
    }


def _print(summary: dict[str, Any], findings: Findings, fleet: fl.Fleet, *, as_json: bool) -> None:
    for residual in findings.residuals[:20]:
        print(f"residual: {residual}", file=sys.stderr)
    for problem in fleet.work.problems[:20]:
        print(f"problem: {problem}", file=sys.stderr)
    if findings.residuals:
        print(f"replay with --seed {fleet.world.seed}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary))
        return
    for name, value in summary.items():
        print(f"{name:>16}  {value}")


def _live(options: argparse.Namespace, connection: Connection) -> int:
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: stopping.append(received))
    clock = connection.people.administrator.get("/clock")
    now_ms = int(datetime.fromisoformat(clock["now"]).astimezone(UTC).timestamp() * 1000)
    fleet = _fleet(options, connection, now_ms)
    fleet.live(options.speed, lambda: bool(stopping))
    fleet.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
