"""A new epoch of the server: what machines and phones are told after a restore, and what must never be sent again."""

from datetime import datetime
from typing import Final

from fleet_server.auth.store import write_log
from fleet_server.clock import system_now
from fleet_server.database import Connection
from fleet_server.devices.store import read_state, write_state
from fleet_server.jobs.store import read_clock
from fleet_server.ledger.telling import tell_desired
from fleet_server.recovery import store

EPOCH_BEFORE_ALL: Final = 1
"""The epoch of a server that was never restored."""


def begin_epoch(connection: Connection, wall: datetime, *, after: int = 0, taken_at: datetime | None = None) -> int:
    """Begin an epoch higher than any before it; the database has just been put back to an earlier state.

    An epoch is the second of the wall clock in which it began, so that two restores of one backup, which know nothing of each
    other, differ; that second is over before this one counts. `after` names one known to have been used.
    """
    former = read_state(connection, "epoch") or EPOCH_BEFORE_ALL
    epoch = max(int(wall.timestamp()), former + 1, after + 1)
    now = read_clock(connection, wall).at(wall)
    write_state(connection, "epoch", epoch)
    restored = {
        "epoch": epoch, "taken_at": taken_at.isoformat() if taken_at else None, "restored_at": now.isoformat(),
        "cursors": store.read_cursors(connection),
    }  # fmt: skip
    write_state(connection, "restored", restored)
    # An order may have run since, and books and desired states of these numbers may be others on the machines.
    store.orders_unknown(connection, now)
    store.supersede_all(connection, now)
    store.forget_the_moment(connection)
    tell_desired(connection, None, now, again=True)
    write_log(connection, wall, "system:cli", "epoch_began", {"epoch": epoch, "taken_at": restored["taken_at"]})
    store.wait(connection, max(0.0, int(wall.timestamp()) + 1 - system_now().timestamp()))
    return epoch
