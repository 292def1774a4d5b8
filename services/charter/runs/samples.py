"""``samples.jsonl`` of a run's folder: of each step of RL the answers at the ends of its scores, and some drawn by lot.

It is where one goes on from a bad reward: to the answers that got it, to their tokens, and to the labels behind it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from charter.atomic_files import write_text
from charter.jsonl import whole_lines
from charter.state_files import read_log

FILE = "samples.jsonl"
# What `charter samples --html` writes beside it.
PAGE = "samples.html"


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of RL, how it was scored, and what the step made of its tokens.

    Runs of earlier versions kept the extremes alone, without what comes after ``trace_id``.
    """

    # STEP.NUMBER, the number counting the step's answers from 0.
    id: str
    # Turns, each with role and content.
    prompt: list[dict[str, str]]
    dimension: str
    answer: str
    tokens: int
    # Whether the answer ended with EOS; if not, ``ppo.missing_eos_penalty`` is taken off the score.
    ended: bool
    # None where it could not be scored and was left out.
    score: float | None
    # Versions of the policy that wrote it and of the preference model that scored it; 0 where none did.
    weight_version: int
    preference_version: int
    # Of the step; empty while traces are off.
    trace_id: str
    # Number of its prompt in the step, from 0: answers of one group compete.
    group: int | None = None
    # Whether it is here for its score, by lot, or both.
    extreme: bool = True
    random: bool = False
    # Why it has no score.
    failure: str = ""
    # Text of each token, EOS too. Of tokens that share a character the last has it, and the others are empty.
    pieces: list[str] = field(default_factory=list)
    # Of each token before the step's update: log p - log p_ref in nats, advantage, and value of the state before it.
    # Empty for an answer that was left out, and where the algorithm has none.
    log_ratios: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The step of RL, from 1."""
        return int(self.id.partition(".")[0])


def step_to_line(samples: Sequence[Sample]) -> str:
    """The samples of one step as one line, without its end. Numbers must be finite."""
    return json.dumps([asdict(one) for one in samples], ensure_ascii=False, allow_nan=False)


def forget_after(path: Path, step: int) -> None:
    """Take out of a file of samples those of later steps, which run again. Raises ``StateFileError``, ``OSError``."""
    lines = read_log(path, lambda line: (_samples(line)[0].step, line), "Delete it, and resume the run")
    kept = [line for of_step, line in lines if of_step <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in kept))


def read_samples(folder: Path) -> list[Sample]:
    """The samples of every step, steps in order; of a step that stands there twice, the last ones.

    Raises ``OSError`` when the run has not written any, ``ValueError`` for a broken line. A last line without its end
    is still being written, and left out.
    """
    steps: dict[int, list[Sample]] = {}
    for number, line in enumerate(whole_lines(folder / FILE), start=1):
        try:
            samples = _samples(line)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / FILE}, line {number}: {error}") from error
        steps[samples[0].step] = samples
    return [one for step in sorted(steps) for one in steps[step]]


def _samples(line: str) -> list[Sample]:
    records: list[dict[str, Any]] = json.loads(line)
    samples = [Sample(**record) for record in records]
    for one in samples:
        if any(len(found) not in (0, len(one.pieces)) for found in (one.log_ratios, one.advantages, one.values)):
            raise ValueError(f"answer {one.id} has figures of more or fewer tokens than it has")
    return samples
