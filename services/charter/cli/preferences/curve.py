"""``charter preferences curve``: would more labels help?"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.calls import channel_to
from charter.cli.finding import run_id_of
from charter.cli.output import JsonOption, console, emit_json, errors, fail, print_table
from charter.cli.preferences.preferences import (
    AddressOption,
    DimensionOption,
    RunOption,
    Source,
    SourceOption,
    chosen_comparisons,
    stream_comparisons,
)
from charter.rpc.errors import ServiceError
from charter.v1 import preference_pb2_grpc, run_pb2

if TYPE_CHECKING:
    from charter.worker.preference.learning_curve import CurvePoint

_PLOT_ENDINGS = (".svg", ".png", ".pdf")

ModelOption = Annotated[str, typer.Option(help="Causal language model to fit: hub id or folder.")]
PercentOption = Annotated[
    list[float] | None,
    typer.Option("--percent", help="Share of the prompts to fit to. Repeatable. Default: 10 30 100."),
]
PlotOption = Annotated[Path | None, typer.Option(help="File of the plot, .svg, .png or .pdf.")]
EpochsOption = Annotated[int, typer.Option(min=1, help="Passes over each part.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Pairs per optimiser step.")]
RateOption = Annotated[float, typer.Option(min=1e-9, help="Learning rate.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything random.")]


def curve(
    model: ModelOption,
    percent: PercentOption = None,
    plot: PlotOption = None,
    address: AddressOption = "",
    run: RunOption = "",
    source: SourceOption = None,
    dimension: DimensionOption = "",
    epochs: EpochsOption = 1,
    batch_size: BatchOption = 8,
    learning_rate: RateOption = 1e-5,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit preference models to 10, 30 and 100 % of the labels, and measure each.

    All are measured on the same held-out labels. The fits run in this process and change nothing that is served. If
    accuracy still rises at the end, more labels would help.
    """
    percents = percent or [10.0, 30.0, 100.0]
    if not all(0 < one <= 100 for one in percents):
        fail("--percent must lie above 0 and at most at 100")
    if plot is not None and plot.suffix.lower() not in _PLOT_ENDINGS:
        fail(f"--plot must end in {', '.join(_PLOT_ENDINGS)}")
    spec = run_pb2.PreferenceModelSpec(
        model=model, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, patience=epochs, members=1
    )
    points = _points(spec, percents, address, run, source, dimension, seed)
    if plot is not None:
        _draw(points, plot)
    if as_json:
        emit_json([asdict(point) for point in points])
        return
    _print(points)
    if plot is not None:
        console.print(f"plot: {escape(str(plot))}")


def _points(
    spec: run_pb2.PreferenceModelSpec,
    percents: list[float],
    address: str,
    run: str,
    source: Source | None,
    dimension: str,
    seed: int,
) -> "list[CurvePoint]":
    import torch

    from charter.inference.preference_model import PreferenceModel
    from charter.worker.errors import RunError
    from charter.worker.preference.examples import split_examples
    from charter.worker.preference.learning_curve import learning_curve
    from charter.worker.seeds import derive_seed

    try:
        start = PreferenceModel.from_causal_lm(spec.model, derive_seed(seed, "head"))
        with channel_to("preference", address) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            chosen = chosen_comparisons(run_id_of(run, address), source, None, "", dimension, labelled_only=True)
            train, held_out, _ = split_examples(start, stream_comparisons(stub, chosen, "reading"))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with errors.status("fitting…") as status:

            def after_step(percent: float, step: int, total: int) -> None:
                status.update(f"fitting to {percent:g} %… step {step} of {total}")

            return list(
                learning_curve(start, train, held_out, percents, spec, device, seed=seed, after_step=after_step)
            )
    except (ServiceError, RunError, OSError, ValueError) as error:
        fail(error)


def _print(points: "list[CurvePoint]") -> None:
    table = Table("labels", "prompts", "pairs", "held-out accuracy", "95 % interval", "loss", "Brier", "ECE")
    for column in table.columns:
        column.justify = "right"
    for point in points:
        held_out = point.held_out
        table.add_row(
            f"{point.percent:g} %",
            str(point.prompts),
            str(point.pairs),
            f"{held_out.accuracy:.1%}",
            f"{held_out.accuracy_low:.1%} to {held_out.accuracy_high:.1%}",
            f"{point.held_out_loss:.3f}",
            f"{held_out.brier:.3f}",
            f"{held_out.expected_calibration_error:.3f}",
        )
    print_table(table)
    console.print(f"measured on {points[0].held_out.pairs} held-out pairs; a loss of 0.693 knows nothing")


def _draw(points: "list[CurvePoint]", file: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    pairs = [point.pairs for point in points]
    accuracy = [point.held_out.accuracy for point in points]
    below = [point.held_out.accuracy - point.held_out.accuracy_low for point in points]
    above = [point.held_out.accuracy_high - point.held_out.accuracy for point in points]
    axes.errorbar(pairs, accuracy, yerr=[below, above], marker="o", capsize=4, color="#0072b2")
    axes.axhline(0.5, color="#5f5b54", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xticks(pairs, [str(count) for count in pairs])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="pairs fitted", ylabel="held-out accuracy", title="Would more labels help?")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
