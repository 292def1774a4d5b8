"""Updates the policy step by step against the rewards, by the spec's algorithm, and writes it to ``policy/``."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from charter.data.prompts import TaskPrompt
from charter.jsonl import append_line
from charter.rpc.logs import working_on
from charter.rpc.tracing import exemplar, traced
from charter.runs.results import LeftOut
from charter.runs.samples import forget_after, step_to_line
from charter.spec.facts import has_own_critic, needs_reinforcement, servers_sleep
from charter.v1 import run_pb2
from charter.worker import metrics
from charter.worker.clients.failed import Failed
from charter.worker.clients.gpu_turn import gpu_turn
from charter.worker.clients.served import check_served, policy_serves, serve_learner
from charter.worker.context import Run
from charter.worker.errors import Cancelled, TooManyFailuresError
from charter.worker.failures import Failures, drawn_anew_after
from charter.worker.reinforcement import samples
from charter.worker.reinforcement.agreement import probe_policy
from charter.worker.reinforcement.overoptimisation import best, parted
from charter.worker.reinforcement.progress import Progress, newest_progress, save_progress, unconsumed_batches
from charter.worker.reinforcement.sampling import rollouts
from charter.worker.reinforcement.sampling.ahead import (
    TRAINING,
    UPDATING,
    Ahead,
    prompts_of,
    rollouts_seed,
    sampling_ahead,
)
from charter.worker.reinforcement.sampling.rollouts import Batch
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from charter.worker.seeds import derive_seed
from charter.worker.stages.refresh import preference_version, refresh_preference_model, restore_preference_model
from charter.worker.stages.watch import WATCHING, due, measure, measurements
from charter.worker.training import checkpoint, ranks
from charter.worker.training.batches import Episodes
from charter.worker.training.lora import add_lora
from charter.worker.training.models import Critic, LanguageModel
from charter.worker.training.saving import save_policy


class Reinforcement:
    """Takes the steps of RL and writes ``policy/``."""

    phase = run_pb2.PHASE_PPO

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the policy learns by RL."""
        return needs_reinforcement(spec)

    def done(self, run: Run) -> bool:
        """Whether the aligned policy is there."""
        return run.artifacts.policy.exists()

    def work(self, run: Run) -> None:
        """Go to the last step, from the newest checkpoint if there is one. Raises ``Cancelled`` after a checkpoint."""
        place = run.resting_device
        learner = run.leader.hold(make_learner, run.spec, run.start.model, _preference_model(run), place)
        progress, sampled = _resume(run)
        with sampling_ahead(run, sampled) as ahead:
            progress = _take_steps(run, learner, ahead, progress)
        if _parted(run, progress):
            progress = _go_back(run, progress)
        _write_policy(run, learner, progress)


def _take_steps(run: Run, learner: Learner, ahead: Ahead, progress: Progress) -> Progress:
    saved = progress.step
    left_out = _LeftOut.of(run, learner, progress)
    while progress.step < run.spec.ppo.steps and not _parted(run, progress):
        with working_on(step=str(progress.step + 1)), ahead.traced_step(progress.step):
            try:
                refresh_preference_model(run, progress.step, progress.weight_version)
                clock = _Clock(run)
                # Begun already, but in an attempt's first step and where the services sleep.
                ahead.admit(progress)
                scored = _rollout(run, learner, ahead, progress, left_out.training, clock)
            except (Cancelled, TooManyFailuresError):
                # Nothing was updated: what was sampled for the step is kept for a resume.
                if saved != progress.step:
                    _save(run, progress, ahead)
                raise
            with drawn_anew_after(run, UPDATING, progress.step, "ppo.learning_rate"):
                progress = _learn(run, learner, ahead, progress, scored, left_out, clock)
        last = progress.step == run.spec.ppo.steps
        if last or _saved_after(run, progress.step) or due(run, progress.step):
            _save(run, progress, ahead)
            saved = progress.step
    return progress


def _saved_after(run: Run, step: int) -> bool:
    spec = run.spec.checkpoints
    return any(every and step % every == 0 for every in (spec.every_steps, spec.curve_every_steps))


def make_learner(spec: run_pb2.RunSpec, model: str, preference_model: Path | None, place: torch.device) -> Learner:
    """Policy and reference from the starting weights, and the critic if the algorithm needs one; every rank's shards.

    Args:
        spec: filled.
        model: the starting policy, a hub id or folder.
        preference_model: what the critic starts from; None = the policy.
        place: where a rank that is alone keeps them.
    """
    rank = spec.ppo.lora_rank if spec.ppo.HasField("lora_rank") else None

    def load_actor(device: torch.device) -> LanguageModel:
        actor = LanguageModel.load(model, device, shared_trunk=spec.ppo.shared_trunk)
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
        critic=ranks.load_sharded(load_critic, place) if has_own_critic(spec.ppo) else None,
        reference=ranks.load_sharded(partial(LanguageModel.load, model), place) if rank is None else None,
        device=ranks.device(),
    )


