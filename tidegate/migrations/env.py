"""Alembic calls this for each command; `tidegate.migrate` passes the connection and the place of the version in attributes."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=attributes["version_table"],
    version_table_schema=attributes["version_schema"],
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
