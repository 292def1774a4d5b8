"""Samples the answers of coming steps while the worker learns from those of this one.

Staleness is bounded by admission: a batch is begun only when at most ``ppo.max_staleness`` steps will lie between the
weights that write it and those that learn from it. So nothing that was sampled is ever thrown away for its age.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context

from opentelemetry.trace import Span

from charter.data.prompts import TaskPrompt
from charter.rpc.logs import working_on
from charter.rpc.tracing import start_trace, traced, working_in
from charter.spec.facts import servers_sleep
from charter.worker.context import Run
from charter.worker.failures import draws
from charter.worker.reinforcement.progress import Progress
from charter.worker.reinforcement.sampling import rollouts
from charter.worker.reinforcement.sampling.rollouts import Batch
from charter.worker.seeds import derive_seed

# The stage of ``Failures``; its places are steps.
TRAINING = "training"
# Where the update, or what it reports, was not finite; its places are steps too.
UPDATING = "updating"
# How often a wait for answers asks whether to stop.
_ASK_SECONDS = 0.5


@contextmanager
def sampling_ahead(run: Run, sampled: Mapping[int, Batch]) -> Iterator["Ahead"]:
    """Batches for the steps inside the block; what is under way at its end is broken off.

    ``sampled`` are batches by step that an earlier attempt has sampled and not learned from.
    """
    ahead = Ahead(run, sampled)
    try:
        yield ahead
    finally:
        ahead.close()


class Ahead:
    """The batches that are sampled, or being sampled, and not yet learned from, by step (from 0).

    They are sampled on a thread of its own, one after the other.
    """

    def __init__(self, run: Run, sampled: Mapping[int, Batch]) -> None:
        self._run = run
        # Services that sleep while the worker learns cannot sample meanwhile.
        self._staleness = 0 if servers_sleep(run.spec.services) else run.spec.ppo.max_staleness
        # Most engines exchange weights between two batches of their own. A batch of ours that is on its way then would
        # be written by two versions, parted by chance, and a resumed run could not repeat it. vLLM exchanges them in
        # the middle of answers and never repeats bit by bit.
        self._in_flight = run.services.policy.updates_in_flight()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sample")
        self._broken_off = threading.Event()
        # A step's trace begins with the sampling of its answers.
        self._spans: dict[int, Span] = {}
        self._batches: dict[int, Future[Batch]] = {}
        for step, batch in sampled.items():
            # Another seed: the run stopped at these answers.
            if batch.seed == rollouts_seed(run, step):
                self._batches[step] = Future()
                self._batches[step].set_result(batch)

    def admit(self, progress: Progress) -> None:
        """Begin every batch that may be begun now that the weights of ``progress`` are served; forget used ones."""
        for step in [step for step in self._batches if step < progress.step]:
            del self._batches[step]
        for step in range(progress.step, min(progress.step + self._staleness + 1, self._run.spec.ppo.steps)):
            if step not in self._batches:
                prompts = prompts_of(self._run, progress, step)
                with working_on(step=str(step + 1)), working_in(self._span(step)):
                    self._batches[step] = self._thread.submit(
                        copy_context().run, self._sample, step, prompts, progress.weight_version
                    )

    @contextmanager
    def traced_step(self, step: int) -> Iterator[None]:
        """The rest of a step's trace, which ends with the block."""
        with working_in(self._span(step)):
            yield
        self._spans.pop(step).end()

    def take(self, step: int) -> Batch:
        """The batch of a step, when it is sampled. It stays here until a later step is admitted.

        Raises ``Cancelled`` when asked to stop meanwhile, and what sampling raised.
        """
        while not wait([self._batches[step]], _ASK_SECONDS).done:
            self._run.reporter.raise_if_stopped()
        return self._batches[step].result()

    def settle(self) -> None:
        """Return when new weights may be sent: at once where they go in flight. Raises what sampling has raised."""
        if not self._in_flight:
            for future in self._batches.values():
                future.result()

    def sampled(self, progress: Progress) -> dict[int, Batch]:
        """Whole batches that the steps after ``progress`` will learn from, as a checkpoint keeps them.

        A resumed run samples the others again, by the weights of the checkpoint. Where the result must be the same,
        these are what has begun to write them: ``settle`` came before any newer ones.
        """
        return {
            step: future.result()
            for step, future in self._batches.items()
            if step >= progress.step and future.done() and future.exception() is None
        }

    def close(self) -> None:
        """Break off what is under way."""
        self._run.services.policy.break_off(self._broken_off)
        self._thread.shutdown(cancel_futures=True)
        for span in self._spans.values():
            span.end()

    def _span(self, step: int) -> Span:
        if step not in self._spans:
            self._spans[step] = start_trace("ppo.step", run=self._run.id, step=step + 1)
        return self._spans[step]

    def _sample(self, step: int, prompts: list[TaskPrompt], version: int) -> Batch:
        start, seed = time.monotonic(), rollouts_seed(self._run, step)
        with traced("sample"):
            groups = rollouts.sample(
                self._run,
                prompts,
                version=version,
                seed=seed,
                broken_off=self._broken_off,
            )
        return Batch(groups, time.monotonic() - start, seed)


def prompts_of(run: Run, progress: Progress, step: int) -> list[TaskPrompt]:
    """The prompts of a step that is not done yet."""
    count = run.spec.ppo.episodes_per_step // run.spec.ppo.samples_per_prompt
    cursor = progress.prompt_cursor + (step - progress.step) * count
    # Not the order of the labelled pairs: the first scores would be of prompts that the preference model was fitted to.
    return run.prompts.take(run.prompts.train, cursor, count, derive_seed(run.spec.seed, "rollout prompts"))


def rollouts_seed(run: Run, step: int) -> int:
    """Seed of a step's answers, and of the judge's draws for them: another one after a stop at that step."""
    again = draws(run, TRAINING, step) + draws(run, UPDATING, step)
    return derive_seed(run.spec.seed, "rollouts", step, *([again] if again else []))