def _preference_model(run: Run) -> Path | None:
    """The preference model if there is one that reads the policy's tokens."""
    same = run.needs_preference_model and run.spec.preference_model.model == run.spec.policy.model
    return run.artifacts.preference_model() if same else None


def _resume(run: Run) -> tuple[Progress, dict[int, Batch]]:
    """Go on from the newest complete checkpoint, or start; either way the services hold what the run needs.

    Also gives the batches, by step, that were sampled and not yet learned from.
    """
    torch.manual_seed(derive_seed(run.spec.seed, "ppo"))
    progress = Progress(0, 0, run.start.version, Controls(run.spec.ppo.kl_coefficient))
    sampled: dict[int, Batch] = {}
    run.artifacts.checkpoints.mkdir(exist_ok=True)
    checkpoint.clean(run.artifacts.checkpoints)
    if (found := newest_progress(run.artifacts.checkpoints)) is not None:
        path, progress = found
        run.leader.with_learner(checkpoint.restore, path)
        sampled = unconsumed_batches(path)
        metrics.CHECKPOINT_TIME.labels(run.id).set(path.stat().st_mtime)
        run.reporter.report(progress.step, run.spec.ppo.steps, text=f"resumed from {path.name}")
    forget_after(run.artifacts.samples, progress.step)
    restore_preference_model(run, progress.step)
    if not policy_serves(run, progress.weight_version):
        serve_learner(run, progress.weight_version)
    probe_policy(run, progress.weight_version)
    return progress, sampled


class _LeftOut(NamedTuple):
    """What the steps leave out, and what the judge's opinion on the way does."""

    training: Failures
    watching: Failures

    @classmethod
    def of(cls, run: Run, learner: Learner, progress: Progress) -> "_LeftOut":
        """Go on counting from what a checkpoint says."""
        spec, earlier = run.spec, progress.left_out
        items = spec.ppo.steps * spec.ppo.episodes_per_step // learner.algorithm.episodes_together
        watched = measurements(spec) * spec.evaluation.watched_prompts
        return cls(
            Failures(run, TRAINING, items, earlier.get(TRAINING)),
            Failures(run, WATCHING, watched, earlier.get(WATCHING)),
        )

    def so_far(self) -> dict[str, LeftOut]:
        """As a checkpoint keeps it."""
        return {TRAINING: self.training.so_far, WATCHING: self.watching.so_far}


@dataclass(frozen=True, slots=True)
class _Scored:
    """What a step learns from."""

    prompts: list[TaskPrompt]
    # Seconds that it took to sample its answers.
    sampling_seconds: float
    answers: rollouts.Scored
    episodes: Episodes
    left_out: LeftOut
    # Of the preference model that scored them.
    preference_version: int


def _rollout(
    run: Run, learner: Learner, ahead: Ahead, progress: Progress, failures: Failures, clock: "_Clock"
) -> _Scored:
    """Wait for the step's answers and have them scored."""
    _announce(run, progress, "sampling")
    batch = ahead.take(progress.step)
    clock.lap("waiting_seconds")
    _announce(run, progress, "scoring")
    prompts = prompts_of(run, progress, progress.step)
    preference = preference_version(run, progress.step)
    with traced("score"):
        scored = rollouts.score(
            run,
            prompts,
            batch.groups,
            rollouts_seed(run, progress.step),
            version=progress.weight_version,
            preference_version=preference,
        )
    check_served(run, preference)
    clock.lap("scoring_seconds")
    # With online DPO both answers of a pair fail together.
    results = scored.scores[:: learner.algorithm.episodes_together]
    left_out = failures.add(results, progress.step)
    if scored.episodes is None:
        failures.stop_without([one for one in results if isinstance(one, Failed)], progress.step)
    _announce(run, progress, "updating")
    return _Scored(prompts, batch.seconds, scored, scored.episodes, left_out, preference)


