"""Updates the policy by PPO against the preference model's scores, and writes it to ``policy/``."""

import shutil
import time

import torch
from transformers import AutoTokenizer

from charter.v1 import run_pb2
from charter.worker import checkpoint, metrics, rollouts
from charter.worker.agreement import probe_policy
from charter.worker.checkpoint import Progress
from charter.worker.context import STARTING_VERSION, Run
from charter.worker.errors import Cancelled
from charter.worker.models import Critic, LanguageModel, named_tensors
from charter.worker.prompts import take
from charter.worker.seeds import derive_seed
from charter.worker.served import check_served, policy_serves, serve_policy
from charter.worker.step import learn
from charter.worker.update import Learner


def run_ppo(run: Run) -> None:
    """Run PPO to its last step, from the newest checkpoint if there is one. Raises ``Cancelled`` after a checkpoint."""
    if run.artifacts.policy.exists():
        return
    with run.reporter.in_phase(run_pb2.PHASE_PPO):
        learner = make_learner(run)
        progress = _resume(run, learner)
        saved = progress.step
        while progress.step < run.spec.ppo.steps:
            try:
                progress = _step(run, learner, progress)
            except Cancelled:
                # Asked before anything was updated: what was sampled is dropped, and sampled again on resume.
                if saved != progress.step:
                    _save(run, learner, progress)
                raise
            if progress.step % run.spec.checkpoints.every_steps == 0 or progress.step == run.spec.ppo.steps:
                _save(run, learner, progress)
                saved = progress.step
        _write_policy(run, learner, progress)


def make_learner(run: Run) -> Learner:
    """Policy and reference from the starting weights, critic from the preference model if it reads the same tokens."""
    model = run.spec.policy.model
    critic = (
        Critic.from_preference_model(run.artifacts.preference_model, run.device)
        if run.spec.preference_model.model == model
        else Critic.from_policy(model, run.device)
    )
    return Learner(
        spec=run.spec.ppo,
        temperature=run.spec.sampling.temperature,
        actor=LanguageModel.load(model, run.device),
        reference=LanguageModel.load(model, run.device),
        critic=critic,
        device=run.device,
    )


def _resume(run: Run, learner: Learner) -> Progress:
    """Go on from the newest complete checkpoint, or start; either way the services hold what the run needs."""
    torch.manual_seed(derive_seed(run.spec.seed, "ppo"))
    progress = Progress(0, 0, STARTING_VERSION, run.spec.ppo.kl_coefficient)
    run.artifacts.checkpoints.mkdir(exist_ok=True)
    checkpoint.clean(run.artifacts.checkpoints)
    if (found := checkpoint.newest(run.artifacts.checkpoints)) is not None:
        path, progress = found
        checkpoint.restore(path, learner)
        run.reporter.report(progress.step, run.spec.ppo.steps, text=f"resumed from {path.name}")
    if not policy_serves(run, progress.weight_version):
        serve_policy(run, named_tensors(learner.actor.model), progress.weight_version)
    probe_policy(run, learner.actor, progress.weight_version)
    return progress


def _step(run: Run, learner: Learner, progress: Progress) -> Progress:
    """Sample, score, update, send the new weights, report."""
    spec = run.spec.ppo
    clock = _Clock()
    _announce(run, progress, "sampling")
    prompts = take(run.prompts.train, progress.prompt_cursor, spec.episodes_per_step, run.spec.seed)
    seed = derive_seed(run.spec.seed, "rollouts", progress.step)
    answers = rollouts.sample(run, prompts, version=progress.weight_version, seed=seed)
    clock.lap("sampling_seconds")
    _announce(run, progress, "scoring")
    episodes = rollouts.score(run, prompts, answers)
    check_served(run)
    clock.lap("scoring_seconds")
    _announce(run, progress, "updating")
    numbers, kl_coefficient = learn(learner, episodes, progress.step, progress.kl_coefficient)
    clock.lap("update_seconds")
    version = progress.weight_version
    if progress.step >= spec.critic_warmup_steps:
        version += 1
        serve_policy(run, named_tensors(learner.actor.model), version)
        numbers |= probe_policy(run, learner.actor, version)
    clock.lap("weight_sync_seconds")

    tokens = sum(len(answer.token_ids) for answer in answers)
    metrics.STEPS.inc()
    metrics.EPISODES.inc(len(answers))
    metrics.TOKENS.inc(tokens)
    seconds = sum(clock.laps.values())
    numbers |= clock.laps | {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "episodes_per_second": len(answers) / seconds,
        "weight_version": float(version),
    }
    done = Progress(
        step=progress.step + 1,
        prompt_cursor=progress.prompt_cursor + len(prompts),
        weight_version=version,
        kl_coefficient=kl_coefficient,
    )
    run.reporter.report(done.step, spec.steps, step=done.step, numbers=numbers)
    return done


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now


def _announce(run: Run, progress: Progress, what: str) -> None:
    """Say what comes next in a step, and stop before it when asked to."""
    run.reporter.report(progress.step, run.spec.ppo.steps, text=what)
    run.reporter.raise_if_stopped()


def _save(run: Run, learner: Learner, progress: Progress) -> None:
    start = time.monotonic()
    checkpoint.save(run.artifacts.checkpoints, learner, progress, run.spec.checkpoints.keep)
    metrics.CHECKPOINT_SECONDS.set(time.monotonic() - start)


def _write_policy(run: Run, learner: Learner, progress: Progress) -> None:
    """The aligned model in the Hugging Face layout; the folder appears when it is whole."""
    temporary = run.artifacts.policy.with_name(".policy.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    learner.actor.model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(run.spec.policy.model).save_pretrained(temporary)
    run.artifacts.record["policy_version"] = progress.weight_version
    run.artifacts.save_record()
    temporary.rename(run.artifacts.policy)
