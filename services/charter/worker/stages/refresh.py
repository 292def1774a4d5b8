"""Iterated RLAIF: pairs of the policy as it is now are judged, and the preference model is fitted again to all pairs.

As the policy moves, its answers leave what the preference model was fitted to. Bai et al. 2022 do this with people
("Training a Helpful and Harmless Assistant with RLHF", arXiv 2204.05862) and name it for AI feedback as future work
("Constitutional AI", arXiv 2212.08073).
"""

import shutil

from charter.v1 import run_pb2
from charter.worker.answer_log import BATCH, sample
from charter.worker.context import PREFERENCE_VERSION, Run
from charter.worker.seeds import derive_seed
from charter.worker.stages.fit import fit_preference_model, serve_fitted
from charter.worker.stages.label import REFRESHING, Labelling
from charter.worker.stages.sample_pairs import different_answers, judged_prompts


def preference_version(run: Run, step: int) -> int:
    """Version of the preference model that scores the answers of the step after ``step`` steps."""
    return PREFERENCE_VERSION + _refreshes(run, step)


def refresh_preference_model(run: Run, step: int, policy_version: int) -> None:
    """See that the preference model of the step after ``step`` steps is fitted and served, where a new one is due.

    Args:
        run: between two of its steps.
        step: steps that are done.
        policy_version: what the policy service serves.

    Raises:
        Cancelled: asked to stop; what was labelled is stored.
    """
    refreshes = _refreshes(run, step)
    if refreshes == 0 or step % run.spec.comparisons.refresh_every_steps:
        return
    if run.artifacts.preference_fit(refreshes).exists():
        serve_fitted(run, refreshes)
    else:
        _label(run, refreshes, policy_version)
        with run.reporter.in_phase(run_pb2.PHASE_FITTING_PREFERENCE_MODEL):
            fit_preference_model(run, refreshes, policy_version)
    # The one before is what a checkpoint from before this refresh goes on with, the first is the report's.
    for old in range(1, refreshes - 1):
        shutil.rmtree(run.artifacts.preference_model(old), ignore_errors=True)


def restore_preference_model(run: Run, step: int) -> None:
    """See that the preference model of the step after ``step`` steps is served, unless that step has to fit it."""
    refreshes = _refreshes(run, step)
    if run.needs_preference_model and run.artifacts.preference_fit(refreshes).exists():
        serve_fitted(run, refreshes)


def _refreshes(run: Run, step: int) -> int:
    spec = run.spec.comparisons
    return step // spec.refresh_every_steps if spec.HasField("refresh_every_steps") else 0


def _label(run: Run, refreshes: int, policy_version: int) -> None:
    spec = run.spec.comparisons
    prompts = run.prompts.take(
        judged_prompts(run), spec.pairs + (refreshes - 1) * spec.refresh_pairs, spec.refresh_pairs, run.spec.seed
    )
    labelling = Labelling(run, REFRESHING, len(prompts), policy_version)
    run.reporter.report(0, len(prompts), text=f"labels for refresh {refreshes} of the preference model")
    with run.reporter.in_phase(run_pb2.PHASE_JUDGING):
        for start in range(0, len(prompts), BATCH):
            run.reporter.raise_if_stopped()
            batch, name = prompts[start : start + BATCH], f"refresh-{refreshes}-{start}"
            answers = sample(run, batch, policy_version, derive_seed(run.spec.seed, name), samples_per_prompt=2)
            for pairs in different_answers(batch, answers):
                labelling.label(name, pairs)
