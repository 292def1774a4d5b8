"""`charter up` and `charter down`: the four services as background processes of this machine."""

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from charter.cli.local.monitoring import start_monitoring
from charter.cli.local.processes import (
    engine_here,
    judge_options,
    model_options,
    port_of,
    serve_command,
    stop_services,
    wait_serving,
)
from charter.cli.output import JsonOption, console, emit_json, errors, fail
from charter.cli.runs.plan import gpu_memory, planned_for, show
from charter.cli.runs.runs import cancel_all
from charter.cli.services import (
    DEFAULTS,
    HOST,
    JUDGE_CONTROL,
    Endpoint,
    Started,
    launch,
    remember,
    sharing_name,
    started,
)
from charter.spec.checks import load_checked
from charter.spec.defaults import fill_defaults, with_engines
from charter.spec.facts import needs_reinforcement, needs_store
from charter.v1 import run_pb2

DEMO = Path("examples/demo.yaml")

SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="Run spec that names the models, engines and the constitution.")
]
OffsetOption = Annotated[
    int, typer.Option(min=0, max=10_000, help="Added to every port, when the usual ones are taken.")
]
MonitoringOption = Annotated[
    bool, typer.Option("--monitoring", help="Start Prometheus too, and Grafana if it is installed, both already wired.")
]


