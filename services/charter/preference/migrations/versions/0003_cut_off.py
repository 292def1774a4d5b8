"""Whether the token limit ended an answer."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; of what is stored so far nobody knows."""
    for name in ("answer_a_cut_off", "answer_b_cut_off"):
        op.add_column("comparisons", sa.Column(name, sa.Boolean()))


def downgrade() -> None:
    """Drop them."""
    for name in ("answer_a_cut_off", "answer_b_cut_off"):
        op.drop_column("comparisons", name)
