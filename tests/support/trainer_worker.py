"""A worker that does nothing but report. What it does is chosen by the name of its run."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from charter.rpc.channel import QUICK, connect
from charter.spec.load import spec_from_json
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True)
    order = parser.parse_args()
    print(f"pid {os.getpid()}")  # noqa: T201 - for tests that kill it
    spec = spec_from_json(order.spec.read_text())

    with connect(order.trainer) as channel:
        reports = trainer_pb2_grpc.RunReportServiceStub(channel)

        def report(sequence: int, phase: run_pb2.Phase.ValueType, done: int, total: int) -> bool:
            """Report one event; True when the run was cancelled."""
            event = run_pb2.RunEvent(sequence=sequence, phase=phase, done=done, total=total, text=str(order.attempt))
            if phase == run_pb2.PHASE_PPO:
                event.step = done
                event.metrics.update({"reward_mean": 0.25 * done, "kl_k1": 0.5, "tokens_per_second": 100.0})
            request = trainer_pb2.ReportEventsRequest(run_id=order.run_id, attempt=order.attempt, events=[event])
            return reports.ReportEvents(request, timeout=QUICK, wait_for_ready=True).cancel_requested

        def finish(sequence: int) -> int:
            report(sequence, run_pb2.PHASE_REPORTING, 1, 1)
            return 0

        match spec.name:
            case "finishes":
                for step in (1, 2, 3):
                    report(step, run_pb2.PHASE_PPO, step, 3)
                return finish(4)
            case "crashes-once":
                if order.attempt == 1:
                    report(1, run_pb2.PHASE_PPO, 1, 3)
                    print("no room on the moon", file=sys.stderr)  # noqa: T201
                    return 3
                return finish(2)
            case "goes-on":
                # The first pod waits to be ended, the next one finishes.
                if not (begun := order.artifacts / "begun").exists():
                    begun.touch()
                    report(1, run_pb2.PHASE_PPO, 1, 3)
                    signal.pause()
                return finish(2)
            case "fails-always":
                report(1, run_pb2.PHASE_STARTING, 0, 1)
                print("no room on the moon", file=sys.stderr)  # noqa: T201
                return 1
            case "says-why":
                report(1, run_pb2.PHASE_STARTING, 0, 1)
                error = {"level": "error", "message": "all thumbs are up: add some down"}
                print(json.dumps(error), file=sys.stderr)  # noqa: T201
                return 2
            case "leaves-early":
                report(1, run_pb2.PHASE_PPO, 1, 3)
                return 0
            case "steps-until-cancelled":
                step = 1
                while not report(step, run_pb2.PHASE_PPO, step, 1000):
                    step += 1
                    time.sleep(0.02)
                return 0
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                report(1, run_pb2.PHASE_STARTING, 0, 1)
                while True:
                    signal.pause()
            case "idle":
                report(order.attempt, run_pb2.PHASE_STARTING, 0, 1)
                signal.pause()
    raise AssertionError(f"no behaviour named {spec.name}")


if __name__ == "__main__":
    sys.exit(main())
