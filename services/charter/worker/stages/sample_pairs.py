"""Samples two answers of the starting policy to each of the training prompts that will be judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from charter.data.prompts import TaskPrompt
from charter.spec.facts import AI, label_shares, label_sources, samples_pairs
from charter.v1 import run_pb2
from charter.worker.answer_log import BATCH, Written, read, sample_all
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.errors import RunError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two different answers to a prompt."""

    prompt: TaskPrompt
    answer_a: Written
    answer_b: Written


class PairSampling:
    """Writes ``pairs.jsonl``: two answers to each prompt, batch by batch."""

    phase = run_pb2.PHASE_SAMPLING_PAIRS

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether a preference model is fitted to them."""
        return samples_pairs(spec)

    def done(self, run: Run) -> bool:
        """Whether every batch is sampled."""
        return run.artifacts.preference_fit().exists() or len(read(run.artifacts.pairs)) == len(pair_prompts(run))

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when a preference model could not be fitted to them, whatever the judge will say."""
        prompts = pair_prompts(run)
        if label_sources(run.spec.feedback) == {AI} and len({prompt.key for prompt in prompts}) < 2:
            enough = len(judged_prompts(run)) > 1
            advice = "raise comparisons.pairs to 2 or more" if enough else "give prompts.train a second, different one"
            raise RunError(
                "all pairs would be of one prompt, and a preference model needs one to fit and one to hold out: "
                f"{advice}"
            )
        sample_all(run, run.artifacts.pairs, prompts, lambda: serve_start(run), seeded="pairs", samples_per_prompt=2)


def sampled_pairs(run: Run) -> list[list[Pair]]:
    """The pairs in the batches that they were sampled in. Identical answers are left out and counted."""
    prompts, answers = pair_prompts(run), read(run.artifacts.pairs)
    pairs = different_answers(prompts, answers)
    run.artifacts.count(pairs_sampled=len(prompts), pairs_identical=len(prompts) - sum(map(len, pairs)))
    return pairs


def different_answers(prompts: Sequence[TaskPrompt], answers: Sequence[Sequence[Written]]) -> list[list[Pair]]:
    """Pairs of two answers, in batches; prompts with two that are equal have none."""
    pairs = list(zip(prompts, answers, strict=True))
    return [
        [Pair(prompt, a, b) for prompt, (a, b) in pairs[start : start + BATCH] if a.text != b.text]
        for start in range(0, len(pairs), BATCH)
    ]


def pair_prompts(run: Run) -> list[TaskPrompt]:
    """The prompts that get pairs: judged prompts in the run's order, again from the start when there are too few."""
    judged = judged_prompts(run)
    return run.prompts.take(judged, 0, run.spec.comparisons.pairs, run.spec.seed) if judged else []


def judged_prompts(run: Run) -> list[TaskPrompt]:
    """The training prompts of the dimensions in which the judge's labels have a share."""
    return [prompt for prompt in run.prompts.train if AI in label_shares(run.spec.feedback, prompt.dimension)]
