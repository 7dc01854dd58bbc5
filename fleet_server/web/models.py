"""What the API takes and gives."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

OperationId = Annotated[
    str, Field(pattern=r"^[0-9a-zA-Z-]{8,64}$", description="made by the caller; the same id is booked once")
]
Packs = Annotated[int, Field(ge=0, le=1_000)]
Slot = Annotated[int, Field(ge=1, le=999)]
StreamNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
RowNumber = Annotated[
    int, Field(ge=0, le=2**63 - 1, description="of a fact or a row: what a column of the database holds")
]
ProductCode = Annotated[str, Field(min_length=1, max_length=20)]
LotCode = Annotated[str, Field(pattern=r"^[!-~]{1,20}$")]


class Model(BaseModel):
    """What is not known is refused: a misspelt field must not be lost."""

    model_config = ConfigDict(extra="forbid")


class SignIn(Model):
    user: Annotated[str, Field(max_length=40)]
    password: Annotated[str, Field(max_length=200)]


class Session(Model):
    token: str
    role: str
    epoch: int = Field(description="1, and higher after every restore from a backup, which ends all sessions")


class Problem(Model):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = None


class Done(Model):
    verdict: str = "done"


class DispenserItem(Model):
    id: str
    name_zh: str
    name_en: str
    street_zh: str
    street_en: str
    site_type: str
    online: bool | None = Field(description="null: never heard of")
    last_fact_at: datetime | None
    age_s: float | None = Field(description="age of the newest data")
    stock: int
    capacity: int
    slots_empty: int
    faults_open: int


class DispenserList(Model):
    items: list[DispenserItem]


class QueuedLot(Model):
    product: str
    lot: str
    packs: int
    expires_on: date | None
    blocked: str | None


class SlotItem(Model):
    slot: int
    product: str
    capacity: int
    enabled: bool
    units: int
    owed: int
    queue: list[QueuedLot]


class DispenserSlots(Model):
    id: str
    slots: list[SlotItem]


class DispenserSlotsList(Model):
    items: list[DispenserSlots]


class FaultItem(Model):
    code: str
    slot: int | None
    source: str
    detail: str
    opened_at: datetime


class PastFaultItem(FaultItem):
    id: int
    dispenser_id: str
    cleared_at: datetime | None


class PastFaultList(Model):
    items: list[PastFaultItem]


class DispenserDetail(DispenserItem):
    latitude: float
    longitude: float
    opens_hour: int
    closes_hour: int
    note: str
    slots: list[SlotItem]
    faults: list[FaultItem]
    vitals: dict[str, Any]
    door_open: bool


class FactItem(Model):
    stream_no: int
    seq: int
    kind: str | None
    at: datetime
    received_at: datetime
    fact: dict[str, Any] | None
    quarantine_reason: str | None


class FactList(Model):
    items: list[FactItem]


class StreamItem(Model):
    stream_no: int
    stream_id: str
    through_seq: int
    digest: str


class StreamList(Model):
    items: list[StreamItem]


class BalanceItem(Model):
    account: str
    product: str
    lot: str
    units: int


class BalanceList(Model):
    items: list[BalanceItem]


class MovementItem(BalanceItem):
    account: str = Field(exclude=True, default="")
    id: str
    source: str
    target: str
    reason: str
    actor: str
    cause: str
    at: datetime
    booked_at: datetime


class MovementList(Model):
    items: list[MovementItem]


class Audit(Model):
    movements: int
    facts: int
    operations: int
    accounts: int
    differences: list[str]


class LotStock(Model):
    product: str
    lot: str
    expires_on: date | None
    blocked: str | None
    units: int


class DepotStock(Model):
    depot: str
    stock: list[LotStock]


class LotItem(Model):
    product: ProductCode
    lot: LotCode
    expires_on: date


class LotState(LotItem):
    blocked: str | None


class LotList(Model):
    items: list[LotState]


class LotBlock(Model):
    product: ProductCode
    lot: LotCode
    reason: Annotated[str | None, Field(min_length=1, max_length=200, description="null frees it again")]


class ReceiptLine(LotItem):
    packs: Annotated[int, Field(ge=1, le=1_000_000)]


class Receipt(Model):
    operation_id: OperationId
    lines: Annotated[list[ReceiptLine], Field(min_length=1, max_length=200)]


class PlanItem(Model):
    id: str
    depot_id: str
    day: date
    state: str
    created_at: datetime
    released_at: datetime | None
    result: dict[str, Any]


class PlanList(Model):
    items: list[PlanItem]


class Released(Model):
    work_order_ids: list[str]


class WorkOrderItem(Model):
    id: str
    plan_id: str
    depot_id: str
    day: date
    state: str


class WorkOrderList(Model):
    items: list[WorkOrderItem]


class PickItem(Model):
    slot: int
    product: str
    lot: str
    planned: int
    picked: int | None


class StopItem(Model):
    position: int
    dispenser_id: str
    name_zh: str
    name_en: str
    visit_id: str
    state: str
    reasons: list[dict[str, Any]]
    picks: list[PickItem]


class WorkOrderDetail(WorkOrderItem):
    stops: list[StopItem]


class PickLine(Model):
    dispenser_id: str
    slot: Slot
    product: ProductCode
    lot: LotCode
    packs: Packs


class Pick(Model):
    operation_id: OperationId
    lines: Annotated[list[PickLine], Field(max_length=2_000)]


class ReturnLine(Model):
    product: ProductCode
    lot: LotCode
    packs: Packs


class Return(Model):
    operation_id: OperationId
    lines: Annotated[list[ReturnLine], Field(max_length=500)]


class Operation(Model):
    operation_id: OperationId
    index: Annotated[int, Field(ge=0, le=10_000)]
    session: Annotated[str, Field(pattern=r"^[0-9]{6}$")] | None = None
    entered_at: datetime
    kind: Literal["count", "refill", "remove"]
    slot: int
    counted: int | None = None
    product: str | None = None
    lot: str | None = None
    packs: int | None = None
    reason: str | None = None


class Operations(Model):
    operations: Annotated[list[Operation], Field(max_length=200)]


class Result(Model):
    operation_id: str
    verdict: str
    detail: str


class Results(Model):
    results: list[Result]


class Skip(Model):
    reason: Annotated[str, Field(min_length=1, max_length=200)]
    cause: Annotated[
        Literal["blocked", "missing", "other"],
        Field(description="nobody gets in, no machine is there, or something else"),
    ] = "other"


class Visit(Model):
    visit_id: str
    dispenser_id: str
    state: str


class Unlocked(Model):
    order_id: str
    messages_sent: int = Field(description="messages sent to machines since this process started")


class ClockNow(Model):
    now: datetime
    mode: str
    speed: float


class Advance(Model):
    to: datetime
    after_messages: int | None = Field(
        None, description="wait until so many messages of machines are committed, counted since this process started"
    )


class Advanced(Model):
    now: datetime
    jobs_run: list[str]
    messages_sent: int = Field(description="messages sent to machines since this process started")
    messages_handled: int = Field(description="messages of machines committed since this process started")


class Live(Model):
    speed: float = 1.0
