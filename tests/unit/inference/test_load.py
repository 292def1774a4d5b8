import subprocess
import sys
from pathlib import Path

import pytest
from charter.inference.load import create_engine


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="no engine 'vlm'; valid engines: transformers, vllm, openai, fake"):
        create_engine("vlm", "model")


async def test_a_missing_model_fails_at_the_start(tmp_path: Path) -> None:
    engine = create_engine("transformers", str(tmp_path / "nothing"))
    with pytest.raises(OSError, match="no model folder"):
        await engine.start()


def test_the_fake_engine_needs_no_torch() -> None:
    program = (
        "import sys; from charter.inference.load import create_engine; create_engine('fake', 'fake');"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"engine 'fake': .*'speed'; it knows: start_seconds, latency_seconds"):
        create_engine("fake", "fake", speed=1)
    with pytest.raises(ValueError, match=r"engine 'openai': missing a required .*'endpoint'"):
        create_engine("openai", "judge")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charter.inference.load.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="install vllm"):
        create_engine("vllm", "model")
