"""`python -m simulator run` plays days in virtual time over a real broker; `live` goes on with the wall clock."""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from simulator import fleet as fl
from simulator.auditor import Auditor, Findings
from simulator.conformance import command as conformance
from simulator.mqtt import Bridge, BridgeError
from simulator.server_api import ServerApi, ServerError
from simulator.world import DAY_MS, local

console = Console(stderr=True)
ROLES = ("administrator", "dispatcher", "restocker")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--broker", required=True, help="mqtt://USER:PASSWORD@HOST:PORT; better: user and password by environment"
    )
    shared.add_argument("--server", required=True, help="http://HOST:PORT of the fleet server")
    shared.add_argument(
        "--password-file", type=Path, required=True, help="JSON: passwords of administrator, dispatcher, restocker"
    )
    shared.add_argument("--data-dir", type=Path, required=True, help="where the machines keep their own state")
    shared.add_argument("--seed", type=int, default=1)
    shared.add_argument(
        "--patience", type=float, default=120.0, help="real seconds to wait for a server or broker that is away"
    )
    shared.add_argument("--json", action="store_true", help="print one line of JSON at the end")
    run = commands.add_parser("run", parents=[shared], help="play days of history in virtual time")
    run.add_argument("--days", type=float, required=True)
    run.add_argument("--start", help="ISO time at which a new history begins; default: so that it ends now")
    live = commands.add_parser("live", parents=[shared], help="go on with the wall clock until interrupted")
    live.add_argument("--speed", type=float, default=1.0)
    conformance.add_parser(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 2 for what cannot be started, 1 for a run whose books do not agree."""
    options = parser().parse_args(arguments)
    if options.command == "conformance":
        return conformance.main(options)
    try:
        passwords = _passwords(options.password_file)
        people = fl.People(*(ServerApi(options.server, role, passwords[role], options.patience) for role in ROLES))
        bridge = Bridge(os.environ.get("SIMULATOR_BROKER_URL", options.broker))
        bridge.start()
    except (BridgeError, OSError, KeyError, ValueError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    try:
        return _run(options, bridge, people) if options.command == "run" else _live(options, bridge, people)
    except ServerError as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    finally:
        bridge.stop()


def _passwords(path: Path) -> dict[str, str]:
    passwords: dict[str, str] = json.loads(path.read_text())
    missing = [role for role in ROLES if role not in passwords]
    if missing:
        raise ValueError(f"--password-file {path}: expected passwords of {', '.join(ROLES)}; {missing[0]} is missing")
    return passwords


def _start_ms(options: argparse.Namespace) -> int:
    if getattr(options, "start", None):
        return int(datetime.fromisoformat(options.start).timestamp() * 1000)
    days = getattr(options, "days", 0)
    return int(time.time() * 1000 - days * DAY_MS)


def _run(options: argparse.Namespace, bridge: Bridge, people: fl.People) -> int:
    began_s = time.monotonic()
    fleet = fl.Fleet(options.data_dir, options.seed, bridge, people, _start_ms(options))
    ends_ms = int(fleet.now_ms + options.days * DAY_MS)
    with _bar(fleet.now_ms, ends_ms) as report:
        fleet.play(ends_ms, options.patience, report)
        fleet.finish(options.patience)
    findings = Auditor(people.administrator).compare(fleet.machines)
    fleet.close()
    summary = _summary(fleet, findings, time.monotonic() - began_s, options.days)
    _print(summary, findings, fleet, as_json=options.json)
    return 1 if findings.residuals else 0


class _bar:  # noqa: N801 - a context manager, used like a function
    """A progress bar on a terminal; a line every tenth of the way elsewhere."""

    def __init__(self, began_ms: int, ends_ms: int) -> None:
        self._began_ms, self._ends_ms = began_ms, ends_ms
        self._tenth = 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]} facts"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("history", total=ends_ms - began_ms, facts=0)

    def __enter__(self) -> Any:
        self._progress.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _report(self, progress: fl.Progress) -> None:
        done = progress.now_ms - self._began_ms
        day = local(progress.now_ms).date()
        self._progress.update(self._task, completed=done, description=f"history {day}", facts=progress.facts)
        tenth = 10 * done // max(1, self._ends_ms - self._began_ms)
        if not console.is_terminal and tenth > self._tenth:
            self._tenth = tenth
            print(f"history: {tenth * 10} % ({day}), {progress.facts} facts", file=sys.stderr, flush=True)


def _summary(fleet: fl.Fleet, findings: Findings, seconds: float, days: float) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for machine in fleet.machines.values():
        outcomes.update(machine.tally.outcomes)
    return {
        "seed": fleet.seed,
        "days": days,
        "dispensers": len(fleet.machines),
        "facts": sum(machine.facts() for machine in fleet.machines.values()),
        "requests": sum(machine.tally.requests for machine in fleet.machines.values()),
        "dispenses": outcomes["vend:delivered"],
        "outcomes": dict(sorted(outcomes.items())),
        "restocks": fleet.work.visits,
        "packs_loaded": fleet.work.packs_loaded,
        "events": sum(machine.tally.events for machine in fleet.machines.values()),
        "seconds": round(seconds, 1),
        "slots": findings.slots,
        "physical_packs": findings.physical,
        "ledger_packs": findings.ledger,
        "unobservable": dict(sorted(findings.itemised.items())),
        "residual": sum(abs(r.physical - r.ledger - r.explained) for r in findings.residuals),
        "problems": len(fleet.work.problems),
    }


def _print(summary: dict[str, Any], findings: Findings, fleet: fl.Fleet, *, as_json: bool) -> None:
    for residual in findings.residuals[:20]:
        print(f"residual: {residual}", file=sys.stderr)
    for problem in fleet.work.problems[:20]:
        print(f"problem: {problem}", file=sys.stderr)
    if findings.residuals:
        print(f"replay with --seed {fleet.seed}", file=sys.stderr)
    if as_json:
        print(json.dumps(summary))
        return
    for name, value in summary.items():
        print(f"{name:>16}  {value}")


def _live(options: argparse.Namespace, bridge: Bridge, people: fl.People) -> int:
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: stopping.append(received))
    clock = people.administrator.get("/clock")
    now_ms = int(datetime.fromisoformat(clock["now"]).astimezone(UTC).timestamp() * 1000)
    fleet = fl.Fleet(options.data_dir, options.seed, bridge, people, now_ms)
    fleet.live(options.speed, lambda: bool(stopping))
    fleet.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
