"""`charter report`: builds the report of a run again from its folder."""

from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from charter.cli.calls import channel_to
from charter.cli.output import JsonOption, console, emit_json, fail
from charter.cli.services import home
from charter.evaluation.report.verdict import verdict
from charter.rpc.channel import QUICK
from charter.rpc.errors import ServiceError
from charter.runs.folder import RunFolder, RunFolderError, is_run_folder, read_run_folder
from charter.spec.facts import needs_reinforcement
from charter.v1 import trainer_pb2, trainer_pb2_grpc

RunArgument = Annotated[str, typer.Argument(help="Id or name of a run, or the path of its folder.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the report in the browser.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write, instead of report.html in the run's folder.")
]


def report(
    run: RunArgument, open_: OpenOption = False, output: OutputOption = None, as_json: JsonOption = False
) -> None:
    """Build the report of a run, finished or not, and print where it is."""
    # Here, not at the top: every other command starts without matplotlib.
    from charter.evaluation.report.report import write_report

    folder = folder_of(run)
    try:
        contents = read_run_folder(folder)
        path = write_report(folder, output).resolve()
    except (RunFolderError, OSError) as error:
        fail(error)
    if as_json:
        emit_json(headline(contents) | {"report": str(path)})
    else:
        _tell(contents)
        console.print(str(path), markup=False, soft_wrap=True)
    if open_:
        typer.launch(path.as_uri())


def _tell(contents: RunFolder) -> None:
    """The losses of the stages before RL, and the verdict of a run with RL."""
    from charter.evaluation.report.learned import learned_sections

    for section in learned_sections(contents):
        if section.before is not None and section.after is not None:
            loss = f"{section.before:.3f} to {section.after:.3f} {section.unit}"
            console.print(f"{section.title}: held-out loss from {loss}.", markup=False)
    if contents.spec is None or needs_reinforcement(contents.spec):
        found = verdict(contents.evaluation, contents.judge_check, contents.preference_fit, fake=contents.fake)
        console.print(found.sentence, markup=False)
        if found.reward:
            console.print(found.reward, markup=False)


def headline(run: RunFolder) -> dict[str, Any]:
    """The figures that a run is told by; None for what it did not measure."""
    found = verdict(run.evaluation, run.judge_check, run.preference_fit, fake=run.fake)
    evaluation, judge = run.evaluation, run.judge_check
    return {
        "run": run.info.id if run.info else run.name,
        "verdict": found.sentence,
        "reward": found.reward or None,
        "caveats": list(found.caveats),
        "win_rate": evaluation.win_rate if evaluation else None,
        "win_rate_interval": [evaluation.win_rate_low, evaluation.win_rate_high] if evaluation else None,
        "wins": evaluation.wins if evaluation else None,
        "ties": evaluation.ties if evaluation else None,
        "losses": evaluation.losses if evaluation else None,
        "failures": evaluation.failures if evaluation else None,
        "judge_accuracy": judge.calibration.accuracy if judge else None,
        "judge_accuracy_interval": [judge.calibration.accuracy_low, judge.calibration.accuracy_high] if judge else None,
        "missing": list(run.missing),
    }


def folder_of(run: str) -> Path:
    """A path, or an id below CHARTER_HOME (then no service is needed), or whatever the trainer service finds."""
    for folder in (Path(run), home() / "runs" / run):
        if is_run_folder(folder):
            return folder
    if Path(run).name != run:
        fail(f"{run} is not the folder of a run: it holds neither spec.json nor run.json")
    try:
        with channel_to("trainer") as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            artifacts = stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run.artifacts
    except ServiceError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            fail(f"there is no run `{run}`, and no run folder of this name; `charter runs list` shows all runs")
        fail(f"{error} The path of a run's folder works without it.")
    if not is_run_folder(Path(artifacts)):
        fail(
            f"run `{run}` keeps its results in {artifacts}: that folder is gone, or on another machine; "
            f"`charter runs fetch {run}` brings a copy here"
        )
    return Path(artifacts)
