"""Facts, movements and hourly readings in partitions by hash of the machine; indexes, so that no report reads all history."""

from alembic import op

revision = "0004"
down_revision = "0003"

PARTITIONS = 16
"""Each is small enough to vacuum and to keep its index in memory; together they still fit a small server."""

PARTITIONED = {
    "facts": ("dispenser_id", "dispenser_id, stream_no, seq"),
    "movements": ("place", "place, id"),
    "vitals_history": ("dispenser_id", "dispenser_id, hour"),
}
"""Table: what its rows are dealt out by, and its key."""

APPEND_ONLY = ("facts", "movements")

BEFORE = """
DROP INDEX ix_movements_booked_at, ix_movements_place_slot;
-- Ids are compared byte by byte, whatever the database's locale: quicker, and all movements of a cause stand together.
ALTER TABLE movements ALTER id TYPE TEXT COLLATE "C";
ALTER TABLE balances ALTER account TYPE TEXT COLLATE "C";
ALTER TABLE plans ALTER id TYPE TEXT COLLATE "C";
"""

INDEXES = """
CREATE INDEX ix_facts_quarantined ON facts (received_at) WHERE kind IS NULL;

CREATE INDEX ix_movements_booked_at ON movements (booked_at);
CREATE INDEX ix_movements_place_slot ON movements (place, slot);
-- Rows arrive nearly in the order of time: a summary of each block range is all that a report on some weeks needs.
CREATE INDEX ix_movements_at ON movements USING brin (at) WITH (pages_per_range = 16, autosummarize = on);

CREATE INDEX ix_vitals_history_hour ON vitals_history (hour);
CREATE INDEX ix_dead_letters_received_at ON dead_letters (received_at);

CREATE INDEX ix_operations_visit_id ON operations (visit_id) WHERE visit_id IS NOT NULL;
CREATE INDEX ix_operations_counted ON operations (dispenser_id, slot, least(entered_at, received_at)) WHERE kind = 'count';

CREATE INDEX ix_outgoing_newest ON outgoing (dispenser_id, channel, id);
CREATE INDEX ix_outgoing_orders ON outgoing (key) WHERE channel = 'orders';

CREATE INDEX ix_stops_closed ON stops (dispenser_id, changed_at) WHERE state = 'closed';
CREATE INDEX ix_stops_changed_at ON stops (changed_at);
CREATE INDEX ix_work_orders_day ON work_orders (day, id);
CREATE INDEX ix_work_orders_open ON work_orders (id) WHERE state IN ('released', 'picked');
CREATE INDEX ix_plans_created_at ON plans (created_at, id);
CREATE INDEX ix_plans_proposed ON plans (depot_id) WHERE state = 'proposed';

CREATE INDEX ix_job_runs_failed ON job_runs (due_at) WHERE error IS NOT NULL;
"""

# What was entered stays as it was entered, and is bound to a door session once.
OPERATIONS = """
CREATE TRIGGER operations_append_only BEFORE DELETE OR TRUNCATE ON operations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER operations_content BEFORE UPDATE OF operation_id, dispenser_id, visit_id, slot, kind, payload, session,
    step, entered_at, received_at, actor, van ON operations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER operations_bound_once BEFORE UPDATE ON operations
    FOR EACH ROW WHEN (OLD.state <> 'waiting') EXECUTE FUNCTION refuse_change();
"""


def partition(table: str, by: str, key: str) -> None:
    """Move a table's rows into partitions: its columns, checks and rows stay, its indexes are made anew."""
    op.execute(f"ALTER TABLE {table} RENAME TO {table}_before")
    op.execute(f"ALTER TABLE {table}_before RENAME CONSTRAINT pk_{table} TO pk_{table}_before")
    op.execute(
        f"CREATE TABLE {table} (LIKE {table}_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY HASH ({by})"
    )
    for number in range(PARTITIONS):
        op.execute(
            f"CREATE TABLE {table}_{number:02} PARTITION OF {table} "
            f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
        )
    op.execute(f"INSERT INTO {table} SELECT * FROM {table}_before")  # noqa: S608 - constants of ours
    op.execute(f"DROP TABLE {table}_before")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({key})")


def upgrade() -> None:
    """Move the rows, then forbid changes again: on each partition too, which can be named without its table."""
    op.execute(BEFORE)
    for table, (by, key) in PARTITIONED.items():
        partition(table, by, key)
    op.execute(INDEXES)
    for table in APPEND_ONLY:
        for name in (table, *(f"{table}_{number:02}" for number in range(PARTITIONS))):
            op.execute(
                f"CREATE TRIGGER {name}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {name} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )
    op.execute(OPERATIONS)
