"""What other features may ask of the machines, and nothing of how it is stored."""

from fleet_server.devices.machines import Cursor, Dispenser, Planogram, Presence, Product, StoredFact
from fleet_server.devices.store import (
    add_dispensers,
    add_products,
    add_slots,
    current_session,
    cursors,
    facts_page,
    get_dispenser,
    last_fact_at,
    latest_vitals,
    list_dispensers,
    list_products,
    planogram,
)
from fleet_server.devices.store import (
    all_presence as presence,
)

__all__ = [
    "Cursor",
    "Dispenser",
    "Planogram",
    "Presence",
    "Product",
    "StoredFact",
    "add_dispensers",
    "add_products",
    "add_slots",
    "current_session",
    "cursors",
    "facts_page",
    "get_dispenser",
    "last_fact_at",
    "latest_vitals",
    "list_dispensers",
    "list_products",
    "planogram",
    "presence",
]
