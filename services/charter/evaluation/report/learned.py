"""The report's sections on what a model learned from texts and conversations before RL."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from charter.evaluation.report.plots import Plot, plot_series, svg_of
from charter.runs.folder import RunFolder
from charter.runs.results import Learned, LearnedSource
from charter.v1 import run_pb2

_TITLES = {
    "pretraining": "Learning from text",
    "supervised": "Supervised fine-tuning",
    "revised": "Learning from revisions",
}
_PHASES = {
    "pretraining": run_pb2.PHASE_PRETRAINING,
    "supervised": run_pb2.PHASE_SUPERVISED,
    "revised": run_pb2.PHASE_REVISING,
}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source with its held-out loss before and after: in bits per byte, or where there are none in nats per token."""

    name: str
    source: LearnedSource
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class LearnedSection:
    """One stage; losses are nats per token, and None where nothing is held out."""

    name: str
    title: str
    result: Learned
    before: float | None
    after: float | None
    rows: tuple[SourceRow, ...]
    in_bits: bool
    plot: Plot | None


def learned_sections(run: RunFolder) -> list[LearnedSection]:
    """Of the stages that are done, in their order."""
    return [_section(run, name, result) for name, result in run.learned.items()]


def _section(run: RunFolder, name: str, result: Learned) -> LearnedSection:
    first = result.measured[0] if result.measured else None
    kept = next((one for one in result.measured if one.step == result.kept_step), None)
    in_bits = any(one.bits_per_byte is not None for one in result.sources.values())

    def row(source: str, one: LearnedSource) -> SourceRow:
        if in_bits:
            return SourceRow(source, one, one.bits_per_byte_before, one.bits_per_byte)
        before, after = (at.by_source.get(source) if at else None for at in (first, kept))
        return SourceRow(source, one, before, after)

    return LearnedSection(
        name=name,
        title=_TITLES[name],
        result=result,
        before=first.loss if first else None,
        after=kept.loss if kept else None,
        rows=tuple(row(source, one) for source, one in result.sources.items()),
        in_bits=in_bits,
        plot=_losses(run, name, result),
    )


def _losses(run: RunFolder, name: str, result: Learned) -> Plot | None:
    steps = run.steps(_PHASES[name])
    learned = [(step, numbers["train_loss"]) for step, numbers in steps.items() if "train_loss" in numbers]
    if not learned:
        return None
    held_out = [(one.step, one.loss) for one in result.measured]

    def draw(axes: Axes) -> None:
        for index, line in enumerate([learned, held_out]):
            plot_series(axes, index, [step for step, _ in line], [loss for _, loss in line])
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    caption = (
        "Cross-entropy of the tokens that are learned, in nats per token. Held out, it should fall and not turn up."
    )
    svg = svg_of(f"{name}-losses", f"Losses of {_TITLES[name].lower()} by step", draw)
    return Plot("Loss", svg, caption, ("learned", "held out"))
