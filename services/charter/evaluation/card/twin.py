"""``charter.json``: all that a model card says, for machines. The card is written from it and from nothing else.

Files are named without their folders, models by hub id or the name of their folder, labellers by kind: it is made to be
published. Shares and intervals are of 1, times in seconds; an interval is of 95 %. Its JSON schema is
``charter/spec/schemas/card.schema.json``.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import TypeAdapter

from charter.runs.results import Hardware

FILE = "charter.json"
# Of its form; higher when a reader must know that something means something else now.
FORM = 1
# Name of the run's own comparison with the policy that it started from, among the evaluations.
THIS_RUN = "this run"


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Read:
    """What a field of the spec names, as it was read: of attempts that read different contents, each digest once."""

    field: str
    name: str
    sha256: tuple[str, ...] = ()
    # Commits of a model of the hub.
    revisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reward:
    """A part of an answer's score. Online DPO has ``judge_comparison`` alone, of weight 1."""

    kind: Literal["preference_model", "judge_rating", "service", "judge_comparison"]
    weight: float


@dataclass(frozen=True, slots=True)
class Reinforcement:
    """How the policy learned from rewards."""

    # As a spec has it: ``grpo``.
    algorithm: str
    # Those of the spec, those that were reported, and whose weights the policy has.
    steps: int
    done: int
    episodes_per_step: int
    samples_per_prompt: int
    rewards: tuple[Reward, ...]
    # What holds it near its start: the KL in the reward or in the loss, or DPO's beta.
    pull: Literal["reward", "loss", "beta"]
    pull_coefficient: float


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one source (AI, HUMAN, IMPORTED) in one dimension that the preference model was fitted to."""

    source: str
    dimension: str
    learned: int
    held_out: int
    # In its dimension.
    share: float


@dataclass(frozen=True, slots=True)
class Collected:
    """Comparisons that the run made, whatever came of them: how many ended so."""

    source: str
    dimension: str
    # PREFERRED_A, PREFERRED_B, TIE, or why there is no label: INVALID, UNAVAILABLE.
    outcome: str
    count: int


@dataclass(frozen=True, slots=True)
class LearnedFrom:
    """One source of a stage that learned from what is written."""

    name: str
    learned: int
    held_out: int
    tokens: int
    # Of the stage's tokens, or of its items.
    share: float
    # By kind.
    left_out: dict[str, int]
    # How many are whose (AI, HUMAN, IMPORTED), and how many thumbs are up and down.
    labels: dict[str, int]
    verdicts: dict[str, int]
    sha256: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of held-out labels before a stage and after it; ``written`` is how it is written."""

    name: str
    words: str
    written: str
    before: float
    after: Interval


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that learned from what is written; losses are None where nothing is held out."""

    # pretraining, supervised, revised, dpo, kto.
    name: str
    steps: int
    done: int
    kept_step: int
    unit: str
    loss_before: float | None
    loss_after: float | None
    figures: tuple[Figure, ...]
    sources: tuple[LearnedFrom, ...]

    def sources_labels(self) -> dict[str, int]:
        """How many labels it learned from are whose."""
        return dict(sum((Counter(one.labels) for one in self.sources), Counter[str]()))


@dataclass(frozen=True, slots=True)
class Revision:
    """What came of critique and revision."""

    # P(the revision is better), on so many held-out prompts.
    gate: Interval
    gate_prompts: int
    skipped: bool
    # Of the prompts' last revisions.
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Prompts that were trained on; ``share`` is of those that are taken."""

    name: str
    prompts: int
    share: float
    dimensions: dict[str, int]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Items of a stage that were left out, by kind."""

    where: str
    items: int
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Principle:
    """One of the constitution."""

    id: str
    dimension: str
    compare: str


@dataclass(frozen=True, slots=True)
class Constitution:
    """What the judge judged by."""

    name: str
    version: str
    sha256: str
    principles: tuple[Principle, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """The judge on labelled pairs."""

    pairs: int
    accuracy: Interval
    shorter_is_better: float
    # Without a label, by kind; and not asked, as the calibration was fitted on them.
    failures: dict[str, int]
    fitted: int


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge of the training; ``did`` is empty where it only compared the policy at the end."""

    model: str
    engine: str
    method: str
    ensemble_size: int
    calibration_sha256: str
    did: tuple[Literal["labels", "ratings", "comparisons", "revisions"], ...]
    # None where it was not measured.
    measured: Measured | None


