"""Versions and limits of the protocol: every number a peer may rely on stands here."""

from typing import Final

PROTOCOL_VERSION: Final = 1
"""Written as ``v`` into every batch header, every fact and every message."""

FACT_BYTES_MAX: Final = 4 * 1024
BATCH_FACTS_MAX: Final = 100
BATCH_BYTES_MAX: Final = 16 * 1024
MESSAGE_BYTES_MAX: Final = 64 * 1024
"""The largest MQTT payload that either side accepts on any topic."""

PACKS_MAX: Final = 10_000
"""Of one lot in one place of a slot, or counted in one."""
DESIRED_LOTS_MAX: Final = 300
QUEUE_LOTS_MAX: Final = 20
"""Of one slot; adjacent packs of one lot count once."""

STREAM_SEQ_MAX: Final = 2**63 - 1
KEPT_FACT_DAYS: Final = 90
"""An acknowledged fact stays on the machine this long, so that a restored server can ask for it again."""
