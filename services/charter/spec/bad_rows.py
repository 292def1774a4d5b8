"""What a spec says of rows that cannot be used."""

from pathlib import Path

from charter.data.bad_rows import BadRows
from charter.v1 import run_pb2


def bad_rows_of(spec: run_pb2.RunSpec, left_out: Path | None = None) -> BadRows:
    """By ``failures.on_bad_row``. Those that are skipped are written to ``left_out``, where it is given."""
    skips = spec.failures.on_bad_row == run_pb2.ON_BAD_ROW_SKIP
    return BadRows("skip" if skips else "stop", left_out)
