"""Alembic migrations, from the first table on. `env.py` runs them, `versions/` holds them."""
