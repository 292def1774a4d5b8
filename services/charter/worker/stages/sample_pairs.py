"""Samples two answers of the starting policy to each of the training prompts that will be judged."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from charter.data.prompts import TaskPrompt
from charter.jsonl import append_line
from charter.spec.facts import AI, label_shares, label_sources, needs_preference_model
from charter.state_files import read_log
from charter.v1 import run_pb2
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.seeds import derive_seed

# Prompts in one call, so that progress shows and little is lost when the worker dies.
BATCH = 32


@dataclass(frozen=True, slots=True)
class Written:
    """One answer, and whether the token limit ended it."""

    text: str
    cut_off: bool


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
        return needs_preference_model(spec)

    def done(self, run: Run) -> bool:
        """Whether every batch is sampled."""
        return len(_sampled(run)) == len(_batches(run)) or run.artifacts.preference_fit().exists()

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
        batches = _batches(run)
        for index in range(len(_sampled(run)), len(batches)):
            run.reporter.raise_if_stopped()
            version = serve_start(run)
            answers = sample_two(run, batches[index], version, derive_seed(run.spec.seed, "pairs", index))
            lines = [[asdict(one) for one in both] for both in answers]
            append_line(run.artifacts.pairs, json.dumps(lines, ensure_ascii=False))
            run.reporter.report(min((index + 1) * BATCH, len(prompts)), len(prompts))


def sampled_pairs(run: Run) -> list[list[Pair]]:
    """The pairs in the batches that they were sampled in. Identical answers are left out and counted."""
    batches = _batches(run)
    pairs = [
        [Pair(prompt, a, b) for prompt, (a, b) in zip(batch, answers, strict=True) if a.text != b.text]
        for batch, answers in zip(batches, _sampled(run), strict=True)
    ]
    sampled, usable = sum(map(len, batches)), sum(map(len, pairs))
    run.artifacts.count(pairs_sampled=sampled, pairs_identical=sampled - usable)
    return pairs


def _batches(run: Run) -> list[list[TaskPrompt]]:
    prompts = pair_prompts(run)
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]


def _sampled(run: Run) -> list[list[list[Written]]]:
    """Both answers to each prompt of the batches that are finished."""
    return read_log(
        run.artifacts.pairs,
        lambda line: [[Written(**one) for one in both] for both in json.loads(line)],
        "Delete it and resume the run, which then samples these pairs again",
    )


def pair_prompts(run: Run) -> list[TaskPrompt]:
    """The prompts that get pairs: judged prompts in the run's order, again from the start when there are too few."""
    judged = judged_prompts(run)
    return run.prompts.take(judged, 0, run.spec.comparisons.pairs, run.spec.seed) if judged else []


def judged_prompts(run: Run) -> list[TaskPrompt]:
    """The training prompts of the dimensions in which the judge's labels have a share."""
    return [prompt for prompt in run.prompts.train if AI in label_shares(run.spec.feedback, prompt.dimension)]


def sample_two(run: Run, prompts: Sequence[TaskPrompt], version: int, seed: int) -> list[list[Written]]:
    """Two answers to each prompt by the policy's weights ``version``."""
    answers = run.services.policy.generate(
        [prompt.messages for prompt in prompts],
        run.spec.sampling,
        version=version,
        seed=seed,
        samples_per_prompt=2,
    )
    return [[Written(answer.text, not answer.ended) for answer in both] for both in answers]
