"""Structured logs: one JSON object a line on stderr, with run, step and trace, and the fields given as `extra`."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

from charter.rpc import tracing

# What work belongs to, for every log line about it. Clients send it along as metadata, so services log it too.
_FIELDS = ("run", "step")
_METADATA_PREFIX = "charter-"
_MOST_CHARACTERS = 200
_work: ContextVar[Mapping[str, str]] = ContextVar("charter_work", default=MappingProxyType({}))

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_work.get(),
            **tracing.log_fields(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(service: str) -> None:
    """Send every log of this process to stderr as JSON lines.

    Call it before transformers is imported: its progress bars are no log lines and are turned off here.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


@contextmanager
def working_on(**fields: str) -> Iterator[None]:
    """Log lines inside the block, here and in the services that it calls, name this run and step."""
    token = _work.set({**_work.get(), **fields})
    try:
        yield
    finally:
        _work.reset(token)


def call_metadata() -> dict[str, str]:
    """The present run and step as gRPC metadata."""
    return {f"{_METADATA_PREFIX}{name}": value for name, value in _work.get().items()}


def take_call_metadata(metadata: Mapping[str, str]) -> None:
    """Log lines of this call's task name the run and step of the caller."""
    keys = {name: f"{_METADATA_PREFIX}{name}" for name in _FIELDS}
    _work.set({name: metadata[key][:_MOST_CHARACTERS] for name, key in keys.items() if key in metadata})
