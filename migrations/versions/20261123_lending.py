"""Which GPU a worker has, and to whose training it is lent.

Revision: 20261123i, after 20261123h
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123i"
down_revision = "20261123h"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("gpu", sa.String(), nullable=True))
    op.add_column("workers", sa.Column("lent_to", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "lent_to")
    op.drop_column("workers", "gpu")
