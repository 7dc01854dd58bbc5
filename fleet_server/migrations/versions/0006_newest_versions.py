"""The newest version of what a machine was told, by one step into an index."""

from alembic import op

revision = "0006"
down_revision = "0005"

# By the version itself: by the row's id the planner rather walks back through all that was ever told to anybody.
INDEX = """
DROP INDEX ix_outgoing_newest;
CREATE INDEX ix_outgoing_newest ON outgoing (dispenser_id, channel, CAST(key AS bigint)) WHERE channel <> 'orders';
"""


def upgrade() -> None:
    """Replace it."""
    op.execute(INDEX)
