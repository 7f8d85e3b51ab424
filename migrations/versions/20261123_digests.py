"""What a step was given and what it found, as digests.

Revision: 20261123h, after 20261123g
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123h"
down_revision = "20261123g"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("input_sha256", sa.String(), nullable=True))
    op.add_column("steps", sa.Column("output_sha256", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("steps", "output_sha256")
    op.drop_column("steps", "input_sha256")
