"""Answers of the policy, sampled batch by batch into a log: a run that was killed goes on behind the last batch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from charter.data.prompts import TaskPrompt
from charter.jsonl import append_line
from charter.state_files import read_log
from charter.worker.context import Run
from charter.worker.seeds import derive_seed

# Prompts in one call, so that progress shows and little is lost when the worker dies.
BATCH = 32


@dataclass(frozen=True, slots=True)
class Written:
    """One answer, whether the token limit ended it, and its length in tokens, EOS included."""

    text: str
    cut_off: bool
    tokens: int

    @property
    def whole(self) -> bool:
        """Whether it says something and came to its end."""
        return bool(self.text.strip()) and not self.cut_off


def sample(
    run: Run, prompts: Sequence[TaskPrompt], version: int, seed: int, samples_per_prompt: int = 1
) -> list[list[Written]]:
    """Answers to each prompt by the policy's weights ``version``, [prompts][samples]."""
    sampled = run.services.policy.generate(
        [prompt.messages for prompt in prompts],
        run.spec.sampling,
        version=version,
        seed=seed,
        samples_per_prompt=samples_per_prompt,
    )
    return [[Written(one.text, not one.ended, len(one.token_ids)) for one in answers] for answers in sampled]


def sample_all(
    run: Run,
    file: Path,
    prompts: Sequence[TaskPrompt],
    serve: Callable[[], int],
    *,
    seeded: str,
    text: str = "",
    samples_per_prompt: int = 1,
) -> list[list[Written]]:
    """Answers to every prompt, [prompts][samples]; those that ``file`` holds are read.

    ``serve`` is called where there are some to sample, and returns the version of the weights that write them. Batches
    draw by ``seeded`` and their place. Raises ``Cancelled`` between batches, and ``StateFileError``.
    """
    answers = read(file)
    while len(answers) < len(prompts):
        run.reporter.raise_if_stopped()
        start = len(answers)
        batch = prompts[start : start + BATCH]
        new = sample(run, batch, serve(), derive_seed(run.spec.seed, seeded, start), samples_per_prompt)
        append_line(file, json.dumps([[asdict(one) for one in both] for both in new], ensure_ascii=False))
        answers += new
        run.reporter.report(len(answers), len(prompts), text=text)
    return answers


def read(file: Path) -> list[list[Written]]:
    """The answers that a log holds, [prompts][samples]; none when there is no file. Raises ``StateFileError``."""
    batches = read_log(
        file,
        lambda line: [[Written(**one) for one in both] for both in json.loads(line)],
        "Delete it and resume the run, which then samples these answers again",
    )
    return [both for batch in batches for both in batch]
