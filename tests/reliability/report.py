"""A pytest plugin that writes docs/reliability.md from a run: `make reliability`.

It runs what is named after a row of the matrix, wherever in tests/ it stands, and nothing else. Results of tests that
were not run this time stay as the file has them, so that the short and the long form can be run apart.
"""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.reliability.matrix import PROMISES, ROWS, UNTESTED, row_of

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
HEAD: Final = "| row | test | result | seconds | commit | day |\n|---|---|---|---:|---|---|\n"
_results: dict[str, tuple[str, float]] = {}
_names: dict[str, str] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if row_of(item.name)]
    config.hook.pytest_deselected(items=[item for item in items if not row_of(item.name)])
    items[:] = kept
    _names.update({item.nodeid: item.name for item in items})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.rpartition("::")[2]
    outcome, seconds = _results.get(name, ("passed", 0.0))
    if report.failed:
        outcome = "**failed**"
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        outcome = "skipped: " + str(reason).removeprefix("Skipped: ").replace("|", "/")
    detail = ", ".join(str(value) for key, value in report.user_properties if key == "measured")
    if report.when == "call" and detail and outcome == "passed":
        outcome = f"passed ({detail})"
    _results[name] = outcome, seconds + report.duration


def pytest_sessionfinish() -> None:
    if _results:
        DOCUMENT.write_text(document(_results, DOCUMENT.read_text() if DOCUMENT.exists() else ""))


def document(results: dict[str, tuple[str, float]], former: str) -> str:
    """Compose the document: prose, the matrix, and the last result of each test."""
    lines = {name: line for line in former.splitlines() if (name := _test_of(line))}
    commit, day = _commit(), datetime.now(UTC).date().isoformat()
    for name, (outcome, seconds) in results.items():
        lines[name] = f"| {row_of(name)} | `{name}` | {outcome} | {seconds:.0f} | {commit} | {day} |"
    order = {row.id: place for place, row in enumerate(ROWS)}
    table = sorted(lines.items(), key=lambda item: (order[row_of(item[0]) or ""], "long" in item[0], item[0]))
    promises = "".join(f"- **{name}** {text}.\n" for name, text in PROMISES.items())
    matrix = "".join(f"| {row.id} | {row.inject} | {row.holds} |\n" for row in ROWS)
    untested = "".join(f"- {row}: {reason}\n" for row, reason in UNTESTED.items())
    return (
        PROSE.format(promises=promises, matrix=matrix)
        + (f"\nNot tested:\n\n{untested}" if untested else "")
        + "\n## Last results\n\n"
        + HEAD
        + "".join(f"{line}\n" for _, line in table)
    )


def _test_of(line: str) -> str | None:
    cells = line.split(" | ")
    name = cells[1].strip("`") if line.startswith("| ") and len(cells) > 4 else ""
    return name if row_of(name) else None


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


PROSE: Final = """\
# What it survives

Written by `make reliability`; the prose and the matrix stand in `tests/reliability/`.

Each scenario injects its fault for real: packets dropped, thinned and slowed by the kernel between network namespaces, kill -9 and SIGSTOP,
system calls that fail, disks that are full. It does so to the real agent process, a real broker (the embedded one, and Debian's Mosquitto
as it comes, which keeps nothing and drops what is too much) and a real PostgreSQL. Afterwards these are checked
(`tests/reliability/invariants.py`), against what the machines themselves hold: facts byte by byte between a machine's own outbox and the
server's table, stock lot by lot between the coils of its board and the ledger.

{promises}
`make test` runs every scenario in a short form; `make soak` the long one (42 machines, 200 visitors each, 5 seeds, the full times and
numbers of the matrix). Everything random follows a seed, which stands in the test's name and in every failure:
`RELIABILITY_SEED=3 make test PYTEST_ARGS="-k n4"` plays it again. What needs root or a feature of the kernel skips where it
is missing, and says so. `make reliability` writes the results below (`PYTEST_ARGS='-m "soak or not soak"'` for both forms).

The short form also shortens the machines' own times (`ack_timeout_s`, `silence_s_max`, `broker.keepalive_s`,
`broker.reconnect_s_max`); the times that ship run in N6, in N8's long form, and in the rows about one machine.

## The matrix

| row | inject | must hold |
|---|---|---|
{matrix}"""
