"""The judge's opinion of the policy in the course of training, on held-out prompts that nothing else uses."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from charter.atomic_files import write_json
from charter.data.prompts import TaskPrompt
from charter.state_files import read_json
from charter.v1 import run_pb2
from charter.worker.clients.failed import Failed, failure_of
from charter.worker.clients.gpu_turn import gpu_turn
from charter.worker.context import Run
from charter.worker.failures import Failures
from charter.worker.reinforcement import formulas
from charter.worker.reinforcement.overoptimisation import Measurement, best
from charter.worker.reinforcement.sampling import rewards
from charter.worker.reinforcement.sampling.rollouts import episodes_of
from charter.worker.reinforcement.update import Learner
from charter.worker.seeds import derive_seed
from charter.worker.stages.answers import WATCHED, sample_answers, watched_prompts

# The stage of ``Failures``.
WATCHING = "watching"


def due(run: Run, step: int) -> bool:
    """Whether the policy is measured after ``step`` steps."""
    spec = run.spec.evaluation
    return spec.HasField("every_steps") and step % spec.every_steps == 0


def measurements(spec: run_pb2.RunSpec) -> int:
    """How often the policy is measured in the whole run."""
    return spec.ppo.steps // spec.evaluation.every_steps if spec.evaluation.HasField("every_steps") else 0


def measure(
    run: Run,
    learner: Learner,
    step: int,
    version: int,
    preference_version: int,
    earlier: Sequence[Measurement],
    failures: Failures,
) -> Measurement | None:
    """Measure the policy that is served as ``version``, after ``step`` steps; None when no pair could be judged.

    ``earlier`` is what was measured before. Raises as ``rewards.score`` and ``failures.add``.
    """
    prompts = watched_prompts(run)
    before = [one.text for one in sample_answers(run, WATCHED, prompts, lambda: run.start.version)]
    # The draws of every measurement are the same, so that only the policy differs.
    sampled = run.services.policy.generate(
        [prompt.messages for prompt in prompts],
        run.spec.sampling,
        version=version,
        seed=derive_seed(run.spec.seed, "watched"),
    )
    answers = [answer for (answer,) in sampled]
    texts = [answer.text for answer in answers]
    write_json(_texts_file(run, step), texts)
    score = best_score = None
    if run.spec.ppo.algorithm != run_pb2.ALGORITHM_ONLINE_DPO:
        score = _score(run, texts, preference_version)
        best_score = _score_of_best(run, earlier, preference_version)
    preferred = _judged(run, prompts, before, texts)
    failures.add(preferred)
    if not (decided := [one for one in preferred if not isinstance(one, Failed)]):
        return None
    episodes = episodes_of(answers, [0.0] * len(answers), version)
    with gpu_turn(run, learner):
        old = run.leader.with_learner(Learner.prepare, episodes)
    kl = formulas.kl_k3(old.logprobs, old.reference_logprobs, episodes.mask).sum(dim=1)
    return Measurement(step, mean(decided), score, float(torch.mean(kl)), preference_version, best_score)


def _score(run: Run, texts: Sequence[str], preference_version: int) -> float | None:
    """Mean score of answers to the watched prompts; None when none of them has one."""
    seed = derive_seed(run.spec.seed, "watched")
    scores = rewards.score(run, watched_prompts(run), texts, seed, preference_version)
    known = [one for one in scores if not isinstance(one, Failed)]
    return mean(known) if known else None


def _score_of_best(run: Run, earlier: Sequence[Measurement], preference_version: int) -> float | None:
    """The score of the best answers so far by this preference model, which need not be the one that scored them."""
    if not earlier:
        return None
    top = best(earlier)
    if top.preference_version == preference_version:
        return top.score
    texts = read_json(
        _texts_file(run, top.step),
        lambda found: [str(text) for text in found],
        "Bring it back from a copy, or start a new run",
    )
    return _score(run, texts, preference_version)


def _texts_file(run: Run, step: int) -> Path:
    """Answers of the policy after ``step`` steps to the watched prompts, to be scored again after a refresh."""
    return run.artifacts.folder / f"answers_{WATCHED}-{step}.json"


def _judged(
    run: Run, prompts: Sequence[TaskPrompt], before: Sequence[str], after: Sequence[str]
) -> list[float | Failed]:
    """P(the new answer is better) of each prompt, or why it could not be judged; answers that are equal are even."""
    items = [
        run.comparison_item(f"watched-{place}", prompt, new, old)
        for place, (prompt, old, new) in enumerate(zip(prompts, before, after, strict=True))
        if old != new
    ]
    judged = (
        run.services.judge.compare(items, run.judging_options(derive_seed(run.spec.seed, "watched"))) if items else {}
    )
    found: list[float | Failed] = [failure_of(one) or one.probability_a for one in judged.values()]
    return found + [0.5] * (len(prompts) - len(items))
