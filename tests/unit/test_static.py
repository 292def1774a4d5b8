"""Style and types of the whole project, as a test so that nobody forgets them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_passes(command: str) -> None:
    name, *arguments = command.split()
    result = subprocess.run([BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
