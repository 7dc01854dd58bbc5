"""A network namespace for machines, joined to the server by one link that can be cut, thinned and slowed in the kernel."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PREFIX = "dfault"


class NoNamespaceError(Exception):
    """Why there is no namespace here; the text becomes the reason of a skip."""


class Namespace:
    """Machines live inside, the server outside; `host` is the server's address as both see it."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise NoNamespaceError("network namespaces need root")
        for tool in ("ip", "iptables", "tc"):
            if shutil.which(tool, path=PATH) is None:
                raise NoNamespaceError(f"{tool} is not installed")
        _remove_leftovers()
        number = secrets.randbelow(250) + 1
        self.name = f"{PREFIX}-{os.getpid()}"
        self.host, self._inside = f"10.213.{number}.1", f"10.213.{number}.2"
        # An interface's name has at most 15 characters.
        self._outer, self._inner = f"df{os.getpid()}o", f"df{os.getpid()}i"
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self.name)
            _ip("addr", "add", f"{self.host}/30", "dev", self._outer)
            _ip("link", "set", self._outer, "up")
            _ip("-n", self.name, "addr", "add", f"{self._inside}/30", "dev", self._inner)
            for device in (self._inner, "lo"):
                _ip("-n", self.name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            self.close()
            raise NoNamespaceError(f"this kernel makes no namespace: {error.stderr.strip()}") from None

    def command(self, *command: str) -> list[str]:
        """The command that runs another one inside; `ip` becomes that other one, so the process id is its own."""
        return [shutil.which("ip", path=PATH) or "ip", "netns", "exec", self.name, *command]

    def _inside_run(self, *command: str) -> None:
        environment = os.environ | {"PATH": PATH}
        done = subprocess.run(self.command(*command), check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise NoNamespaceError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")

    # ------------------------------------------------------------ faults

    @contextmanager
    def dropping(self, probability: float = 1.0) -> Iterator[None]:
        """Drop packets both ways, all of them or at random."""
        # Not on the loopback: clients wake their own threads through it.
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            chance = (
                [] if probability >= 1 else ["-m", "statistic", "--mode", "random", "--probability", str(probability)]
            )
            self._inside_run("iptables", "-A", chain, way, self._inner, *chance, "-j", "DROP")
        try:
            yield
        finally:
            self._inside_run("iptables", "-F")

    @contextmanager
    def down(self) -> Iterator[None]:
        """Take the machines' end of the link down: what is sent fails at once."""
        _ip("-n", self.name, "link", "set", self._inner, "down")
        try:
            yield
        finally:
            _ip("-n", self.name, "link", "set", self._inner, "up")

    @contextmanager
    def slow(self, rate: str) -> Iterator[None]:
        """Let the link carry no more than this both ways, with a deep queue before it as modems have."""
        shape = ["root", "tbf", "rate", rate, "burst", "1600", "limit", "65536"]
        self._inside_run("tc", "qdisc", "add", "dev", self._inner, *shape)
        outside = [shutil.which("tc", path=PATH) or "tc", "qdisc"]
        subprocess.run([*outside, "add", "dev", self._outer, *shape], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run([*outside, "del", "dev", self._outer, "root"], check=False, capture_output=True)
            self._inside_run("tc", "qdisc", "del", "dev", self._inner, "root")

    def heal(self) -> None:
        """Take back whatever a failed test left."""
        for command in (["iptables", "-F"], ["tc", "qdisc", "del", "dev", self._inner, "root"]):
            with suppress(NoNamespaceError):
                self._inside_run(*command)
        _ip("-n", self.name, "link", "set", self._inner, "up")

    def close(self) -> None:
        """Remove everything; what still runs inside keeps its sockets and reaches nobody."""
        for command in (["link", "del", self._outer], ["netns", "del", self.name]):
            with suppress(subprocess.CalledProcessError):
                _ip(*command)


def _ip(*arguments: str) -> None:
    command = [shutil.which("ip", path=PATH) or "ip", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _remove_leftovers() -> None:
    """Remove namespaces whose test run was killed."""
    for path in Path("/run/netns").glob(f"{PREFIX}-*"):
        pid = path.name.removeprefix(f"{PREFIX}-")
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            for command in (["netns", "del", path.name], ["link", "del", f"df{pid}o"]):
                with suppress(subprocess.CalledProcessError):
                    _ip(*command)
