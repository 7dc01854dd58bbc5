"""Everything the agent asks of the world: a closed union."""

from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.topics import Channel


class SlotShown(NamedTuple):
    """What the screen says of one slot; `reason` where nothing can be had."""

    product: str
    available: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Display:
    """What the screen shows. `session` is the code of the door session that is open."""

    state: str
    session: str | None = None
    slots: dict[int, SlotShown] = field(default_factory=dict)
    message: str | None = None


@dataclass(frozen=True, slots=True)
class RunMotor:
    """Vend one pack under this sequence id. The intent is committed before this is asked."""

    slot: int
    board_sequence: int
    drop_sensor: bool = True


@dataclass(frozen=True, slots=True)
class AskBoard:
    """Ask for the stored result of a sequence id; the answer is BoardAnswered."""

    board_sequence: int


@dataclass(frozen=True, slots=True)
class PulseLock:
    """Open the lock."""


@dataclass(frozen=True, slots=True)
class ClearJam:
    """Clear the jam of a slot; the answer is OrderDone."""

    order_id: str
    slot: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Test the board; the answer is OrderDone."""

    order_id: str


@dataclass(frozen=True, slots=True)
class Restart:
    """End the process; its supervisor starts it again."""

    order_id: str


class Publish(NamedTuple):
    """Send a message on one of this machine's channels."""

    channel: Channel
    payload: bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Throw the connection away and make a fresh one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Show:
    """Show this."""

    display: Display


Effect = RunMotor | AskBoard | PulseLock | ClearJam | SelfTest | Restart | Publish | Reconnect | Show
