"""How fast a worker is.

Revision: 20261122c, after 20261122b
"""

import sqlalchemy as sa
from alembic import op

revision = "20261122c"
down_revision = "20261122b"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("gradient_gflops", sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("training_gflops", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "training_gflops")
    op.drop_column("workers", "gradient_gflops")