def _learn(
    run: Run,
    learner: Learner,
    ahead: Ahead,
    progress: Progress,
    scored: _Scored,
    left_out: _LeftOut,
    clock: "_Clock",
) -> Progress:
    """Update, send the new weights, begin the next answers, report. Cannot be stopped: only a whole step is saved."""
    spec, episodes = run.spec.ppo, scored.episodes
    kept = samples.choose(scored.answers, share=spec.sample_share, seed=run.spec.seed, step=progress.step + 1)
    with traced("update"), gpu_turn(run, learner):
        numbers, controls, figures = run.leader.with_learner(
            learn,
            episodes,
            progress.step,
            progress.controls,
            [one.row for one in kept if one.row is not None],
        )
    clock.lap("update_seconds")
    version = progress.weight_version
    if learner.critic is None or progress.step >= spec.critic_warmup_steps:
        version += 1
        ahead.settle()
        clock.lap("waiting_seconds")
        with traced("send weights"):
            serve_learner(run, version)
            numbers |= probe_policy(run, version)
    clock.lap("weight_sync_seconds")
    done = Progress(
        step=progress.step + 1,
        prompt_cursor=progress.prompt_cursor + len(scored.prompts),
        weight_version=version,
        controls=controls,
        measured=progress.measured,
        left_out=left_out.so_far(),
    )
    if not servers_sleep(run.spec.services):
        ahead.admit(done)
    if due(run, done.step):
        run.reporter.report(progress.step, spec.steps, text="the judge compares")
        found = measure(run, learner, done.step, version, scored.preference_version, done.measured, left_out.watching)
        done = replace(done, left_out=left_out.so_far())
        if found is not None:
            done = replace(done, measured=(*done.measured, found))
            numbers |= {"held_out_judge": found.judge, "held_out_kl": found.kl}
            if found.score is not None:
                numbers["held_out_score"] = found.score
    clock.lap("watching_seconds")

    tokens = sum(len(answer) for answer in episodes.answers)
    # Its exemplar leads from the step on the dashboard to its trace.
    metrics.STEPS.labels(run.id).inc(exemplar=exemplar())
    metrics.EPISODES.labels(run.id).inc(len(episodes.answers))
    metrics.TOKENS.labels(run.id).inc(tokens)
    numbers |= rollouts.scores_by_dimension(run, scored.answers)
    numbers |= {f"{metrics.BY_KIND}{kind}": count for kind, count in scored.left_out.kinds.items()}
    numbers["left_out_share"] = scored.left_out.failures / scored.left_out.items
    seconds = sum(clock.laps.values())
    numbers |= clock.laps | {
        "sampling_seconds": scored.sampling_seconds,
        "step_seconds": seconds,
        "worker_idle_share": 1 - clock.laps["update_seconds"] / seconds,
        "policy_idle_share": 1 - clock.policy_busy / seconds,
        "tokens_per_second": tokens / seconds,
        "episodes_per_second": len(episodes.answers) / seconds,
        "weight_version": float(version),
    }
    if run.needs_preference_model:
        numbers["preference_version"] = float(scored.preference_version)
    run.reporter.report(done.step, spec.steps, step=done.step, numbers=numbers, text=scored.left_out.in_words())
    # Behind the report, which refuses numbers that are not finite, and a worker whose run another has taken over.
    kept_answers = samples.samples_of(run, done.step, scored.answers, kept, figures, scored.preference_version)
    append_line(run.artifacts.samples, step_to_line(kept_answers))
    return done


def _parted(run: Run, progress: Progress) -> bool:
    spec = run.spec.evaluation
    return spec.HasField("patience") and parted(progress.measured, spec.patience)


def _go_back(run: Run, progress: Progress) -> Progress:
    """Take back the steps since the one that the judge liked best."""
    top = best(progress.measured)
    run.leader.with_learner(checkpoint.restore, checkpoint.folder_of(run.artifacts.checkpoints, top.step))
    text = (
        f"stopped after step {progress.step}: the score rose and the judge's opinion fell; back to step {top.step}, "
        f"where the judge preferred the policy by {top.judge:.0%}"
    )
    run.reporter.report(progress.step, run.spec.ppo.steps, text=text)
    run.artifacts.count(steps_taken_back=progress.step - top.step)
    # Versions only grow; the evaluation has this one served.
    return replace(progress, weight_version=progress.weight_version + 1)


class _Clock:
    """Seconds of a step by name, and those in which the policy sampled."""

    def __init__(self, run: Run) -> None:
        self.laps: dict[str, float] = {}
        self.policy_busy = 0.0
        self._sampling = run.services.policy.sampling
        self._last, self._busy = time.monotonic(), self._sampling.seconds()

    def lap(self, name: str) -> None:
        """Add what has passed since the lap before."""
        now, busy = time.monotonic(), self._sampling.seconds()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self.policy_busy += busy - self._busy
        self._last, self._busy = now, busy


def _announce(run: Run, progress: Progress, what: str) -> None:
    """Say what comes next in a step, and stop before it when asked to."""
    run.reporter.report(progress.step, run.spec.ppo.steps, text=what)
    run.reporter.raise_if_stopped()


def _save(run: Run, progress: Progress, ahead: Ahead) -> None:
    start = time.monotonic()
    with traced("checkpoint"):
        path = run.leader.with_learner(
            save_progress,
            run.artifacts.checkpoints,
            progress,
            ahead.sampled(progress),
            run.spec.checkpoints.keep,
            run.spec.checkpoints.curve_every_steps,
        )
    metrics.CHECKPOINT_SECONDS.labels(run.id).set(time.monotonic() - start)
    metrics.CHECKPOINT_TIME.labels(run.id).set(path.stat().st_mtime)


def _write_policy(run: Run, learner: Learner, progress: Progress) -> None:
    """Last: the folder's presence says that RL is done."""
    run.artifacts.record["policy_version"] = progress.weight_version
    run.artifacts.save_record()
    save_policy(run.leader, learner, run.start.model, run.artifacts.policy)
