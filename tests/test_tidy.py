"""House rules as an ordinary test: who may import whom, one door per library, no hidden clocks or dice, a tidy tree."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    "device_agent",
    "fleet_server",
    "protocol",
    "simulator",
    "tests",
    "pyproject.toml",
    "README.md",
    "docs",
    "deploy",
    ".ci",
    "Makefile",
    "uv.lock",
    "LICENSE",
    ".gitignore",
}
LINES_MAX = 450

# Who may import whom, of ours.
PACKAGES = {
    "protocol": {"protocol"},
    "device_agent": {"device_agent", "protocol"},
    "fleet_server": {"fleet_server", "protocol"},
    "simulator": {"simulator", "protocol", "device_agent"},
}
# Each feature sees only those before it.
FEATURES = ["devices", "faults", "ledger", "access", "demand", "workorders", "planning", "alerts", "reports"]
# What stands above the features: they never look up.
ABOVE_FEATURES = {"web", "ingest", "jobs", "recovery", "app", "auth", "__main__", "demo", "simulate"}
# Where each library may be imported, as glob patterns; everywhere else is pure.
DOORS = {
    "sqlalchemy": (
        "fleet_server/database.py",
        "fleet_server/bulk.py",
        "fleet_server/schema.py",
        "fleet_server/*/store.py",
        "fleet_server/*/*_store.py",
        "fleet_server/migrations/**",
    ),
    "psycopg": (
        "fleet_server/database.py",
        "fleet_server/bulk.py",
        "fleet_server/schema.py",
        "fleet_server/*/store.py",
        "fleet_server/*/*_store.py",
        "fleet_server/migrations/**",
    ),
    "alembic": ("fleet_server/schema.py", "fleet_server/migrations/**"),
    "fastapi": ("fleet_server/web/**", "fleet_server/app.py"),
    "starlette": ("fleet_server/web/**", "fleet_server/app.py"),
    "paho": ("device_agent/uplink.py", "simulator/mqtt.py"),
    "aiomqtt": ("simulator/mqtt.py",),
    "apscheduler": ("fleet_server/jobs/schedule.py",),
    "pyvrp": ("fleet_server/planning/route.py",),
}
# The clock is an argument and randomness a seeded object; only these meet the real world.
ENTRY_POINTS = (
    "*/__main__.py",
    "fleet_server/clock.py",
    "fleet_server/embedded.py",
    "fleet_server/child_process.py",  # The part of embedded.py that waits for child processes.
    "fleet_server/demo.py",
    "fleet_server/server_process.py",
    "device_agent/runtime.py",
    "simulator/real_time.py",
    "simulator/mqtt.py",
    "simulator/boards/file_board.py",
)
BANNED_CALLS = {
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "time.time",
    "time.sleep",
}
SEEDED_RANDOM = {"random.Random", "random.SystemRandom"}
# The brackets keep this file from breaking its own rule.
FOREIGN_TEXT = re.compile(
    r"/wor[k]/(?:main|shared|\.library|\.mirror)|pythonhoste[d]\.org|pyp[i]\.org|npmj[s]\.org|deb\.debia[n]\.org"
)
GENERATED = re.compile(
    r"(^|/)(vendor|static|migrations/versions|locales?|golden|data)/|\.(po|pot|lock|svg|json|geojson|csv)$|^LICENSE$"
)


def imports(tree: ast.AST, path: str) -> Iterator[str]:
    """Every dotted name that is imported, those inside functions included."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _is_one_of(path: str, patterns: tuple[str, ...]) -> bool:
    return any(_pattern(pattern).fullmatch(path) for pattern in patterns)


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    """`*` stays inside one folder, `**` does not."""
    return re.compile(re.escape(glob).replace(r"\*\*", ".+").replace(r"\*", "[^/]+"))


def layer_violations(path: str, source: str) -> list[str]:
    package = path.split("/", maxsplit=1)[0]
    allowed = PACKAGES.get(package)
    if allowed is None:
        return []
    used = (name.split(".")[0] for name in imports(ast.parse(source), path))
    return [f"{path}: {package} imports {top}" for top in used if top in {*PACKAGES, "tests"} - allowed]


