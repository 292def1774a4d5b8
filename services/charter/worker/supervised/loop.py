"""The loop of a stage that learns from what is written: steps, measurements, checkpoints, and the model at the end."""

import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from charter.evaluation.statistics import bootstrap_interval
from charter.rpc.logs import working_on
from charter.rpc.tracing import traced
from charter.runs.results import Figure, HeldOutLoss, Learned, LearnedSource, write_result
from charter.v1 import run_pb2
from charter.worker import metrics
from charter.worker.clients.gpu_turn import gpu_turn
from charter.worker.context import Run
from charter.worker.errors import Cancelled
from charter.worker.failures import drawn_anew_after, draws
from charter.worker.seeds import derive_seed
from charter.worker.supervised.corpus import Corpus, Item
from charter.worker.supervised.learner import SHARES, Learner, Measured
from charter.worker.supervised.mixture import Batching
from charter.worker.supervised.progress import Progress, newest, save
from charter.worker.supervised.schedule import learning_rate
from charter.worker.training import checkpoint, ranks
from charter.worker.training.lora import add_lora
from charter.worker.training.models import LanguageModel
from charter.worker.training.saving import save_policy

# Tokens that a model writes to be looked at, and those of a text that it goes on from at least.
_SAMPLED = 64
_LEAST_BEGINNING = 16

# Of the intervals of figures.
_RESAMPLES = 1000

