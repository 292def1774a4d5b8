"""``samples.jsonl`` of a run's folder: of each PPO step the answers with the lowest and the highest scores.

It is where one goes on from a bad reward: to the answers that got it, and from those to the labels behind the score.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from charter.jsonl import whole_lines

FILE = "samples.jsonl"
# Answers kept at either end of a step's scores.
KEPT = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of PPO and how it was scored."""

    # STEP.NUMBER, the number counting the step's answers from 0.
    id: str
    # Turns, each with role and content.
    prompt: list[dict[str, str]]
    dimension: str
    answer: str
    tokens: int
    # Whether the answer ended with EOS; if not, ``ppo.missing_eos_penalty`` is taken off the score.
    ended: bool
    score: float
    # Versions of the policy that wrote it and of the preference model that scored it; 0 where none did.
    weight_version: int
    preference_version: int
    # Of the step; empty while traces are off.
    trace_id: str

    @property
    def step(self) -> int:
        """The PPO step, from 1."""
        return int(self.id.partition(".")[0])


def extremes(samples: Sequence[Sample]) -> list[Sample]:
    """The ``KEPT`` lowest and highest of a step's answers, lowest first; all of a small step, each once."""
    ordered = sorted(samples, key=lambda one: one.score)
    return ordered if len(ordered) <= 2 * KEPT else [*ordered[:KEPT], *ordered[-KEPT:]]


def step_to_line(samples: Sequence[Sample]) -> str:
    """The samples of one step as one line, without its end. Scores must be finite."""
    return json.dumps([asdict(one) for one in samples], ensure_ascii=False, allow_nan=False)


def read_samples(folder: Path) -> list[Sample]:
    """The samples of every step, steps in order; of a step that ran again after a resume, the last ones.

    Raises ``OSError`` when the run has not written any, ``ValueError`` for a broken line. A last line without its end
    is still being written, and left out.
    """
    steps: dict[int, list[Sample]] = {}
    for number, line in enumerate(whole_lines(folder / FILE), start=1):
        try:
            records: list[dict[str, Any]] = json.loads(line)
            samples = [Sample(**record) for record in records]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / FILE}, line {number}: {error}") from error
        steps[samples[0].step] = samples
    return [one for step in sorted(steps) for one in steps[step]]
