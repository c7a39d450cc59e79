"""Alembic calls this for each command; `tidegate.migrate` passes the connection and the tables in attributes."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=attributes["metadata"],
    version_table=attributes["version_table"],
    version_table_schema=attributes["version_schema"],
    compare_type=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
