"""Every message as a closed union: facts, vitals and status go up; acks, orders, desired state and books come down.

Unknown fields of a newer peer are ignored when read; the bytes of a fact keep them.
"""

from datetime import date
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.topics import DISPENSER_ID_PATTERN
from protocol.versions import DESIRED_LOTS_MAX, PACKS_MAX, QUEUE_LOTS_MAX, STREAM_SEQ_MAX

DispenserId = Annotated[str, Field(pattern=DISPENSER_ID_PATTERN)]
StreamId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="random, made when an outbox is created")]
BootId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$", description="random, made at each start of the agent")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seq = Annotated[int, Field(ge=0, le=STREAM_SEQ_MAX)]
FactSeq = Annotated[int, Field(ge=1, le=STREAM_SEQ_MAX)]
Slot = Annotated[int, Field(ge=1, le=999)]
Packs = Annotated[int, Field(ge=0, le=PACKS_MAX)]
SomePacks = Annotated[int, Field(ge=1, le=PACKS_MAX)]
ProductCode = Annotated[str, Field(pattern=r"^[A-Z0-9][A-Z0-9-]{0,19}$")]
LotCode = Annotated[str, Field(pattern=r"^[!-~]{1,20}$", description="GS1 (10): 1 to 20 printable characters")]
FaultCode = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{2,39}$")]
DoorSession = Annotated[str, Field(pattern=r"^[0-9]{6}$", description="shown by the machine, noted by the phone")]
OrderId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Milliseconds = Annotated[int, Field(ge=0, le=2**53)]
Detail = Annotated[str, Field(max_length=200)]


class Message(BaseModel):
    """What all messages share: frozen, strict about types, lenient about unknown fields, versioned."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class LotPacks(Message):
    """Packs of one lot, in the order of a coil: the first of a queue is dispensed first."""

    lot: LotCode
    packs: SomePacks


# ---------------------------------------------------------------- facts


class FactBase(Message):
    """What every fact carries: wall time, monotonic time within a boot, and whether the clock was trusted."""

    v: Literal[1] = 1
    at_ms: Milliseconds = Field(
        description="wall clock of the machine, ms since 1970 UTC; an attribute, never an order"
    )
    mono_ms: Milliseconds = Field(description="monotonic clock, ms since the boot named by boot_id")
    boot_id: BootId
    clock_trusted: bool


class Outcome(StrEnum):
    """How a vend ended; `unverified` (motor turned, no drop seen) is neither success nor failure."""

    DELIVERED = "delivered"
    UNVERIFIED = "unverified"
    JAM = "jam"
    MOTOR_FAULT = "motor_fault"
    IN_DOUBT = "in_doubt"
    REFUSED = "refused"


TAKES_A_PACK = frozenset({Outcome.DELIVERED, Outcome.UNVERIFIED, Outcome.IN_DOUBT})
"""The outcomes after which the book of a slot is one pack lower."""


class Refusal(StrEnum):
    """Why a vend was refused before or without a drop."""

    EMPTY = "empty"
    EXPIRED = "expired"
    BLOCKED_LOT = "blocked_lot"
    DISABLED = "disabled"
    DOOR_OPEN = "door_open"
    LIMIT = "limit"
    CLOSED = "closed"
    FAULT = "fault"
    BUSY = "busy"
    UNKNOWN_SLOT = "unknown_slot"


class Board(Message):
    """What the vending board is and can do."""

    model: Annotated[str, Field(max_length=40)]
    runs_sequence_once: bool = Field(description="the same sequence id again returns the stored result")
    counts_life: bool = Field(description="counts vends for life, beyond a dead card")


class Started(FactBase):
    """The agent started; claims the board's life counter, so that vends lost with a dead card show."""

    kind: Literal["started"] = "started"
    reason: Literal["new_stream", "start", "order"]
    agent_version: Annotated[str, Field(max_length=40)]
    board: Board
    life_count: Seq | None = None
    desired_version: Seq | None = None


class Vend(FactBase):
    """One request at a slot and how it ended. `lot` is the machine's claim: compared with the ledger, never posted."""

    kind: Literal["vend"] = "vend"
    slot: Slot
    product: ProductCode | None = None
    outcome: Outcome
    reason: Refusal | None = None
    lot: LotCode | None = None
    board_sequence: Annotated[int, Field(ge=0, le=65_535)] | None = None
    life_count: Seq | None = None
    duration_ms: Milliseconds | None = None
    test: bool = Field(default=False, description="a test vend is booked as test, not as use")
    order_id: OrderId | None = None

    @model_validator(mode="after")
    def _reason_goes_with_refusal(self) -> Self:
        if (self.outcome is Outcome.REFUSED) != (self.reason is not None):
            msg = f"reason {self.reason!r} with outcome {self.outcome!r}: expected a reason exactly when refused"
            raise ValueError(msg)
        return self


