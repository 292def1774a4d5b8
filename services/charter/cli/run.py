"""`charter run`: start a run and show it until it ends."""

import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.markup import escape

from charter.cli import checks
from charter.cli.output import JsonOption, console, emit_json, errors, fail
from charter.cli.progress import RunProgress, watch
from charter.cli.services import channel_to
from charter.rpc.channel import QUICK
from charter.spec.load import load_spec
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

INTERRUPTED = 130

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec, a YAML file. docs/cli.md describes it.")]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Start the run and return at once.")]


def run(spec: SpecArgument, detach: DetachOption = False, as_json: JsonOption = False) -> None:
    """Align a model as a spec says, and show how it goes.

    The services must be up. Ctrl-C cancels the run; it can be resumed.
    """
    wanted = load_spec(spec)
    checks.fill_addresses(wanted)
    if found := checks.problems(wanted):
        hint = f"`charter up {spec}` starts the services that this spec needs; `charter down` stops others first."
        fail(escape("\n".join([*found, hint])))
    request = trainer_pb2.CreateRunRequest(request_id=str(uuid.uuid4()), spec=wanted)
    with channel_to("trainer") as channel:
        created = trainer_pb2_grpc.TrainerServiceStub(channel).CreateRun(request, timeout=QUICK).run
    follow(created, detach, as_json)


def follow(started: run_pb2.Run, detach: bool, as_json: bool, cancels: bool = True) -> None:
    """Show a run until it ends; then end the command with 0 when it has succeeded, else with a non-zero code.

    With ``cancels`` the first Ctrl-C cancels the run and waits for it to stop.
    """
    screen = errors if as_json else console
    screen.print(f"Run [bold]{started.id}[/], artifacts in {escape(started.artifacts)}", soft_wrap=True)
    if detach:
        if as_json:
            emit_json(as_dict(started))
        else:
            console.print(f"Follow it with `charter runs watch {started.id}`.")
        return
    interrupted = False
    with channel_to("trainer") as channel, RunProgress(screen) as progress:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        # Of a run that was just resumed only what is new.
        last, ended = started.last_event.sequence if cancels and started.attempts > 1 else 0, started
        while True:
            try:
                for response in watch(stub, started.id, last):
                    if response.HasField("run"):
                        ended = response.run
                    else:
                        last = response.event.sequence
                        progress.show(response.event)
                break
            except KeyboardInterrupt:
                if interrupted or not cancels:
                    screen.print(f"The run is left to itself; `charter runs show {started.id}` tells how it goes.")
                    raise
                interrupted = True
                screen.print("Stopping after the current operation. Ctrl-C again does not wait for it.")
                stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=started.id), timeout=QUICK)
    if as_json:
        emit_json(as_dict(ended))
    else:
        _say_how_it_ended(ended)
    if ended.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise typer.Exit(INTERRUPTED if interrupted else 1)


def as_dict(one: run_pb2.Run) -> dict[str, Any]:
    """A run as protobuf JSON with snake_case names."""
    return json_format.MessageToDict(one, preserving_proto_field_name=True)


def _say_how_it_ended(ended: run_pb2.Run) -> None:
    if ended.state == run_pb2.RUN_STATE_SUCCEEDED:
        console.print(f"[green]✔[/] Succeeded. Look at it with `charter report {ended.id}`.")
    elif ended.state == run_pb2.RUN_STATE_CANCELLED:
        console.print(f"Cancelled. `charter runs resume {ended.id}` continues from the newest checkpoint.")
    else:
        errors.print(f"[bold red]failed:[/] {escape(ended.error)}", soft_wrap=True)