def up(
    spec: SpecArgument = DEMO,
    port_offset: OffsetOption = 0,
    monitoring: MonitoringOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start the four services with the models of a spec; three when judge.engine is external.

    For a run that learns from files alone that is the trainer, which needs no other service then.
    They run in the background; `charter down` stops them. Logs are in CHARTER_HOME/logs.
    """
    say = errors if as_json else console
    filled = with_engines(fill_defaults(load_checked(spec, to_serve=True)))
    filled.policy.engine = engine_here(filled.policy.engine)
    wanted = _commands(filled, port_offset, *_gpu_shared(filled, say))
    known = {name: one for name, one in started().items() if one.process.alive()}
    for name, one in known.items():
        if name in wanted and one.command != wanted[name][0]:
            fail(f"the {name} service runs with other settings already; `charter down` stops it")
    missing = [name for name in wanted if name not in known]
    if missing:
        _start_services(missing, wanted, known, say)
        alone = [*wanted] == ["trainer"]
        serving = "The trainer, all that this run needs, is serving" if alone else "All services are serving"
        say.print(f"{serving}. Start a run with [bold]charter run {escape(str(spec))}[/].")
    else:
        say.print("All services run already. `charter status` shows them.")
    if monitoring:
        start_monitoring(port_offset, say)
    if as_json:
        emit_json({name: _described(one) for name, one in started().items()})


def _start_services(
    missing: list[str], wanted: dict[str, tuple[list[str], Endpoint]], known: dict[str, Started], say: Console
) -> None:
    """Start what is missing and wait until all serve; what was started is stopped again when one does not."""
    for name in missing:
        _refuse_taken_ports(name, wanted[name][1])
    running = dict(known)
    try:
        for name in missing:
            running[name] = launch(name, *wanted[name])
            remember(running)
        failed = wait_serving({name: running[name] for name in wanted}, say)
    except KeyboardInterrupt:
        say.print("Stopping what was started.")
        stop_services({name: running[name] for name in missing if name in running}, say)
        remember(known)
        raise
    if failed:
        ended = running[failed]
        stop_services({name: running[name] for name in missing}, say)
        remember(known)
        fail(f"the {failed} service ended before it was serving. The end of {ended.log}:\n{ended.last_words()}")


def down(as_json: JsonOption = False) -> None:
    """Stop everything that `charter up` started, Prometheus and Grafana too.

    Runs under way are cancelled first; `charter runs resume` continues them.
    """
    say = errors if as_json else console
    running = started()
    if not running:
        say.print("Nothing that `charter up` started is running.")
    else:
        if "trainer" in running and running["trainer"].process.alive():
            cancel_all()
        stop_services(running, say)
        remember({})
        say.print("All services are stopped.")
    if as_json:
        emit_json({"stopped": list(running)})


def _described(one: Started) -> dict[str, Any]:
    return {"pid": one.process.pid, "address": one.endpoint.main, "metrics": one.endpoint.metrics, "log": str(one.log)}


def _gpu_shared(spec: run_pb2.RunSpec, say: Console) -> tuple[run_pb2.GpuSharing.ValueType, dict[str, dict[str, Any]]]:
    """How the machine's GPU is shared, and the settings of the engines for that; without a GPU what the spec says."""
    total = gpu_memory()
    if total is None or not needs_reinforcement(spec):
        return spec.services.gpu_sharing, {}
    planned, outs = planned_for(spec, total)
    show(planned, outs, say)
    # A spec that forces an arrangement is taken by its word: what is planned are estimates.
    if not planned.fits and not spec.services.gpu_sharing:
        fail("the models do not fit on this GPU. `services: {gpu_sharing: take_turns}` in the spec tries all the same")
    return planned.sharing, planned.settings


def _commands(
    spec: run_pb2.RunSpec,
    offset: int,
    sharing: run_pb2.GpuSharing.ValueType,
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[list[str], Endpoint]]:
    """Command line and addresses of each service that is started; ``settings`` are the engines', by service."""
    judge = judge_command(spec)
    # A run without RL asks nobody but the trainer, and perhaps the store of comparisons.
    asks = needs_reinforcement(spec)
    policy = [*_model_options(spec, spec.policy.model), "--engine", spec.policy.engine]
    options = {
        "policy": [*policy, *_as_options(settings, "policy")] if asks else None,
        "judge": None if judge is None else [*judge, *_as_options(settings, "judge")],
        "preference": _model_options(spec, spec.preference_model.model) if needs_store(spec) else None,
        "trainer": ["--gpu-sharing", sharing_name(sharing)] if sharing else [],
    }
    sleeps = sharing > run_pb2.GPU_SHARING_TOGETHER
    commands = {}
    for name, given in options.items():
        if given is None:
            continue
        usual = DEFAULTS[name]
        if name == "judge" and sleeps and spec.judge.engine in ("transformers", "vllm", "fake"):
            usual = replace(usual, control=JUDGE_CONTROL)
        at = Endpoint(*(_shift(address, offset) for address in (usual.main, usual.control, usual.metrics)))
        commands[name] = (serve_command(name, at, given), at)
    return commands


def _model_options(spec: run_pb2.RunSpec, model: str) -> list[str]:
    """Of a service: its model, and the chat template of the policy where it is the same model."""
    same = model == spec.policy.model
    return model_options(model, spec.policy.chat_template if same else "", spec.policy.eos_token if same else "")


def _as_options(settings: Mapping[str, Mapping[str, Any]], service: str) -> list[str]:
    return [part for name, value in settings.get(service, {}).items() for part in ("--setting", f"{name}={value}")]


def judge_command(spec: run_pb2.RunSpec) -> list[str] | None:
    """Options of `charter serve judge`; None for a judge that somebody else serves."""
    if spec.judge.engine == "external" or not needs_reinforcement(spec):
        return None
    model, local = spec.judge.model, spec.judge.engine in ("transformers", "vllm")
    return judge_options(spec.judge, _model_options(spec, model) if local else model_options(model))


def _shift(address: str, offset: int) -> str:
    return f"{HOST}:{int(port_of(address)) + offset}" if address else ""


def _refuse_taken_ports(name: str, endpoint: Endpoint) -> None:
    for address in filter(None, (endpoint.main, endpoint.control, endpoint.metrics)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, int(port_of(address))))
            except OSError as error:
                fail(
                    f"the {name} service cannot listen on {address}: {error.strerror}. Stop what listens there "
                    f"(`ss -ltnp` shows it), or use other ports with --port-offset"
                )