class DoorOpened(FactBase):
    """The door opened: from here to its `door_closed` the machine serves nobody."""

    kind: Literal["door_opened"] = "door_opened"
    session: DoorSession
    authorised: bool = Field(description="an unlock order or the service key preceded it")
    order_id: OrderId | None = None
    life_count: Seq | None = None


class DoorClosed(FactBase):
    """The door of this session closed."""

    kind: Literal["door_closed"] = "door_closed"
    session: DoorSession
    open_ms: Milliseconds
    life_count: Seq | None = None


class Count(FactBase):
    """A count entered at the machine itself: packs physically in the slot."""

    kind: Literal["count"] = "count"
    slot: Slot
    counted: Packs
    session: DoorSession | None = None


class Refill(FactBase):
    """Packs put in and taken out, entered at the machine itself."""

    kind: Literal["refill"] = "refill"
    slot: Slot
    product: ProductCode
    added: Annotated[list[LotPacks], Field(max_length=20)] = []
    removed: Annotated[list[LotPacks], Field(max_length=20)] = []
    session: DoorSession | None = None


class FaultRaised(FactBase):
    """A fault of the machine or of one slot began."""

    kind: Literal["fault_raised"] = "fault_raised"
    code: FaultCode
    slot: Slot | None = None
    detail: Detail = ""


class FaultCleared(FactBase):
    """The fault of this code and slot ended."""

    kind: Literal["fault_cleared"] = "fault_cleared"
    code: FaultCode
    slot: Slot | None = None
    detail: Detail = ""


class SlotClaim(Message):
    """What the machine believes of one slot."""

    slot: Slot
    queue: Annotated[list[LotPacks], Field(max_length=QUEUE_LOTS_MAX)]


class StockLevel(FactBase):
    """The machine's daily claim of its stock: compared with the ledger, never posted. Long ones come in parts."""

    kind: Literal["stock_level"] = "stock_level"
    slots: Annotated[list[SlotClaim], Field(max_length=100)]
    life_count: Seq | None = None


class OrderOutcome(StrEnum):
    """What became of an order."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    REFUSED = "refused"


class OrderResult(FactBase):
    """The answer to an order; an order runs at most once."""

    kind: Literal["order_result"] = "order_result"
    order_id: OrderId
    outcome: OrderOutcome
    detail: Detail = ""


class ConfigApplied(FactBase):
    """A desired state or a slot book was applied or refused, whole."""

    kind: Literal["config_applied"] = "config_applied"
    what: Literal["desired", "books"]
    version: Seq
    applied: bool
    detail: Detail = ""


class ClockChanged(FactBase):
    """The wall clock jumped against the monotonic one; `at_ms` is already the new time."""

    kind: Literal["clock_changed"] = "clock_changed"
    was_ms: Milliseconds


Fact = (
    Started
    | Vend
    | DoorOpened
    | DoorClosed
    | Count
    | Refill
    | FaultRaised
    | FaultCleared
    | StockLevel
    | OrderResult
    | ConfigApplied
    | ClockChanged
)


class BatchHeader(Message):
    """First line of a batch; the facts follow, one a line, and `seq` follows from the place."""

    v: Literal[1] = 1
    dispenser_id: DispenserId
    stream_id: StreamId
    first_seq: FactSeq
    prev_digest: Digest
    sent_at_ms: Milliseconds
    oldest: Literal[True] | None = Field(
        default=None,
        description="the server asked for older facts, and the dispenser keeps none before first_seq any more",
    )


# ---------------------------------------------------------------- other messages of a dispenser


class Status(Message):
    """Retained presence and last will; stream and session keep a late will from marking a new session offline."""

    v: Literal[1] = 1
    stream_id: StreamId
    session: Seq
    online: bool
    at_ms: Milliseconds


class Vitals(Message):
    """Lossy readings of a machine; the latest value counts."""

    v: Literal[1] = 1
    stream_id: StreamId
    session: Seq
    at_ms: Milliseconds
    agent_version: Annotated[str, Field(max_length=40)]
    pending_facts: Seq
    temperature_c: Annotated[float, Field(ge=-60, le=120)] | None = None
    humidity_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    signal_dbm: Annotated[int, Field(ge=-140, le=0)] | None = None
    supply_mv: Annotated[int, Field(ge=0, le=60_000)] | None = None
    battery_mv: Annotated[int, Field(ge=0, le=60_000)] | None = None


# ---------------------------------------------------------------- the server's answers on `ack`


class AckBase(Message):
    """Where the server's cursor of this stream stands, in this epoch of the server."""

    v: Literal[1] = 1
    server_epoch: Annotated[int, Field(ge=1)]
    stream_id: StreamId
    through_seq: Seq
    digest: Digest
    server_at_ms: Milliseconds
    sent_at_ms: Milliseconds | None = Field(default=None, description="echo of the batch's sent_at_ms")


