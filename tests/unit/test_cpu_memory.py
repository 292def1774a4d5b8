"""Freed memory is kept: a tensor as large as one before costs no new pages."""

import platform
import subprocess
import sys
import textwrap

import pytest

PROBE = textwrap.dedent("""
    import resource
    import sys
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from charter.inference.cpu_memory import keep_freed_memory

    if sys.argv[1] == "keep":
        keep_freed_memory()

    def work():
        for _ in range(3):
            tensors = [torch.ones(5_000_000) for _ in range(4)]
            del tensors

    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        thread.submit(work).result()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
""")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_tensors_that_come_again_cost_no_new_pages() -> None:
    faults = {}
    for way in ("keep", "as it comes"):
        done = subprocess.run([sys.executable, "-c", PROBE, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert 10 * faults["keep"] < faults["as it comes"]
