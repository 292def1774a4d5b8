"""`charter compare status`: how far a study is."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.output import JsonOption, console, emit_json, fail, print_table

if TYPE_CHECKING:
    from charter.study.folder import StudyFolder, StudyRun
    from charter.study.spec import StudySpec
    from charter.v1 import run_pb2

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study, its folder, or its spec.")]


def status(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show the runs of a study, its labels and its measurement.

    Read from the study's folder; of runs that are under way the trainer is asked, if it is up.
    """
    # Here, not at the top: who asks for help waits for none of it.
    from charter.cli.finding import study_of

    folder = study_of(name)
    spec = folder.read_spec()
    if spec is None:
        fail(f"nothing is stored in {folder.path}: `charter compare STUDY` begins it")
    runs = folder.read_runs()
    live = _live(runs)
    if as_json:
        emit_json(_as_json(spec, folder, runs))
        return
    print_table(_table(spec, runs, live), console)
    for line in _lines(spec, folder, runs, live):
        console.print(line, soft_wrap=True)


def _live(runs: "Mapping[tuple[str, int], StudyRun]") -> "dict[tuple[str, int], run_pb2.Run]":
    """What the trainer says of runs that had not ended when they were last noted; nothing where it is away."""
    import grpc

    from charter.cli.calls import channel_to, health
    from charter.cli.services import endpoint
    from charter.rpc.channel import QUICK
    from charter.v1 import trainer_pb2, trainer_pb2_grpc

    waiting = {key: run for key, run in runs.items() if run.run and not run.ended}
    if not waiting or health("trainer", endpoint("trainer").main) != "SERVING":
        return {}
    found = {}
    with channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        for key, run in waiting.items():
            try:
                found[key] = stub.GetRun(trainer_pb2.GetRunRequest(run_id=run.run), timeout=QUICK).run
            except grpc.RpcError:
                # Another trainer than the one that has it.
                continue
    return found


def _table(
    spec: "StudySpec", runs: "Mapping[tuple[str, int], StudyRun]", live: "Mapping[tuple[str, int], run_pb2.Run]"
) -> Table:
    table = Table(title=f"Study {spec.name}")
    table.add_column("arm")
    for seed in spec.seeds:
        table.add_column(f"seed {seed}")
    for arm in spec.arms:
        cells = (_cell(runs.get((arm.name, seed)), live.get((arm.name, seed))) for seed in spec.seeds)
        after = f" [dim](after {escape(arm.after)})[/]" if arm.after else ""
        table.add_row(f"{escape(arm.name)}{after}", *cells)
    return table


def _cell(run: "StudyRun | None", live: "run_pb2.Run | None") -> str:
    """Of one run: its state, and where it is or how long it took."""
    from charter.cli.runs.progress import phase_name
    from charter.cli.study.words import duration
    from charter.v1 import run_pb2

    if run is None:
        return "[dim]not begun[/]"
    if run.succeeded:
        return f"[green]✔[/] {duration(run.seconds)}"
    if live is not None and live.state in (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING):
        event = live.last_event
        count = f" {event.done}/{event.total}" if event.total else ""
        return f"{phase_name(event.phase, live.spec)}{count}"
    state = run_pb2.RunState.Name(live.state).removeprefix("RUN_STATE_") if live is not None else run.state
    return f"[red]{state.lower()}[/]" if state in ("FAILED", "CANCELLED") else (state or "pending").lower()


def _lines(
    spec: "StudySpec",
    folder: "StudyFolder",
    runs: "Mapping[tuple[str, int], StudyRun]",
    live: "Mapping[tuple[str, int], run_pb2.Run]",
) -> list[str]:
    from charter.cli.study.words import duration
    from charter.study.label_log import labelled
    from charter.study.runs import all_runs
    from charter.study.spec import labellers

    bound = f" of {spec.hours:g} h" if spec.HasField("hours") else ""
    lines = []
    if asked := labellers(spec):
        counts = labelled(spec, folder)
        said = [f"{escape(name)} {counts[name][0]}/{counts[name][1]}" for name in asked]
        whole = "" if folder.labelled.exists() else " (not whole yet)"
        lines.append(f"labels{whole}: {', '.join(said)}")
    done = sum(run.succeeded for run in runs.values())
    lines.append(f"runs: {done} of {len(all_runs(spec))} done")
    lines += [
        f"  {run.run or f'{run.arm}, seed {run.seed}'} {run.state.lower()}: {escape(run.error)}"
        for run in runs.values()
        if run.error and run.key not in live
    ]
    lines.append(f"measurement: {_measured(folder)}")
    lines.append(f"at work for {duration(folder.seconds_worked())}{bound}")
    lines.append(f"next: {_next(spec, folder, runs, live)}")
    return lines


def _measured(folder: "StudyFolder") -> str:
    from charter.jsonl import whole_lines

    evaluation = folder.evaluation
    if not evaluation.spec.exists():
        return "not begun"
    # Another command may be adding to them.
    logs = (evaluation.answers, evaluation.judgements)
    answers, judgements = (len(whole_lines(log)) if log.exists() else 0 for log in logs)
    done = f"; figures in {escape(str(folder.report))}" if folder.report.exists() else ""
    return f"{answers} answers, {judgements} judgements{done}"


def _next(
    spec: "StudySpec",
    folder: "StudyFolder",
    runs: "Mapping[tuple[str, int], StudyRun]",
    live: "Mapping[tuple[str, int], run_pb2.Run]",
) -> str:
    from charter.study.runs import runs_left
    from charter.study.spec import labellers

    if live:
        return "the runs under way; `charter compare STUDY` follows them"
    if labellers(spec) and not folder.labelled.exists():
        return "labels; `charter compare STUDY` goes on"
    for arm, seed in runs_left(spec, runs):
        return f"{escape(arm)}, seed {seed}; `charter compare STUDY` goes on"
    return "nothing" if folder.report.exists() else "the measurement; `charter compare STUDY` goes on"


def _as_json(spec: "StudySpec", folder: "StudyFolder", runs: "Mapping[tuple[str, int], StudyRun]") -> dict[str, Any]:
    from charter.study.points import missing_of

    return {
        "name": spec.name,
        "folder": str(folder.path),
        "labelled": folder.labelled.exists(),
        "runs": [asdict(run) for run in runs.values()],
        "missing": [{"arm": arm, "seed": seed, "why": why} for arm, seed, why in missing_of(spec, runs)],
        "seconds": folder.seconds_worked(),
        "report": str(folder.report) if folder.report.exists() else None,
    }
