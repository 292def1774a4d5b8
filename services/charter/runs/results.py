"""The results that a run writes as JSON into its folder and that the report reads back."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from charter.atomic_files import write_json


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Items that a stage has had, and by kind of failure how many of them it left out (``run.json``)."""

    items: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, items: int, kinds: Iterable[str]) -> "LeftOut":
        """Count so many items, some of which failed for these kinds."""
        return cls(items, dict(Counter(kinds)))

    def __add__(self, other: "LeftOut") -> "LeftOut":
        """Both together."""
        return LeftOut(self.items + other.items, dict(Counter(self.kinds) + Counter(other.kinds)))

    @property
    def failures(self) -> int:
        """How many were left out."""
        return sum(self.kinds.values())

    def kinds_in_words(self) -> str:
        """For example ``2 empty, 1 too long``."""
        return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.kinds.items())

    def in_words(self) -> str:
        """For example ``3 of 64 left out: 2 empty, 1 too long``; empty where nothing was."""
        return f"{self.failures} of {self.items} left out: {self.kinds_in_words()}" if self.kinds else ""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """A source of training prompts (``run.json``): how many it gave, and its share of those that are taken."""

    prompts: int
    share: float
    # By dimension; empty in files of older runs.
    dimensions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine of a worker, without anything that names it."""

    # As ``Linux x86_64``.
    system: str
    processor: str
    # Those that the worker may use.
    cores: int
    memory_bytes: int
    # Of all processes of the worker, each of which has one; the name is of the first's.
    gpus: int = 0
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """Something that an attempt read: a file by its name alone, a data set or model of the hub by its id."""

    name: str
    # Of the file; of several, and of a model's weights, that of theirs in the order of their names. Empty = not here.
    sha256: str = ""
    # Commit of a model of the hub.
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Leg:
    """One attempt of a run (``run.json``): what it ran on and with, what it read, and how long its phases took.

    ``ended`` is when its last phase ended; of a phase that was cut off by the worker's death there are no seconds.
    """

    attempt: int
    started: datetime
    hardware: Hardware
    ended: datetime | None = None
    versions: dict[str, str] = field(default_factory=dict)
    # By field of the spec.
    inputs: dict[str, Input] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    # Of an hour of the machine, where the environment says it (CHARTER_PRICE_PER_HOUR).
    price_per_hour: float | None = None
    currency: str = ""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions in ``[lower, upper)``: how many, their mean, and how often the predicted answer was right."""

    lower: float
    upper: float
    count: int
    mean_predicted: float
    mean_observed: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How right and how sure predicted preferences are. The interval is a 95 % bootstrap by prompt."""

    pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    brier: float
    expected_calibration_error: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class JudgeCheck:
    """The judge measured on labelled pairs (``judge_check.json``)."""

    model: str
    method: str
    source: str
    calibration: Calibration
    # Share of pairs in which the same position wins in both orders; None for a method without positions.
    position_bias_rate: float | None
    # Accuracy of "the shorter answer is better" on the same pairs.
    shorter_is_better_accuracy: float
    # Pairs without a label, by outcome name; they are not in the figures above.
    failures: dict[str, int]
    # Pairs that were not judged: the judge's calibration was fitted on their prompts.
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class FitStep:
    """Losses of the preference model after one optimiser step; held-out figures only where measured."""

    step: int
    train_loss: float
    held_out_loss: float | None
    held_out_accuracy: float | None
    held_out_calibration_error: float | None = None


@dataclass(frozen=True, slots=True)
class MixedLabels:
    """Labels of one source in one dimension: how many there were, and how much they counted in the fit."""

    source: str
    dimension: str
    train_pairs: int
    held_out_pairs: int
    # Of the dimension: as the spec wants it, and as it was (another source may have had no labels).
    wanted_share: float
    share: float


@dataclass(frozen=True, slots=True)
class PreferenceFit:
    """The fit of the preference model (``preference_fit.json``)."""

    train_pairs: int
    held_out_pairs: int
    # Comparisons that could not be used, by outcome name.
    left_out: dict[str, int]
    # Soft labels P(A is better) of all usable comparisons.
    labels: tuple[float, ...]
    history: tuple[FitStep, ...]
    # Agreement with the labels of comparisons held out by prompt.
    held_out: Calibration
    # Correlation of score and answer length (tokens) on the held-out answers.
    length_correlation: float
    # Optimiser step whose weights were kept; 0 is the probe. None in files of older runs.
    kept_step: int | None = None
    members: int = 1
    # What went in, and the held-out figures by source and by dimension.
    mix: tuple[MixedLabels, ...] = ()
    by_source: dict[str, Calibration] = field(default_factory=dict)
    by_dimension: dict[str, Calibration] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over held-out items; the interval is a 95 % bootstrap by prompt."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """What was held out, measured after ``step`` optimiser steps; losses are nats per token, or a mean over items."""

    step: int
    # Mean over sources, weighted by what is learned of each.
    loss: float
    by_source: dict[str, float]
    # What the model writes behind the sample's beginning.
    sample: str
    # Of comparisons and thumbs, by name (docs/offline.md).
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LearnedSource:
    """One source of a stage that learned from what is written."""

    # Conversations, pieces of texts, comparisons, or rated answers.
    train: int
    held_out: int
    # Tokens that are learned of all of ``train``, once.
    tokens: int
    # Of the tokens that were learned.
    share: float
    left_out: LeftOut
    # Bits per byte of what is held out, before and with the weights that were kept; None for conversations.
    bits_per_byte_before: float | None = None
    bits_per_byte: float | None = None
    # Of its files: the sha256 of one, or that of the sha256 of each. Empty in files of older runs.
    digest: str = ""
    # Of comparisons and thumbs, held out or not: how many are whose (AI, HUMAN, IMPORTED), and how many thumbs are up
    # and down.
    labels: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Learned:
    """A stage that learned from what is there (``pretraining.json``, ``supervised.json``, ``dpo.json``, …)."""

    # The model that it started from: a folder of the run, or as the spec names it.
    model: str
    sources: dict[str, LearnedSource]
    # Optimiser steps of the schedule, those that were done, and the one whose weights were kept.
    steps: int
    done: int
    kept_step: int
    # Behind what the samples were written.
    sample_beginning: str
    # Oldest first; empty where nothing is held out.
    measured: tuple[HeldOutLoss, ...]


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One held-out prompt answered by both policies."""

    prompt: str
    dimension: str
    before: str
    after: str
    outcome: str
    # P(the aligned policy's answer is better), both orders averaged; None for a failed judgement.
    probability_after: float | None
    principles: tuple[str, ...]
    # Whether the token limit ended the answer; None in files of older runs.
    before_cut_off: bool | None = None
    after_cut_off: bool | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The aligned policy against the one it started from (``evaluation.json``)."""

    # Mean over prompts of 1 for a win, 0.5 for a tie, 0 for a loss; 95 % bootstrap interval over prompts.
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    # Mean soft probability, with its interval.
    mean_probability: float
    mean_probability_low: float
    mean_probability_high: float
    wins: int
    ties: int
    losses: int
    failures: dict[str, int]
    mean_tokens_before: float
    mean_tokens_after: float
    rows: tuple[EvaluationRow, ...]


@dataclass(frozen=True, slots=True)
class RevisionSample:
    """A row that shows what became of others like it; its texts are cut."""

    outcome: str
    principle: str
    prompt: str
    answer: str
    revision: str


@dataclass(frozen=True, slots=True)
class RevisionGate:
    """Whether the judge likes revised answers to held-out prompts better (``revision_gate.json``).

    The interval of the mean P(the revision is better) is a 95 % bootstrap by prompt; both are 0.5 where fewer than two
    revisions could be compared.
    """

    prompts: int
    # Of them: those that were revised, and those whose revision passed the filters and was compared.
    revised: int
    compared: int
    mean_probability: float
    low: float
    high: float
    # Of the prompts: those that the final evaluation asks about as well, because there were no others.
    also_evaluated: int = 0
    # Of the prompts: the revisions by verdict, and one of each.
    verdicts: dict[str, int] = field(default_factory=dict)
    samples: tuple[RevisionSample, ...] = ()

    @property
    def gain(self) -> bool:
        """Whether the interval lies above one half."""
        return self.low > 0.5


@dataclass(frozen=True, slots=True)
class RevisionRound:
    """Of one round: its rows by verdict, and the words of clean revisions."""

    round: int
    verdicts: dict[str, int]
    mean_words: float
    # Critiques that the token limit ended.
    critiques_cut_off: int = 0


@dataclass(frozen=True, slots=True)
class Revisions:
    """What a revision stage came to (``revision.json``)."""

    gate: RevisionGate
    # Nothing was revised, as the gate said no.
    skipped: bool
    rounds: tuple[RevisionRound, ...] = ()
    # Of the prompts' last rows, what became of them: accepted, or why not.
    outcomes: dict[str, int] = field(default_factory=dict)
    # By principle: rows, and those of them whose revision was accepted.
    by_principle: dict[str, tuple[int, int]] = field(default_factory=dict)
    # One of each outcome and verdict.
    samples: tuple[RevisionSample, ...] = ()


def write_result(folder: Path, name: str, result: Any) -> None:
    """Write one of the above as ``folder/name.json``, whole or not at all."""
    write_json(folder / f"{name}.json", asdict(result))
