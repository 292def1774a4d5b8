"""Answers to the held-out prompts, by the starting policy before PPO and by the aligned one after it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from charter.atomic_files import write_json
from charter.data.prompts import TaskPrompt
from charter.spec.facts import evaluated_prompts
from charter.worker.context import Run
from charter.worker.prompts import take
from charter.worker.seeds import derive_seed

# Prompts in one call.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class HeldOutAnswer:
    """One answer, its length in tokens, EOS included, and whether the token limit ended it."""

    key: str
    text: str
    tokens: int
    cut_off: bool


def held_out_prompts(run: Run) -> list[TaskPrompt]:
    """The prompts of the evaluation, each once."""
    return take(run.prompts.held_out, 0, evaluated_prompts(run.spec, len(run.prompts.held_out)), run.spec.seed)


def sample_held_out(run: Run, name: str, version: int) -> list[HeldOutAnswer]:
    """Answer every prompt of the evaluation; ``name`` is before or after."""
    return sample_answers(run, name, held_out_prompts(run), version)


def sample_answers(run: Run, name: str, prompts: Sequence[TaskPrompt], version: int) -> list[HeldOutAnswer]:
    """Answer every prompt once, or read what an earlier call wrote; the seeds do not depend on ``name``."""
    path = run.artifacts.answers(name)
    if path.exists():
        return [HeldOutAnswer(**record) for record in json.loads(path.read_text(encoding="utf-8"))]
    answers: list[HeldOutAnswer] = []
    for start in range(0, len(prompts), _BATCH):
        run.reporter.raise_if_stopped()
        batch = prompts[start : start + _BATCH]
        sampled = run.services.policy.generate(
            [prompt.messages for prompt in batch],
            run.spec.sampling,
            version=version,
            seed=derive_seed(run.spec.seed, "held out", start),
        )
        answers += [
            HeldOutAnswer(prompt.key, one.text, len(one.token_ids), not one.ended)
            for prompt, (one,) in zip(batch, sampled, strict=True)
        ]
        run.reporter.report(len(answers), len(prompts), text=f"held-out answers: {name}")
    write_json(path, [asdict(answer) for answer in answers])
    return answers
