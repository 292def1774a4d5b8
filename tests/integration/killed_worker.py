"""A worker that kills itself with SIGKILL at the Nth entry into a function, in whatever thread.

``python -m tests.integration.killed_worker FILE:FUNCTION N`` and then the worker's own arguments. A generator is
entered each time it is asked for its next item.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from charter.worker.__main__ import main


def kill_at(file: str, function: str, count: int) -> None:
    """Arm this process."""
    left = count

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        code = frame.f_code
        if event == "call" and code.co_name == function and code.co_filename.endswith(f"/{file}"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(watch)
    sys.setprofile(watch)


if __name__ == "__main__":
    place, times = sys.argv[1:3]
    del sys.argv[1:3]
    in_file, name = place.split(":")
    kill_at(in_file, name, int(times))
    sys.exit(main())
