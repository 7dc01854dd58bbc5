"""Alembic's environment: the connection is handed in by `schema.upgrade`, never made here."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
