"""What owners take turns by: whom each queue has served when, limits and priorities.

Revision: 20261123e, after 20261123d
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123e"
down_revision = "20261123d"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["owners.id"], name="fk_turns_owner_id_owners", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "queue", name="pk_turns"),
    )
    op.add_column("owners", sa.Column("max_running", sa.Integer(), nullable=True))
    op.add_column(
        "protections", sa.Column("priority", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("protections", "priority")
    op.drop_column("owners", "max_running")
    op.drop_table("turns")
