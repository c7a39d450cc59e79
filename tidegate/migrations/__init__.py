"""Alembic's side of the database: `env.py` serves both histories, `versions/` is tidegate's own.

A bubble's history is in the folder `migrations/` beside the bubble; `tidegate.migrate` runs both.
"""
