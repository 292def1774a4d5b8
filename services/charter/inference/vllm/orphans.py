"""Ends vLLM's processes with the server that started them.

A server that is killed cannot stop its engine, and vLLM's (0.32) would stay: idle, holding the GPU's memory that the
server's next start needs.
"""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Watch the process that started this one, and exit when it is gone. In a process of its own: nothing to watch."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait, args=(parent,), name="end-with-parent", daemon=True).start()


def _wait(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)
