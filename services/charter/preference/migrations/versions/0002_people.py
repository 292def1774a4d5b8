"""Ratings of single answers, and comparisons that were taken back."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; nothing stored so far was rated or taken back."""
    for name in ("answer_a_rating", "answer_b_rating"):
        op.add_column("comparisons", sa.Column(name, sa.String(10)))
    op.add_column("comparisons", sa.Column("removed", sa.Boolean()))


def downgrade() -> None:
    """Drop them."""
    for name in ("answer_a_rating", "answer_b_rating", "removed"):
        op.drop_column("comparisons", name)
