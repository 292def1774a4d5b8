"""The report's sections on what a model learned from data before RL: texts, conversations, comparisons, thumbs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from charter.evaluation.report.drawing import Plot, plot_series, svg_of
from charter.evaluation.report.label_sources import labels_in_words
from charter.runs.folder import RunFolder
from charter.runs.results import Figure, Learned, LearnedSource
from charter.v1 import run_pb2


class _Stage(NamedTuple):
    title: str
    phase: "run_pb2.Phase.ValueType"
    # Of the loss.
    unit: str
    # What the loss is.
    loss: str
    # The rewards of two kinds of answers that are drawn by step, if there are any: metric names, then words.
    rewards: dict[str, str]


_TOKENS = "Cross-entropy of the tokens that are learned, in nats per token."
STAGES = {
    "pretraining": _Stage("Learning from text", run_pb2.PHASE_PRETRAINING, "nats per token", _TOKENS, {}),
    "supervised": _Stage("Supervised fine-tuning", run_pb2.PHASE_SUPERVISED, "nats per token", _TOKENS, {}),
    "revised": _Stage("Learning from revisions", run_pb2.PHASE_REVISING, "nats per token", _TOKENS, {}),
    "dpo": _Stage(
        "Learning from comparisons (DPO)",
        run_pb2.PHASE_DPO,
        "nats per comparison",
        "Cross-entropy of the labels and the rewards' margin, in nats per comparison; 0.693 before the first step.",
        {"reward_chosen": "better answer", "reward_rejected": "worse answer"},
    ),
    "kto": _Stage(
        "Learning from thumbs (KTO)",
        run_pb2.PHASE_KTO,
        "per answer",
        "Weight of an answer less its value, by KTO; half the weight before the first step.",
        {"reward_desirable": "thumb up", "reward_undesirable": "thumb down"},
    ),
}
# What is measured of held-out labels, in words, and how it is written.
_FIGURES = {
    "reward_accuracy": ("Reward on the label's side", "{:.1%}"),
    "ranking_accuracy": ("The better answer is the likelier one", "{:.1%}"),
    "reward_margin": ("Margin of the rewards", "{:+.3f}"),
    "reward_chosen": ("Reward of the better answer", "{:+.3f}"),
    "reward_rejected": ("Reward of the worse answer", "{:+.3f}"),
    "reward_desirable": ("Reward of answers with a thumb up", "{:+.3f}"),
    "reward_undesirable": ("Reward of answers with a thumb down", "{:+.3f}"),
    "kl": ("KL to the start, on answers to other prompts, nats", "{:+.3f}"),
}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source with its held-out loss before and after: in bits per byte, or where there are none in nats per token."""

    name: str
    source: LearnedSource
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A figure of held-out labels before and after, in words."""

    name: str
    words: str
    before: str
    after: str
    # Of the latter.
    interval: str
    # How a number of it is written.
    written: str


@dataclass(frozen=True, slots=True)
class LearnedSection:
    """One stage; losses are in ``unit``, and None where nothing is held out."""

    name: str
    title: str
    unit: str
    result: Learned
    before: float | None
    after: float | None
    rows: tuple[SourceRow, ...]
    in_bits: bool
    figures: tuple[FigureRow, ...]
    labels: str
    plots: tuple[Plot, ...]


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
        title=STAGES[name].title,
        unit=STAGES[name].unit,
        result=result,
        before=first.loss if first else None,
        after=kept.loss if kept else None,
        rows=tuple(row(source, one) for source, one in result.sources.items()),
        in_bits=in_bits,
        figures=tuple(figure_rows(first.figures if first else {}, kept.figures if kept else {})),
        labels=labels_in_words(result.sources.values()),
        plots=tuple(filter(None, [_losses(run, name, result), _rewards(run, name)])),
    )


def figure_rows(before: dict[str, Figure], after: dict[str, Figure]) -> Iterator[FigureRow]:
    """Those that were measured, in their order."""
    for name, (words, written) in _FIGURES.items():
        if name in before and (found := after.get(name)) is not None:
            interval = f"{written.format(found.low)} to {written.format(found.high)}"
            means = written.format(before[name].mean), written.format(found.mean)
            yield FigureRow(name, words, *means, interval, written)


def _by_step(run: RunFolder, name: str, metric: str) -> list[tuple[int, float]]:
    steps = run.steps(STAGES[name].phase)
    return [(step, numbers[metric]) for step, numbers in steps.items() if metric in numbers]


def _losses(run: RunFolder, name: str, result: Learned) -> Plot | None:
    learned = _by_step(run, name, "train_loss")
    if not learned:
        return None
    held_out = [(one.step, one.loss) for one in result.measured]

    caption = f"{STAGES[name].loss} Held out, it should fall and not turn up."
    alternative = f"Losses of {STAGES[name].title.lower()} by step"
    return _lines(f"{name}-losses", "Loss", alternative, caption, {"learned": learned, "held out": held_out})


def _rewards(run: RunFolder, name: str) -> Plot | None:
    """Of the answers of each step."""
    lines = {words: _by_step(run, name, metric) for metric, words in STAGES[name].rewards.items()}
    if not any(lines.values()):
        return None
    caption = (
        "Implicit rewards, beta log(p / p_start), of the answers of each step. They should part; when both fall far, "
        "the policy forgets how to write either."
    )
    return _lines(f"{name}-rewards", "Rewards", f"Rewards of {STAGES[name].title.lower()} by step", caption, lines)


def _lines(name: str, title: str, alternative: str, caption: str, lines: dict[str, list[tuple[int, float]]]) -> Plot:
    def draw(axes: Axes) -> None:
        for index, line in enumerate(lines.values()):
            plot_series(axes, index, [step for step, _ in line], [value for _, value in line])
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return Plot(title, svg_of(name, alternative, draw), caption, tuple(lines))
