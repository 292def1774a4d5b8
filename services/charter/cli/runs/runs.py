"""`charter runs`: runs of the trainer service."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.markup import escape
from rich.table import Table

from charter.cli.calls import channel_to
from charter.cli.checks import problems
from charter.cli.output import JsonOption, console, emit_json, errors, fail, print_table
from charter.cli.runs.progress import ACTIVE, phase_name, watch
from charter.cli.runs.run import DetachOption, as_dict, bring, follow, spec_and_files
from charter.rpc.channel import BATCH, QUICK
from charter.spec.facts import used_parts
from charter.spec.load import spec_to_yaml
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of a run, or the name of the newest run with that name.")
]
CorrectedOption = Annotated[
    Path | None,
    typer.Option("--spec", metavar="SPEC", help="A corrected spec; what was done stays."),
]
LimitOption = Annotated[int, typer.Option(min=1, max=1000, help="Most runs to list.")]

STYLES = {"running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "yellow", "pending": "dim"}


def list_runs(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List runs, newest first."""
    with _trainer() as stub:
        runs = stub.ListRuns(trainer_pb2.ListRunsRequest(page_size=limit), timeout=QUICK).runs
    if as_json:
        emit_json([as_dict(run) for run in runs])
        return
    if not runs:
        console.print("There are no runs yet. `charter run SPEC` starts one.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("RUN", "STATE", "PHASE", "CREATED", "TIME"):
        table.add_column(heading)
    for run in runs:
        table.add_row(run.id, _state(run), _position(run), f"{_local(run):%Y-%m-%d %H:%M}", _duration(run))
    print_table(table)


def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show one run: its state, the newest numbers of each phase, and its spec."""
    with _trainer() as stub:
        found = stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run
        if as_json:
            emit_json(as_dict(found))
            return
        numbers = _numbers(stub, found)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("run", f"[bold]{found.id}[/]")
    table.add_row("state", _state(found))
    if found.error:
        table.add_row("error", escape(found.error))
    table.add_row("phase", _position(found))
    for name, (step, values) in numbers.items():
        table.add_row(name, f"step {step}" if step is not None else "")
        for metric, value in sorted(values.items()):
            table.add_row(f"  {escape(metric)}", f"{value:.4g}")
    table.add_row("created", f"{_local(found):%Y-%m-%d %H:%M:%S}")
    table.add_row("time", _duration(found))
    table.add_row("attempts", str(found.attempts))
    table.add_row("artifacts", escape(found.artifacts))
    print_table(table)
    console.print("\nspec", style="bold")
    console.print(escape(spec_to_yaml(used_parts(found.spec))), end="")


def _numbers(
    stub: trainer_pb2_grpc.TrainerServiceStub, run: run_pb2.Run
) -> dict[str, tuple[int | None, dict[str, float]]]:
    """Of each phase its newest step and numbers: those of its last step, and what is only measured now and then."""
    found: dict[str, tuple[int | None, dict[str, float]]] = {}
    for response in stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run.id), timeout=BATCH):
        if response.HasField("run"):
            # Behind the stored events comes the run, then what has not happened yet.
            break
        event = response.event
        if event.metrics:
            name = phase_name(event.phase, run.spec)
            step, earlier = found.get(name, (None, {}))
            found[name] = (event.step if event.HasField("step") else step, earlier | dict(event.metrics))
    return found


def watch_run(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run's progress until it ends. Leaving with Ctrl-C does not stop the run.

    With --json every event and change of state is one line of JSON.
    """
    with _trainer() as stub:
        found = stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run
        if not as_json:
            follow(found, detach=False, as_json=False, cancels=False)
            return
        for response in watch(stub, found.id):
            line = json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None)
            typer.echo(line)
            found = response.run if response.HasField("run") else found
    if found.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise typer.Exit(1)


def cancel(run: RunArgument, as_json: JsonOption = False) -> None:
    """Stop a run after its current operation, and wait until it has stopped."""
    with _trainer() as stub:
        stopped = _cancel(stub, run)
    if as_json:
        emit_json(as_dict(stopped))
    else:
        console.print(f"Run {stopped.id} is {_state(stopped)}. `charter runs resume {stopped.id}` continues it.")


def resume(
    run: RunArgument, spec: CorrectedOption = None, detach: DetachOption = False, as_json: JsonOption = False
) -> None:
    """Continue a failed or cancelled run where it stopped.

    That is its newest checkpoint, or before the first one the stage that was under way. --spec corrects its spec; what
    was done already stays, and a change that would make it wrong is refused. After the first step of RL all are.
    """
    request = trainer_pb2.ResumeRunRequest(run_id=run)
    with _trainer() as stub:
        found = stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run
        wanted = found.spec
        if spec is not None:
            wanted, sent, files = spec_and_files(spec)
            request.spec.CopyFrom(sent)
            request.files.extend(files)
        if wrong := problems(wanted):
            fail("\n".join([*wrong, "`charter up SPEC` starts the services that the run needs."]))
        resumed = stub.ResumeRun(request, timeout=QUICK).run
    follow(resumed, detach, as_json)


def fetch_run(run: RunArgument, as_json: JsonOption = False) -> None:
    """Copy a run's report, model and results from its trainer to CHARTER_HOME/runs.

    Checkpoints stay there.
    """
    with _trainer() as stub:
        found = stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run
    folder = bring(found.id, errors if as_json else console)
    if as_json:
        emit_json({"run": found.id, "folder": str(folder)})


def cancel_all() -> None:
    """Cancel every run under way and wait until all have stopped."""
    with _trainer() as stub:
        runs = stub.ListRuns(trainer_pb2.ListRunsRequest(page_size=1000), timeout=QUICK).runs
        for run in runs:
            if run.state in ACTIVE:
                console.print(f"Stopping run {run.id}; `charter runs resume {run.id}` will continue it.")
                _cancel(stub, run.id)


def _cancel(stub: trainer_pb2_grpc.TrainerServiceStub, run: str) -> run_pb2.Run:
    cancelled = stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run), timeout=QUICK).run
    for response in watch(stub, cancelled.id, cancelled.last_event.sequence):
        if response.HasField("run"):
            cancelled = response.run
    return cancelled


@contextmanager
def _trainer() -> Iterator[trainer_pb2_grpc.TrainerServiceStub]:
    with channel_to("trainer") as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


def _state(run: run_pb2.Run) -> str:
    name = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
    return f"[{STYLES.get(name, 'default')}]{name}[/]"


def _position(run: run_pb2.Run) -> str:
    event = run.last_event
    if not event.sequence:
        return ""
    count = f" {event.done}/{event.total}" if event.total else ""
    return phase_name(event.phase, run.spec) + count


def _local(run: run_pb2.Run) -> datetime:
    return run.create_time.ToDatetime(UTC).astimezone()


def _duration(run: run_pb2.Run) -> str:
    """Time from the first start to the end, or until now."""
    if not run.HasField("start_time"):
        return ""
    end = run.end_time.ToDatetime(UTC) if run.HasField("end_time") else datetime.now(UTC)
    return str(end - run.start_time.ToDatetime(UTC)).partition(".")[0]
