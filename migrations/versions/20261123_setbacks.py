"""How often in a row an attempt was broken off, since when, and until when the next one waits.

Revision: 20261123d, after 20261123c
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123d"
down_revision = "20261123c"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("setbacks", sa.Integer(), nullable=False, server_default="0"))
    for name in ("setback_at", "not_before"):
        op.add_column("steps", sa.Column(name, sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for name in ("setbacks", "setback_at", "not_before"):
        op.drop_column("steps", name)
