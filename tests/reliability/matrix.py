"""The fault matrix: what is injected, and what must hold. Tests name their row: `test_n1_...`."""

import re
from typing import Final, NamedTuple


class Row(NamedTuple):
    """One scenario."""

    id: str
    inject: str
    holds: str


PROMISES: Final = {
    "I1": "(a) the ledger equals the fold of facts and operations, exactly; (b) what is physically there differs from the ledger only "
    "by what no machine can see (a pack too many in one drop, theft, a miscount, a drop that the sensor missed), item by item; "
    "(c) after an accurate count with nothing under way both are equal",
    "I2": "both recomputations of the audit agree",
    "I3": "`seq` runs without a gap in every stream of every machine",
    "I4": "what the server has acknowledged survives a power cut of the server",
    "I5": "an order runs at most once, and never after its time to live",
    "I6": "30 s after the fault is healed, and 1 s more for each 100 facts of backlog, everything has caught up",
}

ROWS: Final = (
    Row("N1", "packets dropped both ways for a while, then healed", "vending goes on; the loss is noticed within 2 keep-alives; the backlog drains"),
    Row("N2", "the link flaps, 50 times 1-5 s", "I1-I6"),
    Row("N3", "only the acknowledgements are dropped", "duplicates arrive, none is booked twice"),
    Row("N4", "30 % of all packets lost, 5 min", "I1-I6"),
    Row("N6", "8 kbit/s with 1,000 facts behind", "presence is delayed by at most 60 s"),
    Row("N7", "TCP reset or cut in mid-packet, 100 times", "I1-I6"),
    Row("N8", "a black hole: TCP accepts, nothing answers", "no hung thread; a fresh connection within 60 s"),
    Row("N9", "1,000 machines reconnect at once", "all back within 60 s, with jitter; nothing lost"),
    Row("B1", "broker kill -9 every 1-3 s for 60 s, no persistence", "I1-I6"),
    Row("B2", "server away, 5,000 facts, the broker's queue limit 1,000", "nothing lost from end to end"),
    Row("B3", "the broker's state wiped", "subscribed again, sent again"),
    Row("B5", "broker stopped (SIGSTOP) for 60 s; broker's disk full", "machines unaffected"),
    Row("P1", "agent kill -9 at random, 50 times", "I1-I6"),
    Row("P2", "agent killed at the n-th write to disk, every n within a vend", "exactly one outcome, or one `in_doubt`"),
    Row("P3", "ingest kill -9 between each pair of steps of database and acknowledgement", "I1-I6"),
    Row("P4", "PostgreSQL kill -9 under load", "I4"),
    Row("P5", "1,000 poison messages; an exception inside a callback", "quarantined; the stream goes on"),
    Row("P6", "the whole history replayed 3 times, shuffled", "balances unchanged"),
    Row("S2", "outbox on a medium that drops or tears unsynced writes", "no acknowledged or committed fact lost"),
    Row("S3", "I/O error from the disk", "reopened, the fact looked up; no vending while unsure"),
    Row("S4", "disk full (small loop file system)", "out of service, never an uncounted vend"),
    Row("S5", "an old SD image restored", "fork detected, both histories kept, a new stream"),
    Row("S6", "one byte flipped in the outbox, 200 times", "detected, set aside, told"),
    Row("V1", "power cut at each step: intent, motor, sensor, result", "exactly one record, at worst `in_doubt`"),
    Row("V2", "jam, no drop, double drop, refill while offline", "each its own booking"),
    Row("T1", "the clock jumps: years back, hours ahead, at 3 a.m.", "order kept; limits and expiries run on monotonic time"),
    Row("C1", "an order doubled, late, reordered, across a reboot", "runs once; late is `expired`"),
    Row("X1", "machine 2 publishes as machine 1", "refused; nothing booked"),
    Row("X2", "machine 4 connects with machine 1's client id", "does not take its session over"),
    Row("O1", "phone operations of three visits arrive in any order, one after a later count", "the same balances per slot and lot"),
    Row("O2", "server restored from an older backup", "a new epoch; machines send again, phones offer theirs, the rest is listed"),
    Row("X3", "3,000 idle sockets", "a real machine connects within 1 s"),
    Row("X4", "1,000 wrong passwords; 20 requests at once at a limit's edge", "lockout; the limit holds"),
    Row("X5", "100,000 cases of API fuzzing and of envelope fuzzing", "no 5xx, no hang"),
)  # fmt: skip

UNTESTED: Final[dict[str, str]] = {}
"""Rows without a test of their own, with the reason."""

NAMED = re.compile(r"test_([nbpsvtcxo]\d)_")


def row_of(test_name: str) -> str | None:
    """The row that a test is named after."""
    found = NAMED.match(test_name)
    return found.group(1).upper() if found else None
