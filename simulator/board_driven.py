"""What a check of the conformance kit holds in its hand: a rig, the driver under test, and a watch on every call."""

from collections.abc import Callable
from typing import Any, Final

from device_agent.events import BoardResult, Event, VendEnded
from device_agent.hal.ports import BoardDriver, BoardError, BoardFactory
from protocol.messages import Board
from simulator.board_rig import Rig
from simulator.real_time import monotonic, pause

PATIENCE_S: Final = 15.0
POLL_EVERY_S: Final = 0.02
POLL_S_MAX: Final = 0.25
CALL_S_MAX: Final = 2.5
SLOT: Final = 3


class BrokenRuleError(Exception):
    """The rule does not hold; the text says what was seen instead."""


class UnseenError(Exception):
    """The rule does not apply, or cannot be seen with this rig."""


def expect(holds: object, words: str) -> None:
    """Break the rule unless it holds."""
    if not holds:
        raise BrokenRuleError(words)


class Driven:
    """A rig and the driver under test; keeps events, and measures every call."""

    def __init__(self, factory: BoardFactory, rig: Rig, config: dict[str, Any]) -> None:
        self.factory, self.rig, self.config = factory, rig, rig.config | config
        self.events: list[Event] = []
        self.slow: list[str] = []
        self.wrong: list[str] = []
        self._driver: BoardDriver | None = None

    def open(self, **changes: Any) -> "Driven":
        """Open the driver, or open it again."""
        self.close()
        try:
            self._driver = self.factory(self.config | changes)
        except BoardError:
            raise
        except Exception as error:
            self.wrong.append(f"opening raised {error!r}")
            raise BrokenRuleError(f"opening raised {error!r}") from error
        return self

    def close(self) -> None:
        """Close the driver as a power cut does: without telling it anything before."""
        if self._driver is not None:
            self.call("close")
            self._driver = None

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Call the driver; BoardError passes, any other exception breaks the rule."""
        began_s = monotonic()
        try:
            return getattr(self._driver, name)(*arguments, **keywords)
        except BoardError:
            raise
        except Exception as error:
            self.wrong.append(f"{name} raised {error!r}")
            raise BrokenRuleError(f"{name} raised {error!r}") from error
        finally:
            took_s = monotonic() - began_s
            if took_s > (POLL_S_MAX if name == "poll" else CALL_S_MAX):
                self.slow.append(f"{name} took {took_s:.2f} s")

    def poll(self) -> None:
        """Poll once."""
        self.events += self.call("poll")

    def until(self, holds: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Poll until something holds; breaks the rule where it does not in time."""
        ends_s = monotonic() + seconds
        while not holds():
            expect(monotonic() < ends_s, f"{what}: not within {seconds:g} s")
            self.poll()
            pause(POLL_EVERY_S)

    def settle(self, seconds: float = 0.3) -> None:
        """Poll for a while: what is said twice shows."""
        ends_s = monotonic() + seconds
        while monotonic() < ends_s:
            self.poll()
            pause(POLL_EVERY_S)

    def of(self, *kinds: type[Event]) -> list[Any]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    def ended(self, sequence: int) -> list[VendEnded]:
        """The ends that were told of one vend."""
        return [event for event in self.of(VendEnded) if event.board_sequence == sequence]

    def start(self, sequence: int, slot: int = SLOT) -> None:
        """Begin a vend."""
        self.call("start_vend", slot, sequence, drop_sensor=True)

    def vend(self, sequence: int, slot: int = SLOT, seconds: float = PATIENCE_S) -> BoardResult:
        """Begin a vend and wait for its end."""
        before = len(self.ended(sequence))
        self.start(sequence, slot)
        self.until(lambda: len(self.ended(sequence)) > before, f"VendEnded of sequence {sequence}", seconds)
        return self.ended(sequence)[-1].result

    def identity(self) -> Board:
        """What the driver says of its board."""
        board = self.call("identity")
        expect(isinstance(board, Board), f"identity() is {board!r}")
        found: Board = board
        return found

    def needs(self, *, once: bool = False, life: bool = False) -> None:
        """Leave the rule out for a board that does not claim what it is about."""
        board = self.identity()
        if once and not board.runs_sequence_once:
            raise UnseenError("the board does not claim to run a sequence id once")
        if life and not board.counts_life:
            raise UnseenError("the board does not claim to count its life")
