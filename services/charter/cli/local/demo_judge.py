"""The demo's second judge: a sentence encoder, served by examples/relevance_judge.py while the demo runs."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from charter.cli.calls import health
from charter.cli.local.processes import POLL_SECONDS, stop_services
from charter.cli.output import console, fail
from charter.cli.services import HOST, Endpoint, launch

# Where examples/demo.yaml looks for it.
ADDRESS = f"{HOST}:50055"
NAME = "relevance-judge"


@contextmanager
def relevance_judge(script: Path, encoder: Path) -> Iterator[None]:
    """Serve the judge from before the block to its end; ends the command when it cannot be served."""
    if health("judge", ADDRESS) != "UNREACHABLE":
        fail(f"something listens on {ADDRESS} already, where the demo's second judge is to be served: stop it first")
    judge = launch(NAME, [sys.executable, str(script), str(encoder), ADDRESS], Endpoint(ADDRESS, "", ""))
    try:
        while health("judge", ADDRESS) != "SERVING":
            if not judge.process.alive():
                fail(f"the demo's second judge ended before it was serving:\n{judge.last_words()}")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        stop_services({NAME: judge}, console)
