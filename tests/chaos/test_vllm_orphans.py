"""A vLLM server that is killed leaves nothing behind: an engine that stays would hold the memory of a GPU."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.processes import Process

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]
# The engine notices at once; on a busy machine its end takes longer.
END_SECONDS = 120.0


def test_the_engine_ends_with_a_killed_server(real_model: Path, tmp_path: Path) -> None:
    settings = ("dtype=float32", "kv_cache_gib=0.2", "max_context_tokens=512")
    arguments = (f"--model={real_model}", "--engine=vllm", *(f"--setting={one}" for one in settings))
    with Process(tmp_path, "policy", *arguments) as server:
        server.wait_serving()
        started = [one for one in server.descendants() if "VLLM" in " ".join(one.cmdline())]
        assert len(started) >= 2, "an engine and its worker"
        server.kill()
        _, alive = psutil.wait_procs(started, timeout=END_SECONDS)
    for one in alive:
        one.kill()
    assert not alive
