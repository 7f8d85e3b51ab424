"""Who trains a baseline that is not kept yet, so that nobody else does.

Revision: 20261123c, after 20261123b
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123c"
down_revision = "20261123b"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("baselines") as table:
        table.alter_column("output", existing_type=sa.JSON(), nullable=True)
        table.add_column(sa.Column("lease_token", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.execute("DELETE FROM baselines WHERE output IS NULL")
    with op.batch_alter_table("baselines") as table:
        table.drop_column("lease_token")
        table.alter_column("output", existing_type=sa.JSON(), nullable=False)
