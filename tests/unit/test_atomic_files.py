"""Files that are whole or not there, and the numbers that only content decides."""

from pathlib import Path

import pytest
from charter.atomic_files import replacing, write_bytes, write_json, write_text
from charter.hashing import stable_fraction, stable_number


def break_off(path: Path) -> None:
    with replacing(path, durable=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")


def test_a_broken_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "first\r\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError, match="stop"):
        break_off(path)
    assert path.read_bytes() == b"first\r\n"
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_never_change() -> None:
    """Stored splits and places were drawn by them. The first eight bytes of `printf 'a\\0b' | sha256sum`."""
    assert stable_number("a", "b") == 0x59B271AE1BBCB1D3
    assert stable_number("a", "b") != stable_number("a", "c") != stable_number("ab")
    assert 0 <= stable_fraction("a") < 1
