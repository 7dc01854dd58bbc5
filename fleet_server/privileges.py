"""What the application may do with each table: one list, and what is not in it the application may not do at all.

Tables belong to the role that migrates. The server's login is a member of APPLICATION_ROLE and owns nothing, so that a
mistake in the server, or a stranger in its place, cannot rewrite what machines and people have reported.
"""

from collections.abc import Iterator
from typing import Final

APPLICATION_ROLE: Final = "dispenser_fleet_app"
"""A group: logins are made by whoever runs the database, and are given it."""

READ: Final = "SELECT"
APPEND: Final = "SELECT, INSERT"
KEEP: Final = "SELECT, INSERT, UPDATE"
ALL: Final = "SELECT, INSERT, UPDATE, DELETE"

PRIVILEGES: Final = {
    "alembic_version": READ,
    # What was reported and booked. An operation is bound to its door session later, and to nothing else.
    "facts": APPEND,
    "forked_facts": APPEND,
    "stream_gaps": APPEND,
    "movements": APPEND,
    "operations": f"{APPEND}, UPDATE (state, stream_no, seq)",
    "audit_log": APPEND,
    # Projections: they can be computed again.
    "balances": ALL,
    "door_sessions": ALL,
    "slot_books": ALL,
    # Machines and what is known of them.
    "dispensers": KEEP,
    "faults": KEEP,
    "lots": KEEP,
    "outgoing": KEEP,
    "presence": ALL,
    "products": KEEP,
    "server_state": KEEP,
    "slots": ALL,
    "streams": KEEP,
    "vitals": KEEP,
    # These expire.
    "dead_letters": "SELECT, INSERT, DELETE",
    "job_runs": ALL,
    "sessions": ALL,
    "sign_in_attempts": ALL,
    "vitals_history": ALL,
    # Plans, work and users.
    "clock_state": KEEP,
    "picks": KEEP,
    "plans": KEEP,
    "stops": KEEP,
    "users": KEEP,
    "work_orders": KEEP,
}


def grants(schema: str) -> Iterator[str]:
    """Yield the statements that give exactly this list, whatever was given before."""
    yield f'REVOKE ALL ON ALL TABLES IN SCHEMA "{schema}" FROM {APPLICATION_ROLE}'
    yield f'GRANT USAGE ON SCHEMA "{schema}" TO {APPLICATION_ROLE}'
    for table, privileges in PRIVILEGES.items():
        yield f'GRANT {privileges} ON "{schema}".{table} TO {APPLICATION_ROLE}'
