"""Freed memory is kept: a tensor as large as one before costs no new pages. Or it is given back at once."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROBE = textwrap.dedent("""
    import resource
    import sys
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from charter.inference.local.cpu_memory import keep_freed_memory

    if sys.argv[1] == "keep":
        keep_freed_memory()

    def work():
        for _ in range(3):
            # Larger than what glibc keeps by itself.
            tensors = [torch.ones(10_000_000) for _ in range(4)]
            del tensors

    with ThreadPoolExecutor(1) as thread:
        # A freed tensor without a neighbour is too small for an aligned one like it.
        for _ in range(5):
            thread.submit(work).result()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        thread.submit(work).result()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
""")


RESIDENT = textwrap.dedent("""
    from pathlib import Path

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
""")

GAPS = RESIDENT + textwrap.dedent("""
    import sys

    import torch
    from charter.inference.local.cpu_memory import give_back_freed_memory, keep_freed_memory, trim_freed_memory

    keep_freed_memory()
    if sys.argv[1] == "give back":
        give_back_freed_memory()

    torch.ones(5_000_000).sum()
    before = resident()
    freed, used = [], []
    for _ in range(10):
        freed.append(torch.ones(5_000_000))
        used.append(torch.ones(100_000))
    freed.clear()
    if sys.argv[1] == "trim":
        trim_freed_memory()
    print(resident() - before)
""")

SERVED = RESIDENT + textwrap.dedent("""
    import asyncio
    import sys

    from charter.inference.local.engine import TransformersEngine

    async def main():
        before = resident()
        engine = TransformersEngine(sys.argv[1], device="cpu")
        await engine.start()
        print(resident() - before)
        for version in (1, 2):
            await engine.load_weights(Path(sys.argv[1], "model.safetensors"), version, "")
        print(resident() - before)
        await engine.stop()

    asyncio.run(main())
""")

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")


def test_tensors_that_come_again_cost_no_new_pages() -> None:
    faults = {}
    for way in ("keep", "as it comes"):
        done = subprocess.run([sys.executable, "-c", PROBE, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert 10 * faults["keep"] < faults["as it comes"]


def test_what_is_given_back_leaves_no_gaps_between_tensors_that_stay() -> None:
    held = {}
    for way in ("keep", "give back", "trim"):
        done = subprocess.run([sys.executable, "-c", GAPS, way], capture_output=True, text=True, check=True)
        held[way] = int(done.stdout)
    assert held["give back"] < 20_000_000
    assert held["trim"] < 20_000_000
    assert held["keep"] > 100_000_000


@pytest.mark.real_model
def test_a_replica_holds_its_model_once_before_and_after_new_weights(real_model: Path) -> None:
    """And the embedding, which the packed head holds too; no file, no weights that were served before."""
    done = subprocess.run([sys.executable, "-c", SERVED, str(real_model)], capture_output=True, text=True, check=True)
    size = (real_model / "model.safetensors").stat().st_size
    for held in map(int, done.stdout.split()):
        assert size < held < 1.6 * size