class Ack(AckBase):
    """Everything through `through_seq` is committed."""

    kind: Literal["ack"] = "ack"
    quarantined: Annotated[list[FactSeq], Field(max_length=100)] = []


class Gap(AckBase):
    """Send again from `through_seq + 1`: the batch began beyond that, or, unasked, what was on its way is lost."""

    kind: Literal["gap"] = "gap"


class Nack(AckBase):
    """The batch could not be read or its chain does not add up; nothing was applied."""

    kind: Literal["nack"] = "nack"
    reason: Detail


class Fork(AckBase):
    """A number came again with other bytes (a restored old card): the facts are kept aside, a new stream is due."""

    kind: Literal["fork"] = "fork"


AckMessage = Ack | Gap | Nack | Fork


# ---------------------------------------------------------------- orders, desired state, books


class OrderBase(Message):
    """An order is bound to the stream and session it was sent in and lives until `expires_after_ms` of that session."""

    v: Literal[1] = 1
    order_id: OrderId
    stream_id: StreamId
    session: Seq
    expires_after_ms: Milliseconds = Field(description="monotonic, counted from the start of the session")


class Unlock(OrderBase):
    """Pulse the lock."""

    kind: Literal["unlock"] = "unlock"


class TestVend(OrderBase):
    """Vend one pack, booked as test."""

    kind: Literal["test_vend"] = "test_vend"
    slot: Slot


class ClearJam(OrderBase):
    """Turn the motor home and clear the jam of one slot."""

    kind: Literal["clear_jam"] = "clear_jam"
    slot: Slot


class Reboot(OrderBase):
    """Restart the agent."""

    kind: Literal["reboot"] = "reboot"


class SelfTest(OrderBase):
    """Run the board's self test."""

    kind: Literal["self_test"] = "self_test"


class NewStream(OrderBase):
    """Begin a new stream: the answer to a fork."""

    kind: Literal["new_stream"] = "new_stream"


Order = Unlock | TestVend | ClearJam | Reboot | SelfTest | NewStream


class SlotPlan(Message):
    """What one slot is meant to hold."""

    slot: Slot
    product: ProductCode
    capacity: SomePacks
    enabled: bool = True


class LotInfo(Message):
    """What a machine must know of a lot: until when it may be dispensed, and whether it is blocked."""

    lot: LotCode
    product: ProductCode
    expires_on: Annotated[date, Field(strict=False)]
    blocked: bool = False


class Limits(Message):
    """Pick-up limits without identity, per slot."""

    cooldown_s: Annotated[int, Field(ge=0, le=86_400)] = 20
    daily_packs_max: Annotated[int, Field(ge=1, le=1_000)] = 40


class OpeningHours(Message):
    """Hours of the local day in which the site is open; 0 to 24 is always."""

    opens_hour: Annotated[int, Field(ge=0, le=23)] = 0
    closes_hour: Annotated[int, Field(ge=1, le=24)] = 24


class Desired(Message):
    """The state a machine should reach: retained, versioned, never quantities."""

    v: Literal[1] = 1
    version: Annotated[int, Field(ge=1)]
    planogram: Annotated[list[SlotPlan], Field(max_length=100)]
    lots: Annotated[list[LotInfo], Field(max_length=DESIRED_LOTS_MAX)]
    limits: Limits = Limits()
    opening_hours: OpeningHours = OpeningHours()
    agent_version: Annotated[str, Field(max_length=40)] | None = None


class Books(Message):
    """The server's book of every slot as of a fact of the stream; the machine re-folds its own later facts on top."""

    v: Literal[1] = 1
    version: Annotated[int, Field(ge=1)]
    stream_id: StreamId
    as_of_seq: Seq
    slots: Annotated[list[SlotClaim], Field(max_length=100)]
