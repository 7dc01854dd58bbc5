"""One message of every kind, each with all its fields."""

from datetime import date
from typing import Any, Final

from protocol import messages as m

WHEN: Final[dict[str, Any]] = {
    "at_ms": 1_790_000_000_000,
    "mono_ms": 61_000,
    "boot_id": "0badcafe",
    "clock_trusted": True,
}
STREAM: Final = "0123456789abcdef0123456789abcdef"
ORDER_ID: Final = "fedcba9876543210fedcba9876543210"
DIGEST: Final = "ab" * 32
BOARD: Final = m.Board(model="FAFB-60", runs_sequence_once=True, counts_life=True)
CURSOR: Final[dict[str, Any]] = {
    "server_epoch": 1, "stream_id": STREAM, "through_seq": 42, "digest": DIGEST, "server_at_ms": 1_790_000_000_120,
    "sent_at_ms": 1_790_000_000_000,
}  # fmt: skip
BOUND: Final[dict[str, Any]] = {"order_id": ORDER_ID, "stream_id": STREAM, "session": 7, "expires_after_ms": 120_000}
QUEUE: Final = [m.LotPacks(lot="C2605-1", packs=3), m.LotPacks(lot="C2711-2", packs=15)]

FACTS: Final[list[m.Fact]] = [
    m.Started(**WHEN, reason="start", agent_version="0.1.0", board=BOARD, life_count=1234, desired_version=9),
    m.Vend(
        **WHEN, slot=3, product="CONDOM-M", outcome=m.Outcome.DELIVERED, lot="C2605-1", board_sequence=77,
        life_count=1235, duration_ms=1800, test=False, order_id=ORDER_ID,
    ),
    m.Vend(**WHEN, slot=3, product="CONDOM-M", outcome=m.Outcome.REFUSED, reason=m.Refusal.LIMIT),
    m.DoorOpened(**WHEN, session="042424", authorised=True, order_id=ORDER_ID, life_count=1235),
    m.DoorClosed(**WHEN, session="042424", open_ms=300_000, life_count=1235),
    m.Count(**WHEN, slot=3, counted=17, session="042424"),
    m.Refill(**WHEN, slot=3, product="CONDOM-M", added=QUEUE, removed=[m.LotPacks(lot="OLD", packs=1)], session="042424"),
    m.FaultRaised(**WHEN, code="SLOT_JAM", slot=3, detail="motor stalled"),
    m.FaultCleared(**WHEN, code="SLOT_JAM", slot=3, detail="by an order"),
    m.StockLevel(**WHEN, slots=[m.SlotClaim(slot=3, queue=QUEUE)], life_count=1235),
    m.OrderResult(**WHEN, order_id=ORDER_ID, outcome=m.OrderOutcome.DONE, detail="lock pulsed"),
    m.ConfigApplied(**WHEN, what="desired", version=9, applied=True, detail="planogram of 8 slots"),
    m.ClockChanged(**WHEN, was_ms=1_789_000_000_000),
]  # fmt: skip

ACKS: Final[list[m.AckMessage]] = [
    m.Ack(**CURSOR, quarantined=[40]),
    m.Gap(**CURSOR),
    m.Nack(**CURSOR, reason="batch header: v = 9: Input should be 1"),
    m.Fork(**CURSOR),
]

ORDERS: Final[list[m.Order]] = [
    m.Unlock(**BOUND),
    m.TestVend(**BOUND, slot=3),
    m.ClearJam(**BOUND, slot=3),
    m.Reboot(**BOUND),
    m.SelfTest(**BOUND),
    m.NewStream(**BOUND),
]

STATUS: Final = m.Status(stream_id=STREAM, session=7, online=True, at_ms=1_790_000_000_000)
VITALS: Final = m.Vitals(
    stream_id=STREAM, session=7, at_ms=1_790_000_000_000, agent_version="0.1.0", pending_facts=3, temperature_c=31.5,
    humidity_pct=61.0, signal_dbm=-87, supply_mv=12_100, battery_mv=12_900,
)  # fmt: skip
DESIRED: Final = m.Desired(
    version=9,
    planogram=[m.SlotPlan(slot=3, product="CONDOM-M", capacity=18, enabled=True)],
    lots=[m.LotInfo(lot="C2605-1", product="CONDOM-M", expires_on=date(2029, 5, 31), blocked=False)],
    limits=m.Limits(cooldown_s=20, daily_packs_max=40),
    opening_hours=m.OpeningHours(opens_hour=8, closes_hour=18),
    agent_version="0.1.0",
)
BOOKS: Final = m.Books(version=4, stream_id=STREAM, as_of_seq=42, slots=[m.SlotClaim(slot=3, queue=QUEUE)])
HEADER: Final = m.BatchHeader(
    dispenser_id="HD-001", stream_id=STREAM, first_seq=1, prev_digest=DIGEST, sent_at_ms=1_790_000_000_000
)
