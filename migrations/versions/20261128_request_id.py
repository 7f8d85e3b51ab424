"""Which request a step was made for: log lines of workers name it.

Revision: 20261128b, after 20261128a
"""

import sqlalchemy as sa
from alembic import op

revision = "20261128b"
down_revision = "20261128a"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("request_id", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("steps", "request_id")
