"""Which step began a training on originals: what it has kept of it is gone on from.

And metrics look for the steps of the last hour alone.

Revision: 20261130a, after 20261128b
"""

import sqlalchemy as sa
from alembic import op

revision = "20261130a"
down_revision = "20261128b"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("baselines", sa.Column("step_id", sa.Uuid(), nullable=True))
    op.create_index(op.f("ix_steps_state_finished_at"), "steps", ["state", "finished_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_steps_state_finished_at"), table_name="steps")
    op.drop_column("baselines", "step_id")
