"""What the caller lets the script do to the machine itself, by shell commands."""

import subprocess
from dataclasses import dataclass
from typing import Final

from simulator.conformance.counterpart import Counterpart

COMMAND_S_MAX: Final = 60.0


class CommandError(RuntimeError):
    """A command of the caller did not end well."""


@dataclass(frozen=True, slots=True)
class Means:
    """The caller's commands; `{slot}` and `{position}` are filled in."""

    ask: str | None = None
    restart: str | None = None
    door: str | None = None
    patience_s: float = 80.0
    quick: bool = False

    @staticmethod
    def run(c: Counterpart, command: str, *, slot: int = 0, position: str = "") -> None:
        """Run a command while the script goes on hearing; raises CommandError."""
        line = command.replace("{slot}", str(slot)).replace("{position}", position)
        with subprocess.Popen(line, shell=True, stdout=subprocess.DEVNULL) as process:  # noqa: S602 - the caller's own command
            c.until(lambda: process.poll() is not None, COMMAND_S_MAX)
            if process.poll() is None:
                process.kill()
        if process.returncode:
            raise CommandError(f"{line!r} ended with {process.returncode}: expected 0")
