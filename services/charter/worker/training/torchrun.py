"""torchrun with the worker's exit status: ``python -m charter.worker.training.torchrun OPTIONS -m charter.worker ...``.

torchrun itself ends with 1 whatever its processes end with, and gives them half a minute to stop; a cluster tells by
the status whether to start them again, and a worker that is asked to stop saves first.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch.distributed.run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# How long the processes may take to stop; whoever asks them has a limit of its own, and kills.
_STOP_SECONDS = 3600


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit status of the process that failed first, 0 when all have finished, 128 + N after signal N."""
    # Its own words would come after the worker's, which say what went wrong.
    logging.disable(logging.ERROR)
    # Set, so that it does not warn that it sets it; the worker counts the cores itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        torch.distributed.run.main([f"--shutdown-timeout={_STOP_SECONDS}", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)  # noqa: T201
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
