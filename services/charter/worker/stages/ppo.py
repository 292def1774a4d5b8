"""Updates the policy step by step against the rewards, by the spec's algorithm, and writes it to ``policy/``."""

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from charter.evaluation.samples import extremes, step_to_line
from charter.rpc.logs import working_on
from charter.rpc.tracing import exemplar, traced
from charter.v1 import run_pb2
from charter.worker import checkpoint, metrics, ranks, rollouts
from charter.worker.agreement import probe_policy
from charter.worker.algorithms import ALGORITHMS
from charter.worker.artifacts import append_line
from charter.worker.checkpoint import Progress
from charter.worker.context import STARTING_VERSION, Run
from charter.worker.errors import Cancelled
from charter.worker.gpu_turn import gpu_turn
from charter.worker.lora import add_lora, merged_tensors
from charter.worker.models import Critic, LanguageModel, named_tensors
from charter.worker.overoptimisation import best, parted
from charter.worker.prompts import take
from charter.worker.seeds import derive_seed
from charter.worker.served import check_served, policy_serves, serve_learner
from charter.worker.stages.refresh import preference_version, refresh_preference_model
from charter.worker.stages.watch import due, measure
from charter.worker.step import Controls, learn
from charter.worker.update import Learner


def run_ppo(run: Run) -> None:
    """Go to the last step, from the newest checkpoint if there is one. Raises ``Cancelled`` after a checkpoint."""
    if run.artifacts.policy.exists():
        return
    with run.reporter.in_phase(run_pb2.PHASE_PPO):
        learner = run.leader.hold(make_learner, run.spec, _preference_model(run), run.resting_device)
        progress = _resume(run, learner)
        saved = progress.step
        while progress.step < run.spec.ppo.steps and not _parted(run, progress):
            try:
                with working_on(step=str(progress.step + 1)), traced("ppo.step", run=run.id, step=progress.step + 1):
                    refresh_preference_model(run, progress.step, progress.weight_version)
                    progress = _step(run, learner, progress)
            except Cancelled:
                # Asked before anything was updated: what was sampled is dropped, and sampled again on resume.
                if saved != progress.step:
                    _save(run, learner, progress)
                raise
            last = progress.step == run.spec.ppo.steps
            if last or progress.step % run.spec.checkpoints.every_steps == 0 or due(run, progress.step):
                _save(run, learner, progress)
                saved = progress.step
        if _parted(run, progress):
            progress = _go_back(run, learner, progress)
        _write_policy(run, learner, progress)


def make_learner(spec: run_pb2.RunSpec, preference_model: Path | None, place: torch.device) -> Learner:
    """Policy and reference from the starting weights, and the critic if the algorithm needs one; every rank's shards.

    Args:
        spec: filled.
        preference_model: what the critic starts from; None = the policy.
        place: where a rank that is alone keeps them.
    """
    model, rank = spec.policy.model, spec.ppo.lora_rank if spec.ppo.HasField("lora_rank") else None

    def load_actor(device: torch.device) -> LanguageModel:
        actor = LanguageModel.load(model, device)
        if rank is not None:
            add_lora(actor.model, rank, spec.seed)
        return actor

    def load_critic(device: torch.device) -> Critic:
        critic = (
            Critic.from_preference_model(preference_model, device)
            if preference_model is not None
            else Critic.from_policy(model, device)
        )
        if rank is not None:
            add_lora(critic.backbone, rank, spec.seed)
        return critic

    return Learner(
        spec=spec.ppo,
        temperature=spec.sampling.temperature,
        actor=ranks.load_sharded(load_actor, place),
        critic=ranks.load_sharded(load_critic, place) if ALGORITHMS[spec.ppo.algorithm].needs_critic else None,
        reference=ranks.load_sharded(partial(LanguageModel.load, model), place) if rank is None else None,
        device=ranks.device(),
    )


def _preference_model(run: Run) -> Path | None:
    """The preference model if there is one that reads the policy's tokens."""
    same = run.needs_preference_model and run.spec.preference_model.model == run.spec.policy.model
    return run.artifacts.preference_model if same else None


def _resume(run: Run, learner: Learner) -> Progress:
    """Go on from the newest complete checkpoint, or start; either way the services hold what the run needs."""
    torch.manual_seed(derive_seed(run.spec.seed, "ppo"))
    progress = Progress(0, 0, STARTING_VERSION, Controls(run.spec.ppo.kl_coefficient))
    run.artifacts.checkpoints.mkdir(exist_ok=True)
    checkpoint.clean(run.artifacts.checkpoints)
    if (found := checkpoint.newest(run.artifacts.checkpoints)) is not None:
        path, progress = found
        run.leader.together(checkpoint.restore, path)
        metrics.CHECKPOINT_TIME.labels(run.id).set(path.stat().st_mtime)
        run.reporter.report(progress.step, run.spec.ppo.steps, text=f"resumed from {path.name}")
    if not policy_serves(run, progress.weight_version):
        serve_learner(run, progress.weight_version)
    probe_policy(run, progress.weight_version)
    return progress


