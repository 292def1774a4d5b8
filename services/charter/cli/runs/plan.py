"""`charter plan`: how policy, judge, preference model and worker share one GPU, before anything is loaded."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from charter.cli.output import JsonOption, console, emit_json, fail, print_table
from charter.cli.services import sharing_name
from charter.spec.checks import load_checked
from charter.spec.defaults import fill_defaults, with_engines
from charter.v1 import run_pb2

if TYPE_CHECKING:
    from charter.memory.plan import Plan

_MEANINGS = {
    run_pb2.GPU_SHARING_TOGETHER: "everything keeps its memory all the time",
    run_pb2.GPU_SHARING_SERVERS_SLEEP: "the services sleep while the worker fits or updates",
    run_pb2.GPU_SHARING_TAKE_TURNS: "the services sleep while the worker fits or updates, and the worker's models are "
    "in main memory while the services work",
}

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec that names models and engines.")]
GpuOption = Annotated[
    float | None,
    typer.Option("--gpu-gib", min=1, help="Memory of the GPU in GiB. Default: that of this machine's.", metavar="GIB"),
]


def plan(spec: SpecArgument, gpu_gib: GpuOption = None, as_json: JsonOption = False) -> None:
    """Show how services and worker share one GPU, and what to change if it is too small.

    The spec is checked as by `charter check`. Computed from the models' configs; nothing is loaded. `charter up` does
    so on a machine with a GPU. Exit code 1 when it does not fit.
    """
    filled = with_engines(fill_defaults(load_checked(spec, to_serve=True)))
    total = int(gpu_gib * 2**30) if gpu_gib else gpu_memory()
    if total is None:
        fail("this machine has no GPU: say how large one would be, as in `--gpu-gib 80`")
    if filled.policy.engine == "auto":
        filled.policy.engine = "vllm"
    planned, outs = planned_for(filled, total)
    if as_json:
        emit_json(_as_dict(planned, outs))
    else:
        show(planned, outs, console)
    if not planned.fits:
        raise typer.Exit(1)


def gpu_memory() -> int | None:
    """Bytes of this machine's first GPU; None without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def planned_for(spec: run_pb2.RunSpec, total: int) -> "tuple[Plan, list[tuple[tuple[str, ...], Plan]]]":
    """The plan of a filled spec, and ways out if it does not fit; fails when a model's config cannot be had."""
    from charter.memory.model_size import model_size
    from charter.memory.plan import models_of, plan, ways_out

    try:
        known = {model: model_size(model) for model in set(models_of(spec).values())}
    except (OSError, ValueError) as error:
        fail(error)
    sizes = {service: known[model] for service, model in models_of(spec).items()}
    planned = plan(spec, sizes, total)
    return planned, [] if planned.fits else ways_out(spec, sizes, total)


def show(planned: "Plan", outs: "list[tuple[tuple[str, ...], Plan]]", say: Console) -> None:
    """A table of who holds how much when; below it what to change when that is too much."""
    from charter.memory.plan import PHASES

    phases = [phase for phase in PHASES if planned.peaks[phase]]
    table = Table(title=f"One GPU of {_gib(planned.total)} GiB, {_gib(planned.usable)} of them planned with (GiB)")
    table.add_column("process")
    for phase in phases:
        table.add_column(phase, justify="right")
    table.add_column("what")
    for one in planned.holders:
        table.add_row(one.name, *(_gib(getattr(one, phase)) for phase in phases), one.what)
    table.add_section()
    table.add_row("all", *(_marked(planned.peaks[phase], planned.usable) for phase in phases), "")
    print_table(table, say)
    if planned.peaks["serving"]:
        say.print(
            f"{sharing_name(planned.sharing)}: {_MEANINGS[planned.sharing]}. Main memory for what is moved there and "
            f"for weights on their way: {_gib(planned.main_memory)} GiB."
        )
    else:
        say.print("The worker has the GPU to itself: the run asks no service for a model.")
    if planned.disk:
        say.print(f"The stages before RL leave {_gib(planned.disk)} GiB on the disk, besides their checkpoints.")
    if planned.fits:
        return
    say.print(
        "[red]It does not fit.[/] With these changes of the spec it would:"
        if outs
        else "[red]It does not fit[/], "
        "with no change that is known here: take a larger GPU, smaller models, or more than one machine."
    )
    for lines, changed in outs:
        peak = max(changed.peaks.values())
        say.print(
            f"  {' and '.join(lines)}  [dim]({sharing_name(changed.sharing)}, {_gib(peak)} GiB)[/]", soft_wrap=True
        )


def _marked(count: int, usable: int) -> str:
    return f"[red]{_gib(count)}[/]" if count > usable else f"[green]{_gib(count)}[/]"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"


def _as_dict(planned: "Plan", outs: "list[tuple[tuple[str, ...], Plan]]") -> dict[str, Any]:
    return {
        "total_bytes": planned.total,
        "usable_bytes": planned.usable,
        "gpu_sharing": sharing_name(planned.sharing),
        "fits": planned.fits,
        "peak_bytes": planned.peaks,
        "main_memory_bytes": planned.main_memory,
        "learned_folders_bytes": planned.disk,
        "processes": [asdict(one) for one in planned.holders],
        "settings": planned.settings,
        "ways_out": [
            {"changes": list(lines), "gpu_sharing": sharing_name(one.sharing), "peak_bytes": max(one.peaks.values())}
            for lines, one in outs
        ],
    }
