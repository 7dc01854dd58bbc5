"""Everything that can happen to the agent: a closed union."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from protocol.messages import LotPacks
from protocol.topics import Channel


class BoardResult(StrEnum):
    """How the board says a vend ended."""

    DROPPED = "dropped"
    NO_DROP = "no_drop"
    JAM = "jam"
    MOTOR_ABSENT = "motor_absent"
    OVER_CURRENT = "over_current"
    CURTAIN_BLOCKED = "curtain_blocked"
    DOOR_OPEN = "door_open"
    NOT_RUN = "not_run"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SlotChosen:
    """A visitor asks for one slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class ProductChosen:
    """A visitor asks for a product; the agent chooses the slot, first expired first."""

    product: str


@dataclass(frozen=True, slots=True)
class VendEnded:
    """The board finished, or refused, the vend of this sequence id."""

    board_sequence: int
    result: BoardResult
    duration_ms: int | None = None
    life_count: int | None = None


@dataclass(frozen=True, slots=True)
class BoardAnswered:
    """The board's stored result of a sequence id; None where it does not know it."""

    board_sequence: int
    result: BoardResult | None
    life_count: int | None = None


@dataclass(frozen=True, slots=True)
class DoorChanged:
    """The door opened or closed."""

    open: bool
    life_count: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceKeyTurned:
    """The service key was turned: with it on, a vend with the door open is a test vend."""

    on: bool


@dataclass(frozen=True, slots=True)
class BoardFault:
    """The board or its driver found a fault."""

    code: str
    slot: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BoardFaultEnded:
    """A fault that the board or its driver had found is over."""

    code: str
    slot: int | None = None


class SensorRead(NamedTuple):
    """Readings for the watch and the next vitals; None where there is no sensor.

    `climate_failed`: the sensor was asked and gave nothing that a sensor can mean. `registration` is the modem's answer to
    AT+CREG?, `storage_pct` how full the card is.
    """

    temperature_c: float | None = None
    humidity_pct: float | None = None
    signal_dbm: int | None = None
    supply_mv: int | None = None
    battery_mv: int | None = None
    registration: int | None = None
    storage_pct: int | None = None
    climate_failed: bool = False


@dataclass(frozen=True, slots=True)
class InputsRead:
    """The cabinet's inputs, all of them, at the start and whenever one has changed."""

    mains: bool = True
    tampered: bool = False
    curtain_clear: bool = True


@dataclass(frozen=True, slots=True)
class ReaderAnswered:
    """The card or code reader's answer to its self test; None: it did not answer."""

    status: int | None


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Connected to the broker, and subscribed."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection to the broker is gone."""


class MessageArrived(NamedTuple):
    """A message of one of the server's channels."""

    channel: Channel
    payload: bytes


@dataclass(frozen=True, slots=True)
class OrderDone:
    """The board finished what an order asked of it."""

    order_id: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LocalCount:
    """A count entered at the machine's own page."""

    slot: int
    counted: int


@dataclass(frozen=True, slots=True)
class LocalRefill:
    """Packs put in and taken out, entered at the machine's own page."""

    slot: int
    product: str
    added: tuple[LotPacks, ...] = ()
    removed: tuple[LotPacks, ...] = ()


Event = (
    SlotChosen
    | ProductChosen
    | VendEnded
    | BoardAnswered
    | DoorChanged
    | ServiceKeyTurned
    | BoardFault
    | BoardFaultEnded
    | SensorRead
    | InputsRead
    | ReaderAnswered
    | LinkUp
    | LinkDown
    | MessageArrived
    | OrderDone
    | LocalCount
    | LocalRefill
)
