"""What of a step's progress outlives the process that made it, and where its attempt began.

Revision: 20261123b, after 20261123a
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123b"
down_revision = "20261123a"
branch_labels = None
depends_on = None

COLUMNS = ("progress_begun", "progress_kept")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("steps", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("steps", name)
