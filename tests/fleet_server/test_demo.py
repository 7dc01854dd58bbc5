"""`make demo` as a newcomer meets it: it plays, survives what is killed under it, keeps its data, and stops when told."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port, scratch_directory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Demo:
    """One run of the command over a data directory."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.port = free_port()
        command = [
            sys.executable, "-m", "fleet_server", "demo", "--data-dir", str(data), "--port", str(self.port), *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def wait_for(self, words: str, seconds: float = 120) -> str:
        found = self.until(lambda: next((line for line in self.said if re.search(words, line)), ""), words, seconds)
        return str(found)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None or condition(), "\n".join(self.said)
            assert time.monotonic() < deadline, what + "\n" + "\n".join(self.said)
            time.sleep(0.05)
        return found

    def child(self, words: str) -> int:
        """The process id of a descendant whose command line has these words."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
        for pid in parents:
            above, ours = pid, False
            while above in parents and not ours:
                above = parents[above]
                ours = above == self.process.pid
            try:
                if ours and words in (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " "):
                    return pid
            except OSError:
                continue
        return 0

    def kill(self, words: str) -> int:
        """Kill -9 a descendant, once it is there."""
        pid: int = self.until(lambda: self.child(words), words)
        os.kill(pid, signal.SIGKILL)
        return pid

    def summary(self) -> dict[str, Any]:
        assert self.process.wait(200) == 0, "\n".join(self.said)
        self._reader.join(5)
        value: dict[str, Any] = json.loads(next(line for line in reversed(self.said) if line.startswith("{")))
        return value

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def data() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory / "data"


def test_a_history_with_kill_9_of_each_part_ends_with_clean_books_and_goes_on_live(data: Path) -> None:
    demo = Demo(data, "--days", "2", "--seed", "5", "--exit", "--json")
    demo.wait_for("playing")
    for part in ("fleet_server serve", "nats-server", "bin/postgres -D"):
        time.sleep(2)
        demo.kill(part)
        demo.wait_for({"f": "the server", "n": "the broker", "b": "the postgres"}[part[0]] + " has ended")
    summary = demo.summary()
    assert (summary["residual"], summary["audit_differences"]) == (0, 0), summary
    assert summary["dispensers"] == 42
    assert summary["dispenses"] > 0

    live = Demo(data, "--speed", "60")
    live.wait_for("ready after")
    page = urllib.request.urlopen(f"http://127.0.0.1:{live.port}/sign-in", timeout=10).read().decode()
    assert "登录" in page
    password = re.search(r"dispatcher\s+(\S+)", live.wait_for(r"dispatcher\s"))
    assert password
    request = urllib.request.Request(
        f"http://127.0.0.1:{live.port}/api/v1/sign-in",
        json.dumps({"user": "dispatcher", "password": password[1]}).encode(),
        {"content-type": "application/json"},
    )
    token = json.load(urllib.request.urlopen(request, timeout=10))["token"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{live.port}/api/v1/dispensers", headers={"authorization": f"Bearer {token}"}
    )
    items = json.load(urllib.request.urlopen(request, timeout=10))["items"]
    assert sum(item["stock"] for item in items) >= summary["ledger_packs"] - 100  # the history is still there
    assert live.stop() == 0
    for words in ("fleet_server serve", "simulator", "nats-server", "postgres"):
        assert live.child(words) == 0


def test_a_history_that_was_interrupted_is_begun_anew(data: Path) -> None:
    first = Demo(data, "--days", "30")
    first.wait_for("history: 10 %")
    assert first.stop() == 0
    again = Demo(data, "--days", "0.2", "--exit", "--json")
    summary = again.summary()
    assert any("beginning it anew" in line for line in again.said)
    assert (summary["residual"], summary["audit_differences"]) == (0, 0)


def test_a_port_that_is_taken_is_named(data: Path) -> None:
    import socket

    demo_port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", demo_port))
        taken.listen()
        command = [
            sys.executable, "-m", "fleet_server", "demo", "--exit", "--data-dir", str(data), "--port", str(demo_port),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"port = {demo_port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "field"), [(["--days", "-1"], "days"), (["--speed", "0"], "speed"), (["--port", "0"], "port")]
)
def test_an_option_that_cannot_be_is_refused_by_name(data: Path, arguments: list[str], field: str) -> None:
    command = [sys.executable, "-m", "fleet_server", "demo", "--data-dir", str(data), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert field in done.stderr
    assert "Traceback" not in done.stderr
    assert not data.exists()
