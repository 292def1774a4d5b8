"""`charter status`: what is served where."""

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.calls import channel_to, health
from charter.cli.output import JsonOption, console, emit_json, print_table
from charter.cli.services import SERVICES, endpoint, started, trainer_alone
from charter.rpc.channel import QUICK
from charter.v1 import (
    judge_pb2,
    judge_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    preference_pb2,
    preference_pb2_grpc,
    run_pb2,
    trainer_pb2,
    trainer_pb2_grpc,
    types_pb2,
)

STYLES = {"SERVING": "green", "NOT_SERVING": "yellow", "NOT_STARTED": "dim"}


def status(as_json: JsonOption = False) -> None:
    """Show health, model and weight version of each service.

    The exit code is 0 when all are serving, or all that `charter up` started for a run that learns from files alone;
    else 1.
    """
    alone = trainer_alone()
    rows = [_describe(name) for name in SERVICES]
    for row in rows:
        if alone and row["service"] != "trainer" and row["health"] == "UNREACHABLE":
            row["health"] = "NOT_STARTED"
    missing = [row for row in rows if row["health"] not in ("SERVING", "NOT_STARTED")]
    if as_json:
        emit_json({row.pop("service"): row for row in [dict(row) for row in rows]})
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("SERVICE", "HEALTH", "ADDRESS", "MODEL", "ENGINE", "WEIGHTS"):
            table.add_column(heading)
        for row in rows:
            table.add_row(
                row["service"],
                f"[{STYLES.get(row['health'], 'red')}]{row['health'].replace('_', ' ').lower()}[/]",
                row["address"],
                # The folder's own name; --json has the whole path.
                Path(row["model"]).name or row["note"],
                row["engine"],
                "" if row["weight_version"] is None else f"version {row['weight_version']}",
            )
            for one in row["more_models"]:
                table.add_row("", "", "", f"{Path(one['model']).name} as {one['name']}", row["engine"], "version 0")
        print_table(table)
        for row in rows:
            if row["engine"] == "vllm" and row["not_compared"]:
                console.print(f"{row['service']}: vLLM is not compared with the model: {escape(row['not_compared'])}.")
        if missing:
            console.print("Not all services are serving. `charter up SPEC` starts those that are missing.")
        elif any(row["health"] == "NOT_STARTED" for row in rows):
            console.print(
                "A run that learns from files alone needs only the trainer. `charter up SPEC` starts what others need."
            )
    if missing:
        raise typer.Exit(1)


def _describe(name: str) -> dict[str, Any]:
    at = endpoint(name)
    known = started().get(name)
    row: dict[str, Any] = {
        "service": name,
        "health": health(name, at.main),
        "address": at.main,
        "control_address": at.control,
        "model": "",
        # Of the preference service, those behind the first, which Score calls by name.
        "more_models": [],
        "engine": "",
        # Why its numbers are not known to be the model's.
        "not_compared": "",
        "weight_version": None,
        "weight_digest": "",
        "note": "",
        "pid": known.process.pid if known and known.process.alive() else None,
        "log": str(known.log) if known else "",
    }
    if row["health"] != "SERVING":
        row["note"] = f"its process ended; see {known.log}" if known and not known.process.alive() else ""
    elif name == "trainer":
        running = _running_runs()
        row["note"] = f"running: {', '.join(running)}" if running else "no run is running"
    else:
        model, more = _models(name)
        row |= {"model": model.model, "engine": model.engine, "not_compared": model.not_compared}
        row |= {"weight_version": model.weight_version, "weight_digest": model.weight_digest}
        row["more_models"] = [{"name": one.name, "model": one.model.model} for one in more]
    return row


def _models(name: str) -> tuple[types_pb2.ModelInfo, list[preference_pb2.NamedModel]]:
    """The model of a service, and those of the preference service that are loaded beside it."""
    with channel_to(name) as channel:
        if name == "policy":
            policy = policy_pb2_grpc.PolicyServiceStub(channel)
            return policy.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK).model, []
        if name == "judge":
            judge = judge_pb2_grpc.JudgeServiceStub(channel)
            return judge.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK).model, []
        preference = preference_pb2_grpc.PreferenceServiceStub(channel)
        info = preference.GetModelInfo(preference_pb2.PreferenceServiceGetModelInfoRequest(), timeout=QUICK)
        return info.model, list(info.models)[1:]


def _running_runs() -> list[str]:
    with channel_to("trainer") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        runs = stub.ListRuns(trainer_pb2.ListRunsRequest(), timeout=QUICK).runs
    return [run.id for run in runs if run.state == run_pb2.RUN_STATE_RUNNING]
