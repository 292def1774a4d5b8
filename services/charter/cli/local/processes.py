"""Services as processes of this machine: their command lines, the wait until they serve, and their end."""

import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from charter.cli.calls import health
from charter.cli.services import HOST, Endpoint, Started
from charter.v1 import evaluation_pb2, judge_pb2, run_pb2

POLL_SECONDS = 0.5
# Longer than charter.rpc.lifecycle drains.
STOP_SECONDS = 45.0


def serve_command(service: str, at: Endpoint, options: Sequence[str]) -> list[str]:
    """`charter serve SERVICE` at these addresses."""
    listen = ["--host", HOST, "--port", port_of(at.main), "--metrics-port", port_of(at.metrics)]
    if at.control:
        listen += ["--control-port", port_of(at.control)]
    return [sys.executable, "-m", "charter.cli.main", "serve", service, *listen, *options]


def model_options(model: str, chat_template: str = "", eos_token: str = "") -> list[str]:
    """Of a service: its model, with a chat template where it has none of its own."""
    options = ["--model", model]
    if chat_template:
        options += ["--chat-template", chat_template]
        options += ["--eos-token", eos_token] if eos_token else []
    return options


def judge_options(judge: run_pb2.JudgeSpec | evaluation_pb2.EvaluationJudge, model: Sequence[str]) -> list[str]:
    """Of `charter serve judge`; ``model`` are those of its model."""
    options = [*model, "--engine", judge.engine, "--constitution", judge.constitution]
    if judge.method:
        method = judge_pb2.JudgingMethod.Name(judge.method).removeprefix("JUDGING_METHOD_").lower()
        options += ["--method", method]
    if judge.endpoint:
        options += ["--endpoint", judge.endpoint]
    options += limit_options(judge.limits)
    if judge.calibration:
        options += ["--calibration", judge.calibration]
    return options


def limit_options(limits: run_pb2.EndpointLimits) -> list[str]:
    """Bounds of an endpoint, as settings of its engine."""
    return [part for field, value in limits.ListFields() for part in ("--setting", f"{field.name}={value}")]


def engine_here(name: str) -> str:
    """What `auto` means here: vLLM where it is installed with a GPU, else the embedded engine."""
    if name != "auto":
        return name
    import torch

    return "vllm" if torch.cuda.is_available() and importlib.util.find_spec("vllm") else "transformers"


def port_of(address: str) -> str:
    """The port of host:port."""
    return address.rpartition(":")[2]


def wait_serving(services: dict[str, Started], say: Console) -> str:
    """Show the services until all are serving; the name of one that ended instead, or nothing.

    On a terminal that is a table that changes, elsewhere a line for each service when it serves or has ended.
    """
    begin = time.monotonic()
    states = dict.fromkeys(services, "starting")
    first = _table(services, states, begin)
    with Live(first, console=say, refresh_per_second=8) if say.is_terminal else nullcontext() as live:
        while True:
            before = dict(states)
            for name, one in services.items():
                if not one.process.alive():
                    states[name] = "ended"
                elif health(name, one.endpoint.main) == "SERVING":
                    states[name] = "serving"
            if live is not None:
                live.update(_table(services, states, begin))
            else:
                for name in (name for name, state in states.items() if state != before[name]):
                    at = f" at {services[name].endpoint.main}" if states[name] == "serving" else ""
                    say.print(f"{name}: {states[name]}{at}", soft_wrap=True)
            if failed := next((name for name, state in states.items() if state == "ended"), ""):
                return failed
            if set(states.values()) == {"serving"}:
                return ""
            time.sleep(POLL_SECONDS)


def _table(services: dict[str, Started], states: dict[str, str], begin: float) -> Table:
    table = Table.grid(Column(), Column(), Column(overflow="fold"), padding=(0, 2))
    for name, one in services.items():
        mark: RenderableType
        match states[name]:
            case "serving":
                mark, text = Text("✔", "green"), f"serving at {one.endpoint.main}"
            case "ended":
                mark, text = Text("✘", "red"), "ended"
            case _:
                mark, text = Spinner("dots"), f"loading, {time.monotonic() - begin:.0f} s; log in {one.log}"
        table.add_row(mark, name, text)
    return table


def stop_services(services: dict[str, Started], say: Console) -> None:
    """SIGTERM to all, and SIGKILL to those that do not end in time."""
    for one in services.values():
        one.process.stop()
    deadline = time.monotonic() + STOP_SECONDS
    while any(one.process.alive() for one in services.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for name, one in services.items():
        if one.process.alive():
            say.print(f"The {name} service did not stop in {STOP_SECONDS:.0f} s and is killed.")
            one.process.stop(force=True)
