"""Plans, work orders, the clock and the runs of jobs."""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
CREATE TABLE clock_state (
    id SERIAL NOT NULL,
    mode TEXT NOT NULL,
    base TIMESTAMP WITH TIME ZONE NOT NULL,
    wall TIMESTAMP WITH TIME ZONE NOT NULL,
    speed FLOAT NOT NULL,
    CONSTRAINT pk_clock_state PRIMARY KEY (id)
);

CREATE TABLE job_runs (
    job TEXT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    began_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    error TEXT,
    CONSTRAINT pk_job_runs PRIMARY KEY (job, due_at)
);

CREATE TABLE plans (
    id TEXT NOT NULL,
    depot_id TEXT NOT NULL,
    day DATE NOT NULL,
    state TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    released_at TIMESTAMP WITH TIME ZONE,
    inputs JSONB NOT NULL,
    result JSONB NOT NULL,
    CONSTRAINT pk_plans PRIMARY KEY (id)
);

CREATE TABLE work_orders (
    id TEXT NOT NULL,
    plan_id TEXT NOT NULL,
    depot_id TEXT NOT NULL,
    day DATE NOT NULL,
    state TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_work_orders PRIMARY KEY (id)
);

CREATE TABLE stops (
    visit_id TEXT NOT NULL,
    work_order_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    dispenser_id TEXT NOT NULL,
    state TEXT NOT NULL,
    reasons JSONB NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    skipped_because TEXT,
    unlock_order_id TEXT,
    CONSTRAINT pk_stops PRIMARY KEY (visit_id),
    CONSTRAINT fk_stops_work_order_id FOREIGN KEY(work_order_id) REFERENCES work_orders (id)
);

CREATE INDEX ix_stops_dispenser_id ON stops (dispenser_id);

CREATE INDEX ix_stops_work_order_id ON stops (work_order_id);

CREATE TABLE picks (
    visit_id TEXT NOT NULL,
    slot INTEGER NOT NULL,
    product TEXT NOT NULL,
    lot TEXT NOT NULL,
    planned INTEGER NOT NULL,
    picked INTEGER,
    CONSTRAINT pk_picks PRIMARY KEY (visit_id, slot, product, lot),
    CONSTRAINT fk_picks_visit_id FOREIGN KEY(visit_id) REFERENCES stops (visit_id)
);
"""


def upgrade() -> None:
    """Create them."""
    op.execute(TABLES)