def _step(run: Run, learner: Learner, progress: Progress) -> Progress:
    """Sample, score, update, send the new weights, report."""
    spec = run.spec.ppo
    clock = _Clock()
    _announce(run, progress, "sampling")
    count = spec.episodes_per_step // spec.samples_per_prompt
    prompts = take(run.prompts.train, progress.prompt_cursor, count, run.spec.seed)
    seed = derive_seed(run.spec.seed, "rollouts", progress.step)
    with traced("sample"):
        groups = rollouts.sample(run, prompts, version=progress.weight_version, seed=seed)
    clock.lap("sampling_seconds")
    _announce(run, progress, "scoring")
    scored_by = preference_version(run, progress.step)
    with traced("score"):
        episodes = rollouts.score(run, prompts, groups, seed, scored_by)
    check_served(run, scored_by)
    clock.lap("scoring_seconds")
    _announce(run, progress, "updating")
    with traced("update"), gpu_turn(run, learner):
        numbers, controls = run.leader.together(learn, episodes, progress.step, progress.controls)
    clock.lap("update_seconds")
    version = progress.weight_version
    if learner.critic is None or progress.step >= spec.critic_warmup_steps:
        version += 1
        with traced("send weights"):
            serve_learner(run, version)
            numbers |= probe_policy(run, version)
    clock.lap("weight_sync_seconds")

    measured = progress.measured
    if due(run, progress.step + 1):
        # No way to stop here: the models have learned from the step, and only a whole step is saved.
        run.reporter.report(progress.step, spec.steps, text="the judge compares")
        measured = (*measured, measure(run, learner, progress.step + 1, version, scored_by))
        numbers |= {"held_out_judge": measured[-1].judge, "held_out_kl": measured[-1].kl}
        if measured[-1].score is not None:
            numbers["held_out_score"] = measured[-1].score
    clock.lap("watching_seconds")

    kept = extremes(
        rollouts.samples_of(
            run,
            progress.step + 1,
            prompts,
            groups,
            episodes,
            version=progress.weight_version,
            preference_version=scored_by,
        )
    )
    append_line(run.artifacts.samples, step_to_line(kept))
    tokens = sum(len(answer) for answer in episodes.answers)
    # Its exemplar leads from the step on the dashboard to its trace.
    metrics.STEPS.labels(run.id).inc(exemplar=exemplar())
    metrics.EPISODES.labels(run.id).inc(len(episodes.answers))
    metrics.TOKENS.labels(run.id).inc(tokens)
    numbers |= rollouts.scores_by_dimension(run, prompts, groups, episodes)
    seconds = sum(clock.laps.values())
    numbers |= clock.laps | {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "episodes_per_second": len(episodes.answers) / seconds,
        "weight_version": float(version),
    }
    done = Progress(
        step=progress.step + 1,
        prompt_cursor=progress.prompt_cursor + len(prompts),
        weight_version=version,
        controls=controls,
        measured=measured,
    )
    run.reporter.report(done.step, spec.steps, step=done.step, numbers=numbers)
    return done


def _parted(run: Run, progress: Progress) -> bool:
    spec = run.spec.evaluation
    return spec.HasField("patience") and parted(progress.measured, spec.patience)


def _go_back(run: Run, learner: Learner, progress: Progress) -> Progress:
    """Take back the steps since the one that the judge liked best."""
    top = best(progress.measured)
    run.leader.together(checkpoint.restore, checkpoint.folder_of(run.artifacts.checkpoints, top.step))
    text = (
        f"stopped after step {progress.step}: the score rose and the judge's opinion fell; back to step {top.step}, "
        f"where the judge preferred the policy by {top.judge:.0%}"
    )
    run.reporter.report(progress.step, run.spec.ppo.steps, text=text)
    run.artifacts.count(steps_taken_back=progress.step - top.step)
    # Versions only grow; the evaluation has this one served.
    return replace(progress, weight_version=progress.weight_version + 1)


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
    with traced("checkpoint"):
        path = run.leader.together(checkpoint.save, run.artifacts.checkpoints, progress, run.spec.checkpoints.keep)
    metrics.CHECKPOINT_SECONDS.labels(run.id).set(time.monotonic() - start)
    metrics.CHECKPOINT_TIME.labels(run.id).set(path.stat().st_mtime)


def _write_policy(run: Run, learner: Learner, progress: Progress) -> None:
    """The aligned model in the Hugging Face layout; the folder appears when it is whole."""
    temporary = run.artifacts.policy.with_name(".policy.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model = learner.actor.model
    model.save_pretrained(temporary, state_dict=merged_tensors(model, run.leader.together(_actor_tensors)))
    AutoTokenizer.from_pretrained(run.spec.policy.model).save_pretrained(temporary)
    run.artifacts.record["policy_version"] = progress.weight_version
    run.artifacts.save_record()
    temporary.rename(run.artifacts.policy)


def _actor_tensors(learner: Learner) -> dict[str, Tensor]:
    return ranks.whole(named_tensors(learner.actor.model))
