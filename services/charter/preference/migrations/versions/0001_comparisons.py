"""Comparisons, their principles, and answered requests."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "comparisons",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.JSON(), nullable=False),
        sa.Column("answer_a", sa.Text(), nullable=False),
        sa.Column("answer_a_model", sa.Text(), nullable=False),
        sa.Column("answer_a_weight_version", sa.BigInteger()),
        sa.Column("answer_b", sa.Text(), nullable=False),
        sa.Column("answer_b_model", sa.Text(), nullable=False),
        sa.Column("answer_b_weight_version", sa.BigInteger()),
        sa.Column("source", sa.String(20), nullable=False),
        sa.Column("labeller", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("probability_a", sa.Double()),
        sa.Column("judgements", sa.JSON(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("constitution_digest", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("split", sa.String(20), nullable=False),
        sa.Column("dimension", sa.Text(), nullable=False),
        sa.Column("rationale", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("id"),
    )
    op.create_index("ix_comparisons_run_id_sequence", "comparisons", ["run_id", "sequence"])
    op.create_table(
        "comparison_principles",
        sa.Column("principle_id", sa.Text(), primary_key=True),
        sa.Column("comparison", _SEQUENCE, sa.ForeignKey("comparisons.sequence"), primary_key=True),
    )
    op.create_table(
        "comparison_requests",
        sa.Column("request_id", sa.Text(), primary_key=True),
        sa.Column("added", sa.Integer(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("ids", sa.LargeBinary(), nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("comparison_requests")
    op.drop_table("comparison_principles")
    op.drop_table("comparisons")
