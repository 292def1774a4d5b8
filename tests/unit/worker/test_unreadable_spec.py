"""A spec that cannot be read: its worker ends with a status that says whether starting it again could help."""

import subprocess
import sys
from pathlib import Path

import pytest
from charter.worker.__main__ import FAILED, REFUSED


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b'{"name": "a-run", "polcy": {}}', REFUSED, 'no field named \\"polcy\\"'),
        (b'{"name": "\xff"}', REFUSED, "can't decode byte 0xff"),
        # Volumes come and go.
        (None, FAILED, "No such file or directory"),
    ],
    ids=["unknown field", "not text", "no file"],
)
def test_only_what_may_be_better_next_time_is_tried_again(
    tmp_path: Path, content: bytes | None, status: int, reason: str
) -> None:
    file = tmp_path / "spec.json"
    if content is not None:
        file.write_bytes(content)
    command = [sys.executable, "-m", "charter.worker", "--run-id=a-run", f"--artifacts={tmp_path}", f"--spec={file}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == status, ended.stderr
    # The trainer shows the last line of the log.
    assert "cannot read the spec" in (last := ended.stderr.splitlines()[-1])
    assert reason in last
