"""What a machine is told at its installation; everything else comes in its desired state."""

from dataclasses import dataclass
from typing import Final

AGENT_VERSION: Final = "0.1.0"
DISTRICT_UTC_OFFSET_MIN: Final = 480


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The agent's own settings. Local days and hours follow `utc_offset_min`: a kiosk needs no time zone tables."""

    dispenser_id: str
    agent_version: str = AGENT_VERSION
    vitals_every_s: int = 3600
    stock_level_hour: int = 2
    utc_offset_min: int = DISTRICT_UTC_OFFSET_MIN
    vend_timeout_s: int = 30
    pending_facts_max: int = 20_000
    """Unacknowledged facts for which the card has room; nothing is dropped beyond, but STORAGE_FULL is told long before."""
    ack_timeout_s: int = 10
    silence_s_max: int = 50
    """Sending without any acknowledgement for this long means that the connection is not one."""
