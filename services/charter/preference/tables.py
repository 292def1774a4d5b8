"""Tables of the preference service: comparisons, the principles they were judged by, and answered requests."""

from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from charter.storage.database import Schema

SCHEMA = Schema(Path(__file__).parent / "migrations", "preference_version")


class AnyText(sa.types.TypeDecorator[str]):
    """Text of any characters. PostgreSQL refuses NUL, which models do write: it is stored escaped.

    U+E000, a private character, is the escape: U+E000 0 stands for NUL, U+E000 1 for U+E000 itself.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Escape."""
        return None if value is None else value.replace("\ue000", "\ue0001").replace("\x00", "\ue0000")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Undo the escape."""
        return None if value is None else value.replace("\ue0000", "\x00").replace("\ue0001", "\ue000")


# SQLite numbers rows by itself only in a column of type INTEGER.
Sequence = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Base(DeclarativeBase):
    """Metadata that the migrations are compared with."""

    type_annotation_map = {str: AnyText, float: sa.Double}  # noqa: RUF012 (SQLAlchemy reads it from the class)


class ComparisonRow(Base):
    """One comparison, with the columns of ``charter.storage.comparisons.SCHEMA``. Times are UTC."""

    __tablename__ = "comparisons"

    # Order of storing; streams continue behind it.
    sequence: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    # sha256 of the content, in hex.
    id: Mapped[str] = mapped_column(sa.String(64), unique=True)
    # Bytes of the message, so that a page is bounded before it is read.
    size: Mapped[int]
    prompt: Mapped[list[Any]] = mapped_column(sa.JSON)
    answer_a: Mapped[str]
    answer_a_model: Mapped[str]
    answer_a_weight_version: Mapped[int | None] = mapped_column(sa.BigInteger)
    answer_a_rating: Mapped[str | None] = mapped_column(sa.String(10))
    answer_a_cut_off: Mapped[bool | None]
    answer_b: Mapped[str]
    answer_b_model: Mapped[str]
    answer_b_weight_version: Mapped[int | None] = mapped_column(sa.BigInteger)
    answer_b_rating: Mapped[str | None] = mapped_column(sa.String(10))
    answer_b_cut_off: Mapped[bool | None]
    source: Mapped[str] = mapped_column(sa.String(20))
    labeller: Mapped[str]
    outcome: Mapped[str] = mapped_column(sa.String(20))
    probability_a: Mapped[float | None]
    judgements: Mapped[list[Any]] = mapped_column(sa.JSON)
    method: Mapped[str]
    constitution_digest: Mapped[str]
    run_id: Mapped[str]
    split: Mapped[str] = mapped_column(sa.String(20))
    dimension: Mapped[str]
    rationale: Mapped[str]
    create_time: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    # Set when its labeller took it back; such a row is in no answer.
    removed: Mapped[bool | None]

    __table_args__ = (sa.Index("ix_comparisons_run_id_sequence", "run_id", "sequence"),)


class PrincipleRow(Base):
    """A comparison was judged by a principle. The whole judgement is in ``ComparisonRow.judgements``."""

    __tablename__ = "comparison_principles"

    principle_id: Mapped[str] = mapped_column(primary_key=True)
    comparison: Mapped[int] = mapped_column(Sequence, sa.ForeignKey("comparisons.sequence"), primary_key=True)


class RequestRow(Base):
    """A request that was answered, and its answer."""

    __tablename__ = "comparison_requests"

    request_id: Mapped[str] = mapped_column(primary_key=True)
    added: Mapped[int]
    duplicates: Mapped[int]
    # The ids in the order of the request, 32 bytes each.
    ids: Mapped[bytes] = mapped_column(sa.LargeBinary)
