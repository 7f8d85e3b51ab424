"""How fast a worker is, by the side of what networks see.

Revision: 20261123a, after 20261122c
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123a"
down_revision = "20261122c"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("speeds", sa.JSON(), nullable=True))
    op.drop_column("workers", "training_gflops")
    op.drop_column("workers", "gradient_gflops")


def downgrade() -> None:
    op.add_column("workers", sa.Column("gradient_gflops", sa.Double(), nullable=True))
    op.add_column("workers", sa.Column("training_gflops", sa.Double(), nullable=True))
    op.drop_column("workers", "speeds")
