"""``python -m charter.worker``: runs one run, or goes on with it. The trainer service starts it.

On a machine with several GPUs it becomes one process for each (CUDA_VISIBLE_DEVICES chooses), unless the services share
one GPU with it; under torchrun it is one of many. They all end alike.

Exit status: 0 finished, 1 failed (the last line of the log says why), 2 failed because of the spec, a file that it
names, a damaged file of the run, an environment variable, or too many items that could not be used, 3 cancelled by the
trainer or superseded by a newer attempt, 143 ended by a signal. A cluster starts a worker again after 1 and 143 and
never after 2 and 3 (deploy/base/worker.yaml).
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import torch
from google.protobuf import json_format

from charter.environment import EnvironmentVariableError
from charter.rpc.errors import ServiceError
from charter.rpc.logs import configure_logging, working_on
from charter.rpc.tracing import configure_tracing
from charter.runs.artifacts import Artifacts, RunFolderGoneError
from charter.spec.defaults import fill_defaults
from charter.spec.facts import servers_sleep
from charter.spec.load import spec_from_json
from charter.state_files import StateFileError
from charter.v1 import run_pb2
from charter.worker import metrics
from charter.worker.errors import Cancelled, RunError, SpecError, Superseded, TooManyFailuresError
from charter.worker.reporter import Reporter
from charter.worker.run import execute
from charter.worker.training import ranks, torchrun
from charter.worker.training.lead import Leader, follow

logger = logging.getLogger("charter.worker")

# Starting the worker again as it is would change nothing.
REFUSED_ERRORS = (SpecError, TooManyFailuresError, RunFolderGoneError, StateFileError, EnvironmentVariableError)

FINISHED, FAILED, REFUSED, STOPPED, TERMINATED = 0, 1, 2, 3, 128 + signal.SIGTERM


def main() -> int:
    """Read the command line, work, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m charter.worker", description=__doc__)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--attempt", type=int, default=1, help="how often the worker of this run was started")
    parser.add_argument("--trainer", default="", help="control address of the trainer, host:port; empty = no reports")
    parser.add_argument("--artifacts", type=Path, required=True, help="folder of the run")
    parser.add_argument("--spec", type=Path, required=True, help="the run's spec as protobuf JSON")
    options = parser.parse_args()
    configure_logging("worker")
    try:
        spec = fill_defaults(spec_from_json(options.spec.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        logger.error("cannot read the spec: %s", error)
        # A volume may come back; what the file says stays wrong.
        return FAILED if isinstance(error, OSError) else REFUSED
    gpus = 1 if servers_sleep(spec.services) else torch.cuda.device_count()
    if "WORLD_SIZE" not in os.environ and gpus > 1:
        return torchrun.main(["--standalone", f"--nproc-per-node={gpus}", "-m", "charter.worker", *sys.argv[1:]])
    ranks.join()
    if ranks.rank() > 0:
        ranks.use_cores()
        status = follow()
        return FAILED if status is None else status
    try:
        artifacts = Artifacts(options.artifacts, options.run_id)
        reporter = Reporter(artifacts, options.run_id, options.attempt, options.trainer)
        reporter.stop_on_signals()
        configure_tracing("worker")
        metrics.serve(options.run_id, spec)
    except (StateFileError, EnvironmentVariableError) as error:
        logger.error("%s", error)
        return REFUSED
    with working_on(run=options.run_id):
        return work(options.run_id, options.attempt, spec, artifacts, reporter)


def work(run_id: str, attempt: int, spec: run_pb2.RunSpec, artifacts: Artifacts, reporter: Reporter) -> int:
    """Do the run, deliver its last events, and turn how it ended into an exit status, of every rank."""
    leader = Leader(reporter)
    status = FAILED
    try:
        # Closed before the reason of a failure is logged, which is the log's last line: the trainer shows that.
        with reporter:
            _execute(run_id, attempt, spec, artifacts, reporter, leader)
        status = FINISHED
    except Cancelled:
        status = TERMINATED if reporter.terminated else STOPPED
    except Superseded as reason:
        logger.error("a newer worker has taken over this run: %s", reason)
        status = STOPPED
    except (RunError, RunFolderGoneError, ServiceError, StateFileError, EnvironmentVariableError) as error:
        # Worded for a person; the trainer shows the last line of this log.
        logger.error("%s", error)
        status = REFUSED if isinstance(error, REFUSED_ERRORS) else FAILED
    except Exception:
        logger.exception("the worker failed")
    finally:
        leader.end(status)
    return status


def _execute(
    run_id: str, attempt: int, spec: run_pb2.RunSpec, artifacts: Artifacts, reporter: Reporter, leader: Leader
) -> None:
    try:
        execute(run_id, attempt, spec, artifacts, reporter, leader)
    except Cancelled:
        reporter.report(0, 0, text="stopped on request")
        raise


if __name__ == "__main__":
    sys.exit(main())
