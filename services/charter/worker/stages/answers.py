"""Answers to the held-out prompts, by the starting policy before RL and by the aligned one after it."""

from collections.abc import Callable, Sequence

from charter.data.prompts import TaskPrompt
from charter.spec.facts import evaluated_prompts, needs_reinforcement
from charter.v1 import run_pb2
from charter.worker.answer_log import Written, read, sample_all
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.prompts import take

# Names of the answers: to the prompts of the final comparison, and to those that are watched on the way.
BEFORE, AFTER, WATCHED = "before", "after", "watched"


class StartingAnswers:
    """Writes ``answers_before.jsonl`` and, where it is watched, ``answers_watched.jsonl``."""

    phase = run_pb2.PHASE_EVALUATING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the policy learns by RL."""
        return needs_reinforcement(spec)

    def done(self, run: Run) -> bool:
        """Whether both are there."""
        asked = {BEFORE: held_out_prompts(run)}
        if self._watches(run):
            asked[WATCHED] = watched_prompts(run)
        return all(len(read(run.artifacts.answers(name))) == len(prompts) for name, prompts in asked.items())

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when the policy's replicas do not answer."""
        if self._watches(run):
            sample_answers(run, WATCHED, watched_prompts(run), lambda: serve_start(run))
        sample_answers(run, BEFORE, held_out_prompts(run), lambda: serve_start(run))

    def _watches(self, run: Run) -> bool:
        return run.spec.evaluation.HasField("every_steps")


def held_out_prompts(run: Run) -> list[TaskPrompt]:
    """The prompts of the evaluation, each once."""
    return take(run.prompts.held_out, 0, evaluated_prompts(run.spec, len(run.prompts.held_out)), run.spec.seed)


def watched_prompts(run: Run) -> list[TaskPrompt]:
    """Held-out prompts behind those of the final comparison: going back to the best step must not flatter it."""
    held_out, count = run.prompts.held_out, run.spec.evaluation.watched_prompts
    return take(held_out, evaluated_prompts(run.spec, len(held_out)), count, run.spec.seed)


def sample_answers(run: Run, name: str, prompts: Sequence[TaskPrompt], serve: Callable[[], int]) -> list[Written]:
    """Answer every prompt once, or read what an earlier call wrote; the seeds do not depend on ``name``."""
    text = f"held-out answers: {name}"
    found = sample_all(run, run.artifacts.answers(name), prompts, serve, seeded="held out", text=text)
    return [one for (one,) in found]
