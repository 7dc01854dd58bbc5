"""What a card may hold after a power cut, computed from a trace of everything that a process did to its files.

What was synced is there. Of what was written since, each sector of 512 bytes may have reached the card or not, in any
combination; a file that was never synced may not be there at all.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SECTOR: Final = 512
CALLS: Final = "openat,pwrite64,write,ftruncate,fdatasync,fsync,unlink,rename"
TRACE: Final = ("-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}")
_CALL: Final = re.compile(r"^\d+\s+(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
_FILE: Final = re.compile(r"^(?P<fd>\d+)<(?P<path>[^>]*)>")


@dataclass
class File:
    """What is certain of a file (None: not that it exists), and what was written since: (offset, bytes), or (size, None)."""

    certain: bytes | None = None
    since: list[tuple[int, bytes | None]] = field(default_factory=list)
    unlinked: bool = False
    """Its name was taken away: for certain only when its directory is synced."""

    def sync(self) -> None:
        self.certain, self.since = self.with_writes(self.since), []

    def ways(self, throw: random.Random, torn: int) -> list[bytes | None]:
        """What may be found: what is certain, all that was written, and some ways to tear it."""
        whole = None if self.unlinked else self.with_writes(self.since)
        return [self.certain, whole, *(self.torn(throw) for _ in range(torn))]

    def with_writes(self, writes: list[tuple[int, bytes | None]]) -> bytes:
        held = bytearray(self.certain or b"")
        for place, data in writes:
            if data is None:
                held = held[:place].ljust(place, b"\0")
            else:
                held = held.ljust(place, b"\0")
                held[place : place + len(data)] = data
        return bytes(held)

    def torn(self, throw: random.Random) -> bytes | None:
        """Any sectors of what was written since."""
        if (self.unlinked or self.certain is None) and throw.random() < 0.3:
            return None
        kept: list[tuple[int, bytes | None]] = []
        for place, data in self.since:
            if data is None:
                kept += [(place, None)] if throw.random() < 0.5 else []
                continue
            first = SECTOR - place % SECTOR
            cuts = [0, *range(first, len(data), SECTOR), len(data)]
            kept += [(place + a, data[a:b]) for a, b in itertools.pairwise(cuts) if throw.random() < 0.5]
        return self.with_writes(kept)


@dataclass(frozen=True)
class Moment:
    """The files after one system call, by name, and what the process had said until then."""

    call: str
    files: dict[str, File]
    said: list[str]


def moments(trace: Path, directory: Path) -> Iterator[Moment]:
    """Yield every moment of a trace; the files are those of `directory`."""
    files: dict[str, File] = {}
    said: list[str] = []
    for line in trace.read_text().splitlines():
        found = _CALL.match(line)
        if found is None or int(found["result"]) < 0:
            continue
        name, arguments = found["name"], found["arguments"]
        if name == "unlink" and (gone := files.get(Path(_bytes(arguments).decode()).name)) is not None:
            gone.unlinked = True
        file = _FILE.match(arguments)
        path = Path(_text(file["path"])) if file else None
        if name == "write" and file is not None and file["fd"] == "1":
            said += _bytes(arguments).decode().splitlines()
        elif path == directory and name in {"fsync", "fdatasync"}:
            files = {name: file for name, file in files.items() if not file.unlinked}
        elif path is not None and path.parent == directory and not path.name.endswith("-shm"):
            _apply(files.setdefault(path.name, File()), name, arguments)
            yield Moment(f"{name} of {path.name}", files, said)


def _apply(file: File, name: str, arguments: str) -> None:
    if name in {"fdatasync", "fsync"}:
        file.sync()
    elif name == "ftruncate":
        file.since.append((int(arguments.rsplit(", ", 1)[1]), None))
    elif name == "pwrite64":
        file.since.append((int(arguments.rsplit(", ", 1)[1]), _bytes(arguments)))
    elif name == "write":
        file.since.append((len(file.with_writes(file.since)), _bytes(arguments)))


def _bytes(arguments: str) -> bytes:
    return bytes.fromhex(arguments.split('"')[1].replace("\\x", ""))


def _text(path: str) -> str:
    return bytes.fromhex(path.replace("\\x", "")).decode() if "\\x" in path else path


def lay(files: dict[str, bytes | None], directory: Path) -> None:
    """Put such files into a directory."""
    directory.mkdir()
    for name, held in files.items():
        if held is not None:
            (directory / name).write_bytes(held)
