"""`charter demo`: the whole loop on one machine, from nothing to a report."""

import json
import sys
import time
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from charter.cli.calls import channel_to
from charter.cli.local import up as up_command
from charter.cli.local.demo_inputs import (
    DemoInputError,
    prepare_encoder,
    prepare_labelled_pairs,
    prepare_model,
    prepare_prompts,
)
from charter.cli.local.demo_judge import relevance_judge
from charter.cli.local.demo_verdict import show_verdict
from charter.cli.output import JsonOption, console, emit_json, fail, print_table
from charter.cli.runs import run as run_command
from charter.rpc.channel import QUICK
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

ROOT = Path(__file__).resolve().parents[4]
SPEC = ROOT / "examples" / "demo.yaml"
RELEVANCE_JUDGE = ROOT / "examples" / "relevance_judge.py"
HELPFUL_ANSWERS = ROOT / "examples" / "labelled" / "helpful_answers.jsonl"
# Where examples/demo.yaml looks for its inputs.
INPUTS = ROOT / ".charter"
ENCODER = INPUTS / "models" / "all-minilm-l6-v2"

PrepareOption = Annotated[bool, typer.Option("--prepare-only", help="Fetch the model and the data, and stop.")]
KeepOption = Annotated[bool, typer.Option("--keep", help="Leave the services running afterwards.")]


def demo(prepare_only: PrepareOption = False, keep: KeepOption = False, as_json: JsonOption = False) -> None:
    """Align a 135M model to the general constitution on this machine, and open the report.

    Fetches two models and data (about 220 MB), starts the services, runs examples/demo.yaml, stops the services.
    A second judge, which trains nothing, says at the end whether the model got better.
    """
    if not SPEC.is_file():
        fail(f"{SPEC} is missing: the demo runs in a clone of the repository")
    # With --json stdout holds the result and nothing else.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        seconds = {"fetching model and data": _timed(_prepare)}
        if prepare_only:
            console.print(f"Model and data are in {INPUTS}.", soft_wrap=True)
        else:
            seconds["starting services"] = _timed(lambda: up_command.up(SPEC))
            try:
                with relevance_judge(RELEVANCE_JUDGE, ENCODER):
                    run_command.run(SPEC)
                finished = _newest_run()
            finally:
                if not keep:
                    up_command.down()
            folder = Path(finished.artifacts)
            seconds |= json.loads((folder / "run.json").read_text())["phase_seconds"]
            _show(folder, seconds)
            webbrowser.open((folder / "report.html").as_uri())
    if as_json:
        emit_json({"inputs": str(INPUTS)} if prepare_only else run_command.as_dict(finished) | {"seconds": seconds})


def _prepare() -> None:
    try:
        prepare_model(INPUTS / "models" / "smollm2-135m-instruct", console.print)
        prepare_encoder(ENCODER, console.print)
        prepare_prompts(INPUTS / "demo" / "prompts", console.print)
        prepare_labelled_pairs(INPUTS / "demo" / "labelled_pairs.jsonl", HELPFUL_ANSWERS, console.print)
    except DemoInputError as error:
        fail(error)


def _timed(work: Callable[[], None]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _newest_run() -> run_pb2.Run:
    with channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        return stub.GetRun(trainer_pb2.GetRunRequest(run_id="demo"), timeout=QUICK).run


def _show(folder: Path, seconds: Mapping[str, float]) -> None:
    table = Table("phase", "seconds", title="Where the time went")
    table.columns[1].justify = "right"
    for name, spent in seconds.items():
        table.add_row(name.lower().replace("_", " "), f"{spent:.0f}")
    table.add_section()
    table.add_row("total", f"{sum(seconds.values()):.0f}")
    print_table(table)
    show_verdict(folder)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Aligned policy: {folder / 'policy'}", soft_wrap=True)