@dataclass(frozen=True, slots=True)
class PreferenceModel:
    """The fit of what gave the scores, measured on labels that it did not learn from."""

    members: int
    held_out: int
    accuracy: Interval
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """This model against another, by a judge, on held-out prompts of one dimension (``all`` of several)."""

    # THIS_RUN, or the name of an evaluation.
    evaluation: str
    against: str
    judge: str
    judge_model: str
    dimension: str
    # Those that were judged.
    prompts: int
    wins: int
    ties: int
    losses: int
    failures: int
    win_rate: Interval
    # Elo points above ``against``, where it is the start of the evaluation; and the rate at equal lengths.
    rating: Interval | None = None
    length_controlled: Interval | None = None


@dataclass(frozen=True, slots=True)
class Declines:
    """How often this model declines, as a judge of an evaluation says: mean probabilities, on prompts of both kinds.

    The two only together mean something: who declines everything declines all that is harmful.
    """

    evaluation: str
    judge: str
    judge_model: str
    harmful_answers: int
    harmful: Interval
    # Without a reason: it evades.
    harmful_evaded: Interval
    look_alike_answers: int
    look_alike: Interval
    look_alike_evaded: Interval


@dataclass(frozen=True, slots=True)
class Phase:
    """Time of one phase; hours are of cores or GPUs of the worker's machine, busy or not. None = not recorded."""

    name: str
    seconds: float
    core_hours: float | None
    gpu_hours: float | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of the run."""

    attempt: int
    started: datetime
    ended: datetime | None
    hardware: Hardware
    versions: dict[str, str]
    phase_seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the model's weights."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Twin:
    """The twin of a card."""

    name: str
    run: str
    finished: datetime | None
    # A fake engine took part: nothing in it means anything.
    fake: bool
    base_model: str
    base_on_hub: bool
    license: str | None
    # Whether it answers in turns, by a chat template.
    chats: bool
    stages: tuple[Stage, ...]
    revision: Revision | None
    reinforcement: Reinforcement | None
    # What the run showed, in sentences.
    verdict: tuple[str, ...]
    judge: Judge | None
    preference_model: PreferenceModel | None
    comparisons: tuple[Comparison, ...]
    declines: tuple[Declines, ...]
    # What must be said where figures of a judge stand: by evaluation.
    remarks: dict[str, list[str]]
    mean_tokens_before: float | None
    mean_tokens_after: float | None
    constitution: Constitution | None
    labels: tuple[Labels, ...]
    collected: tuple[Collected, ...]
    prompts: tuple[PromptSource, ...]
    prompts_held_out: int | None
    left_out: tuple[LeftOut, ...]
    datasets: tuple[str, ...]
    read: tuple[Read, ...]
    weights: tuple[File, ...]
    limits: tuple[str, ...]
    versions: dict[str, str]
    attempts: tuple[Attempt, ...]
    phases: tuple[Phase, ...]
    currency: str
    # The spec that makes it again, without addresses and folders, and its fields that must be filled in first.
    spec: dict[str, Any]
    fill_in: tuple[str, ...]
    form: int = FORM

    def to_json(self) -> str:
        """Its text."""
        return TypeAdapter(Twin).dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Twin":
        """What ``to_json`` wrote. Raises ``pydantic.ValidationError``, a ``ValueError``."""
        return TypeAdapter(Twin).validate_json(text)


def schema() -> dict[str, Any]:
    """The JSON schema of ``charter.json``."""
    found = TypeAdapter(Twin).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Charter model card"}
