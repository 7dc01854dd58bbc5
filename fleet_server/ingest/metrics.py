"""Prometheus metrics of ingest."""

from time import monotonic

from prometheus_client import Counter, Gauge

from fleet_server.ingest.apply import Tally
from fleet_server.ingest.trouble import Teller

__all__ = ["DEAD_LETTERS", "QUEUE", "count", "monotonic"]

FACTS = Counter("fleet_ingest_facts_total", "Facts committed")
DUPLICATES = Counter("fleet_ingest_duplicates_total", "Facts that came again with the same bytes")
GAPS = Counter("fleet_ingest_gaps_total", "Batches beyond the cursor of their stream")
FORKS = Counter("fleet_ingest_forks_total", "Batches of another history than the one stored")
QUARANTINED = Counter("fleet_ingest_quarantined_total", "Facts that no version can read")
DEAD_LETTERS = Counter("fleet_ingest_dead_letters_total", "Messages that could not be read or applied")
DROPPED = Counter("fleet_ingest_dropped_total", "Messages of machines that sent more than their share; they send again")
QUEUE = Gauge("fleet_ingest_queue_reads", "Reads of the broker's socket that wait for the ingest worker")


TELLER = Teller()


def count(tally: Tally, dead: int) -> None:
    """Add what one transaction did, and log what went wrong."""
    FACTS.inc(tally.facts)
    DUPLICATES.inc(tally.duplicates)
    GAPS.inc(tally.gaps)
    FORKS.inc(tally.forks)
    QUARANTINED.inc(tally.quarantined)
    DEAD_LETTERS.inc(tally.dead_letters + dead)
    DROPPED.inc(tally.dropped)
    TELLER.tell(tally.troubles, monotonic())