Settings = run_pb2.SupervisedSpec | run_pb2.PretrainingSpec | run_pb2.DpoSpec | run_pb2.KtoSpec
# Makes a learner of a model, its device, the section's name, and what else ``Learner`` takes.
MakeLearner = Callable[..., Learner[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model is to go on writing at each measurement, up to one of ``stops``; all are token ids."""

    beginning: Sequence[int]
    tokens: int
    stops: Collection[int]
    decode: Callable[[Sequence[int]], str]
    # The beginning as a report may have it.
    shown: str

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        context: int,
        most: int,
        stops: Collection[int],
        decode: Callable[[Sequence[int]], str],
        show: Callable[[str], str] = str,
    ) -> "Sample":
        """Behind what comes before the first target of something that is held out, else of what is learned.

        ``show`` makes of the beginning what a report may have of it.
        """
        held_out = [item for one in corpus.values() for item in one.held_out]
        items = held_out or [item for one in corpus.values() for item in one.train]
        # Where it is short enough for the rest.
        sequences = [item.sequences[0] for item in items]
        first = next((one for one in sequences if one.states[0] < context - _SAMPLED), sequences[0])
        beginning = first.ids[: max(first.states[0] + 1, min(_LEAST_BEGINNING, len(first.ids) // 2))]
        tokens = min(most, _SAMPLED, max(1, context - len(beginning)))
        return cls(beginning, tokens, stops, decode, show(decode(beginning)))

    def text(self, written: Sequence[int]) -> str:
        """What was written, as text."""
        end = next((place for place, token in enumerate(written) if token in self.stops), len(written))
        return self.decode(written[:end])


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage learns. ``name`` is that of its checkpoints, folder and result, ``section`` that in the spec."""

    name: str
    section: str
    settings: Settings
    corpus: Corpus
    batching: Batching
    sample: Sample
    learner: MakeLearner
    # Adds to the items what the starting model says of them, and keeps it in the folder of the checkpoints.
    complete: Callable[[Run, Corpus, Path], Corpus] | None = None

    def due(self, step: int, epochs: Sequence[int]) -> bool:
        """Whether the loss is measured after so many steps: before the first, on the way, and after the last."""
        if step in (0, sum(epochs)):
            return True
        if self.settings.HasField("evaluate_every_steps"):
            return step % self.settings.evaluate_every_steps == 0
        return step in [sum(epochs[: number + 1]) for number in range(len(epochs))]


def learn(run: Run, plan: Plan) -> None:
    """Learn all of a plan, from the newest checkpoint if there is one, and write model and result.

    Raises ``Cancelled`` after a checkpoint.
    """
    folder = run.artifacts.checkpoints / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    with gpu_turn(run):
        learner = run.leader.hold(
            make_learner, plan.learner, run.start.model, plan.section, plan.settings, run.spec.seed
        )
        checkpoint.clean(folder)
        if plan.complete is not None:
            plan = replace(plan, corpus=plan.complete(run, plan.corpus, folder))
        epochs = plan.batching.steps()
        progress = _take_steps(run, plan, folder, epochs, _resume(run, folder))
        kept = progress.best.step if progress.best is not None else progress.step
        if kept != progress.step:
            run.leader.with_learner(checkpoint.restore, checkpoint.folder_of(folder, kept))
        save_policy(run.leader, learner, run.start.model, run.artifacts.folder / plan.name)
        del learner
        run.leader.release()
    write_result(run.artifacts.folder, plan.name, _result(run, plan, progress, kept, sum(epochs)))
    # It says that the stage is done.
    run.artifacts.add_learned(plan.name)
    remove_checkpoints(run, plan.name)
    text = f"the weights after step {kept} are kept"
    run.reporter.report(progress.step, progress.step, text=text)


def remove_checkpoints(run: Run, name: str) -> None:
    """Of a stage that is done."""
    shutil.rmtree(run.artifacts.checkpoints / name, ignore_errors=True)


def make_learner(make: MakeLearner, model: str, section: str, settings: Settings, seed: int) -> Learner[Any]:
    """From a hub id or folder, with adapters where the settings ask for them; every rank's shards."""

    def load(device: torch.device) -> LanguageModel:
        actor = LanguageModel.load(model, device)
        if settings.HasField("lora_rank"):
            add_lora(actor.model, settings.lora_rank, derive_seed(seed, section))
        return actor

    return make(
        ranks.load_sharded(load, ranks.device()),
        ranks.device(),
        section,
        bfloat16=settings.precision == "bfloat16",
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def _resume(run: Run, folder: Path) -> Progress:
    if (found := newest(folder)) is None:
        return Progress()
    path, progress = found
    if not progress.step:
        # Nothing was learned: the spec may have been corrected since.
        shutil.rmtree(path)
        return Progress()
    run.leader.with_learner(checkpoint.restore, path)
    run.reporter.report(progress.step, 0, text=f"resumed from {path.name}")
    return progress


def _take_steps(run: Run, plan: Plan, folder: Path, epochs: Sequence[int], progress: Progress) -> Progress:
    settings, total = plan.settings, sum(epochs)
    saved = progress.step
    if not progress.step and not progress.measured:
        progress = _measured(run, plan, progress)
        run.reporter.report(0, total, step=0, numbers=_held_out_numbers(progress))
        if progress.measured:
            # It may be the best.
            _save(run, folder, progress)
    for batch in plan.batching.batches(epochs, progress.step):
        if progress.stopped(settings.patience):
            run.reporter.report(progress.step, total, text="stopped early: the held-out loss has risen")
            break
        try:
            run.reporter.raise_if_stopped()
        except Cancelled:
            if saved != progress.step:
                _save(run, folder, progress)
            raise
        if draws(run, plan.section, progress.step):
            progress = replace(progress, step=progress.step + 1)
            text = f"batch {progress.step} is left out: its numbers were not finite in an earlier attempt"
            run.reporter.report(progress.step, total, text=text)
            continue
        with (
            traced(f"{plan.name}.step"),
            working_on(step=str(progress.step + 1)),
            drawn_anew_after(run, plan.section, progress.step, f"{plan.section}.learning_rate"),
        ):
            progress = _step(run, plan, batch, progress, epochs)
        best = progress.best is not None and progress.best.step == progress.step
        if best or progress.step == total or progress.step % settings.checkpoint_every_steps == 0:
            _save(run, folder, progress)
            saved = progress.step
    return progress


def _step(
    run: Run, plan: Plan, batch: Sequence[tuple[str, int]], progress: Progress, epochs: Sequence[int]
) -> Progress:
    settings, total = plan.settings, sum(epochs)
    items = [plan.corpus[source].train[place] for source, place in batch]
    rate = learning_rate(progress.step, total, settings.learning_rate, settings.warmup_share)
    start = time.monotonic()
    with traced("update"):
        numbers = run.leader.with_learner(Learner.update, items, rate)
    seconds = time.monotonic() - start
    numbers |= {"step_seconds": seconds, "tokens_per_second": numbers["target_tokens"] / seconds}
    progress = replace(progress, step=progress.step + 1)
    if plan.due(progress.step, epochs):
        progress = _measured(run, plan, progress)
        numbers |= _held_out_numbers(progress)
    run.reporter.report(progress.step, total, step=progress.step, numbers=numbers)
    return progress


def _measured(run: Run, plan: Plan, progress: Progress) -> Progress:
    """With the held-out loss as it is now, where something is held out."""
    held_out = {name: one.held_out for name, one in plan.corpus.items() if one.held_out}
    if not held_out:
        return progress
    every = [item for items in held_out.values() for item in items]
    measured = run.leader.with_learner(Learner.measure, every)
    losses = iter(one.loss for one in measured)
    by_source = {
        name: sum(next(losses) for _ in items) / sum(item.units for item in items) for name, items in held_out.items()
    }
    shares = {name: share for name, share in plan.batching.mixture.shares.items() if name in held_out}
    loss = sum(by_source[name] * share for name, share in shares.items()) / sum(shares.values())
    written = run.leader.with_learner(
        Learner.sample,
        plan.sample.beginning,
        plan.sample.tokens,
        run.spec.sampling.temperature,
        derive_seed(run.spec.seed, plan.name, "sample"),
    )
    figures = _figures(every, measured, run.spec.seed)
    found = HeldOutLoss(progress.step, loss, by_source, plan.sample.text(written), figures)
    return replace(progress, measured=(*progress.measured, found))


def _figures(items: Sequence[Item], measured: Sequence[Measured], seed: int) -> dict[str, Figure]:
    """The mean of each figure over the items that have it."""
    found = {}
    for name in dict.fromkeys(name for one in measured for name in one.figures):
        having = [(item, one) for item, one in zip(items, measured, strict=True) if name in one.figures]
        values = [one.figures[name] for _, one in having]
        bounds = (0.0, 1.0) if name in SHARES else None
        interval = bootstrap_interval(
            values, [item.group for item, _ in having], samples=_RESAMPLES, seed=seed, bounds=bounds
        )
        found[name] = Figure(fmean(values), *interval)
    return found


def _held_out_numbers(progress: Progress) -> dict[str, float]:
    if not progress.measured:
        return {}
    newest_one = progress.measured[-1]
    return {
        "held_out_loss": newest_one.loss,
        **{f"{metrics.BY_SOURCE}{name}": loss for name, loss in newest_one.by_source.items()},
        **{f"held_out_{name}": figure.mean for name, figure in newest_one.figures.items()},
    }


def _save(run: Run, folder: Path, progress: Progress) -> None:
    start = time.monotonic()
    with traced("checkpoint"):
        path = run.leader.with_learner(save, folder, progress)
    metrics.CHECKPOINT_SECONDS.labels(run.id).set(time.monotonic() - start)
    metrics.CHECKPOINT_TIME.labels(run.id).set(path.stat().st_mtime)


def _result(run: Run, plan: Plan, progress: Progress, kept: int, total: int) -> Learned:
    shares = plan.batching.mixture.shares
    losses = {one.step: one.by_source for one in progress.measured}
    sources = {
        name: LearnedSource(
            train=len(one.train),
            held_out=len(one.held_out),
            tokens=_targets(one.train),
            share=shares[name],
            left_out=one.left_out,
            bits_per_byte_before=_bits_per_byte(losses.get(0, {}), name, one.held_out),
            bits_per_byte=_bits_per_byte(losses.get(kept, {}), name, one.held_out),
            digest=one.digest,
            labels=dict(one.labels),
            verdicts=dict(one.verdicts),
        )
        for name, one in plan.corpus.items()
    }
    return Learned(
        model=run.start.model,
        sources=sources,
        steps=total,
        done=progress.step,
        kept_step=kept,
        sample_beginning=plan.sample.shown,
        measured=progress.measured,
    )


def _bits_per_byte(losses: Mapping[str, float], name: str, items: Sequence[Item]) -> float | None:
    """From the loss in nats per token: comparable between models of different tokenizers."""
    size = sum(item.bytes for item in items)
    return losses[name] * _targets(items) / math.log(2) / size if size and name in losses else None


def _targets(items: Sequence[Item]) -> int:
    return sum(item.targets for item in items)
