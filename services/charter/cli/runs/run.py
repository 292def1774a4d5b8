"""`charter run`: start a run and show it until it ends."""

import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.markup import escape

from charter.cli import checks
from charter.cli.calls import channel_to
from charter.cli.cluster.remote import remote
from charter.cli.fetch import fetch
from charter.cli.output import INTERRUPTED, JsonOption, console, emit_json, errors, fail
from charter.cli.runs.progress import RunProgress, watch
from charter.cli.services import gpu_sharing, service_addresses
from charter.rpc.channel import QUICK
from charter.spec.checks import load_checked
from charter.spec.data_sources import data_sources
from charter.spec.defaults import with_addresses
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

# One message carries them (charter.rpc.channel.MAX_MESSAGE_BYTES).
MOST_FILE_BYTES = 48 * 1024 * 1024

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec, a YAML file. docs/cli.md describes it.")]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Start the run and return at once.")]


def run(spec: SpecArgument, detach: DetachOption = False, as_json: JsonOption = False) -> None:
    """Align a model as a spec says, and show how it goes.

    The services must be up. Ctrl-C cancels the run; it can be resumed. On a cluster (`charter --context CTX run SPEC`)
    the spec's files are sent along, and the report and the model are fetched at the end.
    """
    here, sent, files = spec_and_files(spec)
    if found := checks.problems(here):
        hint = "`charter doctor` says what is wrong with the cluster." if remote() else _local_hint(spec)
        fail("\n".join([*found, hint]))
    request = trainer_pb2.CreateRunRequest(request_id=str(uuid.uuid4()), spec=sent, files=files)
    with channel_to("trainer") as channel:
        created = trainer_pb2_grpc.TrainerServiceStub(channel).CreateRun(request, timeout=QUICK).run
    follow(created, detach, as_json)


def spec_and_files(path: Path) -> tuple[run_pb2.RunSpec, run_pb2.RunSpec, list[trainer_pb2.InputFile]]:
    """The checked spec in a file with the addresses as they are here, as it is sent, and the files that go with it."""
    there = remote()
    wanted = load_checked(path, there)
    here = run_pb2.RunSpec()
    here.CopyFrom(wanted)
    if there:
        # The checks go through the forwarded ports; the run itself takes the spec's addresses, or the trainer's.
        here.ClearField("services")
    here = with_addresses(here, service_addresses(gpu_sharing()))
    return here, (wanted if there else here), (_files_of(wanted) if there else [])


def _local_hint(spec: Path) -> str:
    return f"`charter up {spec}` starts the services that this spec needs; `charter down` stops others first."


def _files_of(spec: run_pb2.RunSpec) -> list[trainer_pb2.InputFile]:
    """Contents of the files of this machine that a spec names; other paths are the cluster's."""
    data = (source.place for _, source in data_sources(spec))
    named = [*data, spec.judge.constitution, spec.judge.calibration, spec.policy.chat_template]
    paths = [Path(path) for path in dict.fromkeys(named) if path and Path(path).is_file()]
    if sum(path.stat().st_size for path in paths) > MOST_FILE_BYTES:
        fail(
            f"the files of the spec have more than {MOST_FILE_BYTES >> 20} MiB together. Put them on the cluster's "
            "volume `artifacts` and name them by their path there (docs/kubernetes.md)"
        )
    return [trainer_pb2.InputFile(path=str(path), content=path.read_bytes()) for path in paths]


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
    with channel_to("trainer") as channel, RunProgress(screen, started.spec) as progress:
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
    if remote() and ended.state == run_pb2.RUN_STATE_SUCCEEDED:
        bring(ended.id, screen)
    if as_json:
        emit_json(as_dict(ended))
    else:
        _say_how_it_ended(ended)
    if ended.state != run_pb2.RUN_STATE_SUCCEEDED:
        raise typer.Exit(INTERRUPTED if interrupted else 1)


def bring(run_id: str, screen: Console) -> Path:
    """Fetch a run's report and model, and say where they are."""
    with channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        folder = fetch(stub, run_id, lambda path, size: screen.print(f"fetching {escape(path)}, {size:,} bytes"))
    screen.print(f"Report and model are in {escape(str(folder))}", soft_wrap=True)
    return folder


def as_dict(one: run_pb2.Run) -> dict[str, Any]:
    """A run as protobuf JSON with snake_case names."""
    return json_format.MessageToDict(one, preserving_proto_field_name=True)


def _say_how_it_ended(ended: run_pb2.Run) -> None:
    if ended.state == run_pb2.RUN_STATE_SUCCEEDED:
        console.print(f"[green]✔[/] Succeeded. Look at it with `charter report {ended.id}`.")
    elif ended.state == run_pb2.RUN_STATE_CANCELLED:
        console.print(f"Cancelled. `charter runs resume {ended.id}` continues it.")
    else:
        errors.print(f"[bold red]failed:[/] {escape(ended.error)}", soft_wrap=True)
