"""What an operator watches: since when steps are ready, what workers use, who sweeps.

Revision: 20261123g, after 20261123f
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123g"
down_revision = "20261123f"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE steps SET ready_at = created_at WHERE state = 'ready'")
    op.add_column("workers", sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("load", sa.Double(), nullable=True))
    op.create_table(
        "locks",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_locks"),
    )


def downgrade() -> None:
    op.drop_table("locks")
    op.drop_column("workers", "load")
    op.drop_column("workers", "memory_used_bytes")
    op.drop_column("steps", "ready_at")
