"""`charter top`: the services and the run, live in the terminal, from their own metrics pages."""

import time
from collections import deque
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from charter.cli.output import JsonOption, console, emit_json
from charter.cli.runs.progress import PHASES
from charter.cli.runs.readings import Reading, read, summary
from charter.v1 import run_pb2

# Values of the reward that are drawn.
HISTORY = 60
# Rates are taken over this long, because work comes in bursts, one a step.
WINDOW_SECONDS = 30.0
BARS = "▁▂▃▄▅▆▇█"


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one reading and end; --json implies it.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between readings.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show services, queues, throughput and the run's reward or loss, live. Ctrl-C ends it.

    Everything comes from the services' own metrics pages; no Prometheus is needed. `-` is what nobody says.
    The exit code of one reading is 0 when all services are serving, else 1.
    """
    readings = deque([read()])
    if once or as_json:
        time.sleep(interval)
        shown = summary(readings[0], read())
        if as_json:
            emit_json(shown)
        else:
            console.print(_screen(shown, []))
        if not all(one["serving"] for one in shown["services"].values()):
            raise typer.Exit(1)
        return
    drawn: deque[float] = deque(maxlen=HISTORY)
    last: tuple[str, str, float | None] | None = None
    with Live(Text("reading…"), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            shown = summary(earlier(readings, now := read()), now)
            run = shown["run"]
            if run:
                what, step, value = _to_draw(run)
                if value is not None and (run["id"], what, step) != last:
                    if last and last[:2] != (run["id"], what):
                        drawn.clear()
                    last = (run["id"], what, step)
                    drawn.append(value)
            live.update(_screen(shown, list(drawn)), refresh=True)


def _to_draw(run: dict[str, Any]) -> tuple[str, float | None, float | None]:
    """What is drawn of a run, its step and its value: the loss while a stage learns before RL, else the reward."""
    if learning := run["learning"]:
        return run["phase"], learning["step"], learning["loss"]
    return "reward", run["step"], run["reward"]


def earlier(readings: deque[Reading], now: Reading) -> Reading:
    """The reading to compare with: the newest that is ``WINDOW_SECONDS`` old, else the oldest. Keeps ``now``, too."""
    while len(readings) > 1 and now.time - readings[1].time >= WINDOW_SECONDS:
        readings.popleft()
    readings.append(now)
    return readings[0]


def _screen(shown: dict[str, Any], drawn: list[float]) -> RenderableType:
    return Group(
        _services(shown["services"]), Text(), _throughput(shown["per_second"]), Text(), _run(shown["run"], drawn)
    )


def _services(services: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("SERVICE", overflow="fold")
    table.add_column("STATE", overflow="fold")
    for heading in ("WEIGHTS", "WAITING", "CALLS/S", "FAILED/S", "MEMORY", "VERSION"):
        table.add_column(heading, justify="right", overflow="fold")
    for name, one in services.items():
        if not one["reached"]:
            table.add_row(name, Text("unreachable", "red"), *["-"] * 5)
            continue
        memory = one["memory_bytes"]
        table.add_row(
            name,
            Text("serving", "green") if one["serving"] else Text("not serving", "yellow"),
            _number(one["weight_version"], "{:.0f}"),
            _number(one["waiting"], "{:.0f}"),
            _number(one["calls_per_second"], "{:.1f}"),
            Text(_number(one["failed_per_second"], "{:.1f}"), "red" if one["failed_per_second"] else ""),
            "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
            one["version"],
        )
    return table


def _throughput(rates: dict[str, float | None]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rates:
        table.add_column(f"{name.replace('_', ' ').upper()}/S", justify="right", overflow="fold")
    table.add_row(*(_number(rate, "{:,.1f}") for rate in rates.values()))
    return table


def _run(run: dict[str, Any] | None, drawn: list[float]) -> RenderableType:
    if run is None:
        return Text("No run shows its metrics. `charter run SPEC` starts one.")
    table = Table.grid(padding=(0, 2))
    done = "" if run["phase_done"] is None else f", {run['phase_done']:.0%} done"
    table.add_row("run", Text(run["id"], "bold"))
    phase = run_pb2.Phase.Value(f"PHASE_{run['phase'] or 'UNSPECIFIED'}")
    table.add_row("phase", f"{PHASES.get(phase, '-')}{done}")
    if learning := run["learning"]:
        table.add_row(
            "step", _number(learning["step"], "{:.0f}") + "  " + _number(learning["step_seconds"], "{:.1f} s")
        )
        table.add_row("loss", Text.assemble(_number(learning["loss"], "{:.3f} nats"), "  ", (sparkline(drawn), "cyan")))
        table.add_row("held out", _number(learning["held_out_loss"], "{:.3f} nats"))
        table.add_row("rate", _number(learning["learning_rate"], "{:.2e}"))
        table.add_row("speed", _number(learning["tokens_per_second"], "{:,.0f} tokens/s"))
        return table
    table.add_row("agreement", _number(run["held_out_accuracy"], "{:.0%}"))
    table.add_row("step", _number(run["step"], "{:.0f}") + "  " + _number(run["step_seconds"], "{:.1f} s"))
    table.add_row("reward", Text.assemble(_number(run["reward"], "{:+.3f}"), "  ", (sparkline(drawn), "cyan")))
    table.add_row("KL", _number(run["kl"], "{:.3f} nats"))
    table.add_row("entropy", _number(run["entropy"], "{:.3f} nats"))
    table.add_row("length", _number(run["answer_tokens"], "{:.0f} tokens"))
    table.add_row("mismatch", _number(run["logprob_mismatch"], "{:.4f} nats"))
    table.add_row("weights", _number(run["weight_version"], "version {:.0f}"))
    return table


def sparkline(values: list[float]) -> str:
    """One bar a value, from the lowest to the highest; of equal values all are low."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
