"""`charter demo`: the whole loop on one machine, from nothing to a report."""

import json
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli import run as run_command
from charter.cli import up as up_command
from charter.cli.demo_inputs import DemoInputError, prepare_labelled_pairs, prepare_model, prepare_prompts
from charter.cli.output import console, fail
from charter.cli.services import channel_to
from charter.rpc.channel import QUICK
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

ROOT = Path(__file__).resolve().parents[3]
SPEC = ROOT / "examples" / "demo.yaml"
HELPFUL_ANSWERS = ROOT / "examples" / "labelled" / "helpful_answers.jsonl"
# Where examples/demo.yaml looks for its inputs.
INPUTS = ROOT / ".charter"

PrepareOption = Annotated[bool, typer.Option("--prepare-only", help="Fetch the model and the data, and stop.")]
KeepOption = Annotated[bool, typer.Option("--keep", help="Leave the services running afterwards.")]


def demo(prepare_only: PrepareOption = False, keep: KeepOption = False) -> None:
    """Align a 135M model to the general constitution on this machine, and open the report.

    Fetches the model and the prompts (about 130 MB), starts the services, runs examples/demo.yaml, stops the services.
    """
    if not SPEC.is_file():
        fail(f"{SPEC} is missing: the demo runs in a clone of the repository")
    begin = time.monotonic()
    try:
        prepare_model(INPUTS / "models" / "smollm2-135m-instruct", console.print)
        prepare_prompts(INPUTS / "demo" / "prompts", console.print)
        prepare_labelled_pairs(INPUTS / "demo" / "labelled_pairs.jsonl", HELPFUL_ANSWERS, console.print)
    except DemoInputError as error:
        fail(escape(str(error)))
    if prepare_only:
        console.print(f"Model and data are in {INPUTS}.", soft_wrap=True)
        return
    prepared = time.monotonic()
    up_command.up(SPEC)
    started = time.monotonic()
    try:
        run_command.run(SPEC)
        finished = _newest_run()
    finally:
        if not keep:
            up_command.down()
    _show(finished, prepared - begin, started - prepared)


def _newest_run() -> run_pb2.Run:
    with channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        return stub.GetRun(trainer_pb2.GetRunRequest(run_id="demo"), timeout=QUICK).run


def _show(finished: run_pb2.Run, preparing: float, starting: float) -> None:
    folder = Path(finished.artifacts)
    phases = json.loads((folder / "run.json").read_text())["phase_seconds"]
    table = Table("phase", "seconds", title="Where the time went")
    table.columns[1].justify = "right"
    times = {"fetching model and data": preparing, "starting services": starting, **phases}
    for name, seconds in times.items():
        table.add_row(name.lower().replace("_", " "), f"{seconds:.0f}")
    table.add_section()
    table.add_row("total", f"{sum(times.values()):.0f}")
    console.print(table)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Aligned policy: {folder / 'policy'}", soft_wrap=True)
    webbrowser.open((folder / "report.html").as_uri())