def feature_violations(path: str, source: str) -> list[str]:
    parts = path.split("/")
    feature = parts[1] if parts[0] == "fleet_server" and len(parts) > 2 else ""
    if feature in FEATURES:
        forbidden = ABOVE_FEATURES | set(FEATURES[FEATURES.index(feature) + 1 :])
    elif feature == "auth":
        forbidden = (ABOVE_FEATURES | set(FEATURES)) - {"auth", "devices"}
    else:
        return []
    used = {
        name.split(".")[1]
        for name in imports(ast.parse(source), path)
        if name.startswith("fleet_server.") and name.count(".")
    }
    return [f"{path}: {feature} imports {other}" for other in sorted(used & forbidden)]


def audit_violations(path: str, source: str) -> list[str]:
    """The audit counts by rules of its own: a mistake of the code that posts must not be made by it as well."""
    if not re.fullmatch(r"fleet_server/ledger/audit\w*\.py", path):
        return []
    allowed = re.compile(r"fleet_server\.database\.\w+|fleet_server\.ledger(\.audit\w*)+(\.\w+)?")
    used = (name for name in imports(ast.parse(source), path) if name.split(".")[0] in PACKAGES)
    return [f"{path}: imports {name}" for name in used if not allowed.fullmatch(name)]


def door_violations(path: str, source: str) -> list[str]:
    tops = {name.split(".")[0] for name in imports(ast.parse(source), path)}
    return [f"{path}: imports {top}" for top in sorted(tops & DOORS.keys()) if not _is_one_of(path, DOORS[top])]


def call_violations(path: str, source: str) -> list[str]:
    """Uses, not only calls: `clock = time.time` hides a clock as well."""
    if _is_one_of(path, ENTRY_POINTS):
        return []
    tree = ast.parse(source)
    return [f"{path}:{line}: {name}" for name, line in _dotted_uses(tree) if _is_banned(name)]


def _is_banned(name: str) -> bool:
    return name in BANNED_CALLS or (name.startswith("random.") and name.count(".") == 1 and name not in SEEDED_RANDOM)


def _dotted_uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Attribute chains and imported names, with local names resolved to what they were imported as."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, *rest = ast.unparse(node).split(".")
            if head in known:
                yield ".".join([known[head], *rest]), node.lineno


def text_violations(path: str, text: str) -> list[str]:
    if path == "uv.lock":  # The one place where the public default registry stands, because uv writes it there.
        return []
    return [f"{path}: names {found.group()}" for found in FOREIGN_TEXT.finditer(text)]


