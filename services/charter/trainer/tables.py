"""Tables of the trainer: runs and their events."""

from datetime import datetime
from pathlib import Path

from sqlalchemy import BigInteger, DateTime, ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from charter.storage.database import Schema

SCHEMA = Schema(Path(__file__).parent / "migrations", "trainer_version")


class Base(DeclarativeBase):
    """Metadata that the migrations are compared with."""


class RunRow(Base):
    """One run. Times are UTC."""

    __tablename__ = "runs"

    # Order of creation; pages of ListRuns continue from it.
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(200), unique=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    request_id: Mapped[str] = mapped_column(String(200), unique=True)
    # The filled spec as protobuf JSON; the client's files by their place in the trainer's folder of artifacts.
    spec: Mapped[str] = mapped_column(Text)
    # Name of charter.v1.RunState without its prefix.
    state: Mapped[str] = mapped_column(String(20), index=True)
    create_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    start_time: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    end_time: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    error: Mapped[str] = mapped_column(Text, default="")
    # Its folder, in the trainer's folder of artifacts; in full for one that lies elsewhere.
    artifacts: Mapped[str] = mapped_column(Text)
    # Which start of the worker is the current one; reports of earlier ones are refused.
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    # What the launcher needs to find the worker again; empty when there is none.
    worker: Mapped[str] = mapped_column(Text, default="")
    # The event with the highest sequence, serialized; empty before the first.
    last_event: Mapped[bytes] = mapped_column(LargeBinary, default=b"")


class EventRow(Base):
    """One event of a run."""

    __tablename__ = "run_events"

    run_number: Mapped[int] = mapped_column(ForeignKey("runs.number", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    # A serialized charter.v1.RunEvent.
    event: Mapped[bytes] = mapped_column(LargeBinary)
