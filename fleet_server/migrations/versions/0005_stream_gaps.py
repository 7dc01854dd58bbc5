"""Facts that no machine has any more: a hole in its stream, with the digest from which the chain goes on."""

from alembic import op

revision = "0005"
down_revision = "0004"

TABLES = """
CREATE TABLE stream_gaps (
    dispenser_id TEXT NOT NULL,
    stream_no INTEGER NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    noted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_stream_gaps PRIMARY KEY (dispenser_id, stream_no, first_seq),
    CONSTRAINT ck_stream_gaps_first_to_last CHECK (first_seq <= last_seq)
);

CREATE TRIGGER stream_gaps_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stream_gaps
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    """Create them."""
    op.execute(TABLES)
