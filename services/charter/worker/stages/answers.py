"""Answers to the held-out prompts, by the starting policy before RL and by the aligned one after it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from charter.atomic_files import write_json
from charter.data.prompts import TaskPrompt
from charter.spec.facts import evaluated_prompts, needs_reinforcement
from charter.state_files import read_json
from charter.v1 import run_pb2
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.prompts import take
from charter.worker.seeds import derive_seed

# Names of the answers: to the prompts of the final comparison, and to those that are watched on the way.
BEFORE, AFTER, WATCHED = "before", "after", "watched"
# For a damaged file of answers.
_ADVICE = "Delete it and resume the run, which then samples these answers again"
# Prompts in one call.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class HeldOutAnswer:
    """One answer, its length in tokens, EOS included, and whether the token limit ended it."""

    key: str
    text: str
    tokens: int
    cut_off: bool


class StartingAnswers:
    """Writes ``answers_before.json`` and, where it is watched, ``answers_watched.json``."""

    phase = run_pb2.PHASE_EVALUATING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the policy learns by RL."""
        return needs_reinforcement(spec)

    def done(self, run: Run) -> bool:
        """Whether both are there."""
        return all(run.artifacts.answers(name).exists() for name in (BEFORE, *self._watched(run)))

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when the policy's replicas do not answer."""
        version = serve_start(run)
        for name in self._watched(run):
            sample_answers(run, name, watched_prompts(run), version)
        sample_answers(run, BEFORE, held_out_prompts(run), version)

    def _watched(self, run: Run) -> list[str]:
        return [WATCHED] if run.spec.evaluation.HasField("every_steps") else []


def held_out_prompts(run: Run) -> list[TaskPrompt]:
    """The prompts of the evaluation, each once."""
    return take(run.prompts.held_out, 0, evaluated_prompts(run.spec, len(run.prompts.held_out)), run.spec.seed)


def watched_prompts(run: Run) -> list[TaskPrompt]:
    """Held-out prompts behind those of the final comparison: going back to the best step must not flatter it."""
    held_out, count = run.prompts.held_out, run.spec.evaluation.watched_prompts
    return take(held_out, evaluated_prompts(run.spec, len(held_out)), count, run.spec.seed)


def sample_answers(run: Run, name: str, prompts: Sequence[TaskPrompt], version: int) -> list[HeldOutAnswer]:
    """Answer every prompt once, or read what an earlier call wrote; the seeds do not depend on ``name``."""
    path = run.artifacts.answers(name)
    if path.exists():
        return read_json(path, lambda records: [HeldOutAnswer(**record) for record in records], _ADVICE)
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
