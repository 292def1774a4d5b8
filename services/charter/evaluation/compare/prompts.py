"""The prompts of an evaluation: which are taken of each source."""

from dataclasses import dataclass

from charter.data.bad_rows import BadRows
from charter.data.prompts import TaskPrompt, read_prompts
from charter.hashing import stable_fraction
from charter.spec.comparison_checks import HARMFUL, LOOK_ALIKE
from charter.v1 import evaluation_pb2, run_pb2

# Kinds of prompts by their numbers.
KINDS = {
    evaluation_pb2.PROMPT_KIND_UNSPECIFIED: "",
    evaluation_pb2.PROMPT_KIND_HARMFUL: HARMFUL,
    evaluation_pb2.PROMPT_KIND_LOOK_ALIKE: LOOK_ALIKE,
}


@dataclass(frozen=True, slots=True)
class EvaluatedPrompt(TaskPrompt):
    """A prompt, and of which kind it is: ``HARMFUL``, ``LOOK_ALIKE`` or nothing."""

    kind: str = ""


def choose_prompts(spec: evaluation_pb2.EvaluateSpec) -> list[EvaluatedPrompt]:
    """The prompts that every model answers, each once, in the order of the sources.

    Which are taken of a source follows from the seed and each prompt's content, so that a larger count adds prompts and
    keeps those that were there. One that two sources have is of the first. Raises ``DataError``.
    """
    chosen: dict[str, EvaluatedPrompt] = {}
    for source in spec.prompts:
        there = {prompt.key: prompt for prompt in read_prompts(source.source, bad_rows_of(spec))}
        new = [key for key in there if key not in chosen]
        # Drawn by its content: no other prompt of the source matters.
        new.sort(key=lambda key: stable_fraction("evaluated prompt", str(spec.seed), key))
        for key in new[: source.count if source.HasField("count") else None]:
            prompt = there[key]
            dimension = prompt.dimension or source.dimension
            chosen[key] = EvaluatedPrompt(key, prompt.messages, dimension, KINDS[source.kind])
    return list(chosen.values())


def bad_rows_of(spec: evaluation_pb2.EvaluateSpec) -> BadRows:
    """What is done with rows that cannot be used, by ``failures.on_bad_row``."""
    return BadRows("skip" if spec.failures.on_bad_row == run_pb2.ON_BAD_ROW_SKIP else "stop", None)
