"""Samples two answers of the starting policy to each of the training prompts that will be judged."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from charter.data.prompts import TaskPrompt
from charter.jsonl import append_line, recover_lines
from charter.spec.facts import AI, label_shares, label_sources
from charter.v1 import run_pb2
from charter.worker.context import STARTING_VERSION, Run
from charter.worker.errors import RunError
from charter.worker.prompts import take
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


def sample_pairs(run: Run) -> list[list[Pair]]:
    """Pairs in batches; finished batches of an earlier attempt are read back. Identical answers are counted.

    Raises ``RunError`` when a preference model could not be fitted to them, whatever the judge will say.
    """
    prompts = pair_prompts(run)
    if label_sources(run.spec.feedback) == {AI} and len({prompt.key for prompt in prompts}) < 2:
        enough = len(judged_prompts(run)) > 1
        advice = "raise comparisons.pairs to 2 or more" if enough else "give prompts.train a second, different one"
        raise RunError(
            f"all pairs would be of one prompt, and a preference model needs one to fit and one to hold out: {advice}"
        )
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    finished = [
        [[Written(**one) for one in both] for both in json.loads(line)] for line in recover_lines(run.artifacts.pairs)
    ]
    if len(finished) < len(batches):
        with run.reporter.in_phase(run_pb2.PHASE_SAMPLING_PAIRS):
            for index in range(len(finished), len(batches)):
                run.reporter.raise_if_stopped()
                seed = derive_seed(run.spec.seed, "pairs", index)
                answers = sample_two(run, batches[index], STARTING_VERSION, seed)
                lines = [[asdict(one) for one in both] for both in answers]
                append_line(run.artifacts.pairs, json.dumps(lines, ensure_ascii=False))
                finished.append(answers)
                run.reporter.report(min((index + 1) * BATCH, len(prompts)), len(prompts))
    pairs = [
        [Pair(prompt, a, b) for prompt, (a, b) in zip(batch, answers, strict=True) if a.text != b.text]
        for batch, answers in zip(batches, finished, strict=True)
    ]
    usable = sum(len(batch) for batch in pairs)
    run.artifacts.count(pairs_sampled=len(prompts), pairs_identical=len(prompts) - usable)
    return pairs


def pair_prompts(run: Run) -> list[TaskPrompt]:
    """The prompts that get pairs: judged prompts in the run's order, again from the start when there are too few."""
    judged = judged_prompts(run)
    return take(judged, 0, run.spec.comparisons.pairs, run.spec.seed) if judged else []


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
