"""Which database this is, and which blobs no row has kept since when.

Revision: 20261128a, after 20261123i
"""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "20261128a"
down_revision = "20261123i"
branch_labels = None
depends_on = None


def upgrade() -> None:
    identity = op.create_table(
        "identity",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identity"),
    )
    op.bulk_insert(identity, [{"id": uuid4()}])
    op.create_table(
        "orphans",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_orphans"),
    )


def downgrade() -> None:
    op.drop_table("orphans")
    op.drop_table("identity")