def length_violations(path: str, text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{path}: {lines} lines"] if lines >= LINES_MAX and not GENERATED.search(path) else []


def top_level_violations(paths: list[str]) -> list[str]:
    return sorted({path.split("/")[0] for path in paths} - TOP_LEVEL)


@cache
def _paths() -> list[str]:
    """What is, or is about to be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file())


def _texts(*, suffix: str = "") -> Iterator[tuple[str, str]]:
    for path in _paths():
        content = (ROOT / path).read_bytes()
        if path.endswith(suffix) and b"\0" not in content:
            yield path, content.decode(errors="replace")


def _product() -> Iterator[tuple[str, str]]:
    return ((path, text) for path, text in _texts(suffix=".py") if path.split("/")[0] in PACKAGES)


def test_packages_and_features_import_only_what_stands_below_them() -> None:
    assert [bad for path, text in _product() for bad in layer_violations(path, text)] == []
    assert [bad for path, text in _product() for bad in feature_violations(path, text)] == []


def test_the_audit_uses_nothing_of_what_it_checks() -> None:
    audits = [path for path, _ in _product() if path.startswith("fleet_server/ledger/audit")]
    assert len(audits) > 2
    assert [bad for path, text in _product() for bad in audit_violations(path, text)] == []


def test_every_library_has_one_door() -> None:
    assert [bad for path, text in _product() for bad in door_violations(path, text)] == []


def test_only_entry_points_read_clocks_sleep_or_throw_dice() -> None:
    assert [bad for path, text in _product() for bad in call_violations(path, text)] == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    assert [bad for path, text in _texts() for bad in text_violations(path, text)] == []


def test_files_are_rooms_not_halls() -> None:
    assert [bad for path, text in _texts() for bad in length_violations(path, text)] == []


def test_the_top_level_holds_what_belongs_there() -> None:
    assert top_level_violations(_paths()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/a.py", "import device_agent"),
        ("device_agent/a.py", "from fleet_server.devices import store"),
        ("fleet_server/a.py", "def f():\n    import simulator.world"),
        ("simulator/a.py", "from fleet_server import settings"),
        ("simulator/a.py", "from tests.conftest import broker"),
    ],
)
def test_a_planted_breach_of_the_layers_is_found(path: str, source: str) -> None:
    assert len(layer_violations(path, source)) == 1
    assert layer_violations("simulator/a.py", "import protocol, device_agent.agent, simulator.world, json") == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fleet_server/devices/a.py", "from fleet_server.ledger import store"),
        ("fleet_server/ledger/a.py", "from fleet_server import web"),
        ("fleet_server/ledger/deep/a.py", "from ...reports import pages"),
        ("fleet_server/planning/a.py", "import fleet_server.app"),
        ("fleet_server/auth/a.py", "from fleet_server.ledger.store import x"),
    ],
)
def test_a_planted_look_up_the_features_is_found(path: str, source: str) -> None:
    assert len(feature_violations(path, source)) == 1
    below = "from fleet_server.devices import store\nfrom fleet_server.database import x"
    assert [feature_violations(f"fleet_server/{name}/a.py", below) for name in ("reports", "auth", "web")] == [[]] * 3


@pytest.mark.parametrize(
    "source",
    [
        "from fleet_server.ledger.fold import SlotBook",
        "from fleet_server.ledger import booking",
        "from fleet_server.ledger import store",
        "import fleet_server.ledger.entries",
        "def f():\n    from protocol.codec import next_digest",
        "from fleet_server.devices.store import lines_between",
    ],
)
def test_a_planted_loan_of_the_audit_is_found(source: str) -> None:
    assert len(audit_violations("fleet_server/ledger/audit_more.py", source)) == 1
    own = "import json\nfrom fleet_server.database import Connection\nfrom fleet_server.ledger import audit_store"
    assert audit_violations("fleet_server/ledger/audit.py", own) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fleet_server/ledger/posting.py", "from sqlalchemy import select"),
        ("fleet_server/web/pages.py", "import psycopg"),
        ("fleet_server/ledger/deep/store.py", "import sqlalchemy"),
        ("fleet_server/errors.py", "import fastapi"),
        ("fleet_server/auth/a.py", "from starlette.requests import Request"),
        ("device_agent/agent.py", "import paho.mqtt.client"),
        ("simulator/real_time.py", "import aiomqtt"),
        ("fleet_server/database.py", "from alembic import command"),
        ("fleet_server/jobs/table.py", "from apscheduler.schedulers import base"),
        ("fleet_server/planning/plan.py", "import pyvrp"),
    ],
)
def test_a_planted_back_door_is_found(path: str, source: str) -> None:
    assert len(door_violations(path, source)) == 1
    assert door_violations("fleet_server/ledger/store.py", "import sqlalchemy.orm\nimport psycopg") == []


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import datetime, UTC\nat = datetime.now(UTC)",
        "import datetime as dt\nat = dt.datetime.utcnow()",
        "from datetime import date\ntoday = date.today",
        "import time\nclock = time.time",
        "from time import sleep",
        "import random\nx = random.random()",
        "from random import choice",
    ],
)
def test_a_planted_clock_or_die_is_found(source: str) -> None:
    assert len(call_violations("fleet_server/ledger/a.py", source)) == 1
    assert call_violations("fleet_server/__main__.py", source) == []
    assert (
        call_violations("protocol/a.py", "import random, time\nr = random.Random(1).random()\ntime.monotonic()") == []
    )


def test_planted_untidiness_is_found() -> None:
    assert len(text_violations("docs/a.md", "see /wo" + "rk/main/x and https://pypi" + ".org/simple")) == 2
    assert len(length_violations("protocol/a.py", "\n" * LINES_MAX)) == 1
    assert length_violations("fleet_server/locales/zh/messages.po", "\n" * LINES_MAX) == []
    assert top_level_violations(["notes.txt", "protocol/a.py"]) == ["notes.txt"]
