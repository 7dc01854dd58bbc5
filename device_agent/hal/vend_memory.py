"""A note on disk for boards that remember nothing: which vend was begun last, and how it ended.

The note is on disk before the motor may turn. So after a power cut a sequence id that is not noted never ran, one noted with
a result ended so, and one noted without a result is the only case that nobody can know.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_agent.events import BoardResult
from device_agent.hal.ports import BoardError


@dataclass(frozen=True, slots=True)
class Note:
    """One vend; `result` is None until it is known."""

    sequence: int
    slot: int
    result: BoardResult | None = None


FIELDS: Final = ("sequence", "slot", "result")


class VendMemory:
    """The note; without a path it lasts as long as the process."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self.note = None if self._path is None else _read(self._path)

    @property
    def is_durable(self) -> bool:
        """Whether the note outlives a power cut."""
        return self._path is not None

    def begin(self, sequence: int, slot: int) -> None:
        """Note that a vend begins; raises BoardError where it cannot be kept: then it must not begin."""
        self._keep(Note(sequence, slot))

    def end(self, result: BoardResult) -> None:
        """Note how the vend ended. This process knows it even if the disk does not take it, so that raises nothing."""
        if self.note is not None:
            note = Note(self.note.sequence, self.note.slot, result)
            try:
                self._keep(note)
            except BoardError:
                self.note = note

    def result_of(self, sequence: int) -> BoardResult | None:
        """Return how a vend ended; UNKNOWN where it was begun and no more is known, None where it never was the last."""
        if self.note is None or self.note.sequence != sequence:
            return None
        return self.note.result or BoardResult.UNKNOWN

    def _keep(self, note: Note) -> None:
        if self._path is not None:
            text = json.dumps({"sequence": note.sequence, "slot": note.slot, "result": note.result})
            try:
                _replace(self._path, text)
            except OSError as error:
                raise BoardError(f"board.memory = {str(self._path)!r}: {error.strerror}") from None
        self.note = note


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(path: Path) -> Note | None:
    try:
        value = json.loads(path.read_text())
        sequence, slot, result = (value[name] for name in FIELDS)
        return Note(int(sequence), int(slot), None if result is None else BoardResult(result))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Without the note a vend could be run twice, so this is no matter to pass over.
        raise BoardError(f"board.memory = {str(path)!r}: expected the note of this driver ({error})") from None
