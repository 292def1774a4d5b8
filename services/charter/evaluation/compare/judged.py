"""What judges, and people, said of the answers of an evaluation: the rows that figures are made of."""

from collections.abc import Iterator, Mapping, Sequence

from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer, Compared
from charter.evaluation.compare.spec import EvaluateSpec, pairs_of
from charter.evaluation.figures.rows import Judgement


def judged_rows(
    spec: EvaluateSpec,
    judge: str,
    prompts: Sequence[TaskPrompt],
    answers: Mapping[tuple[str, str, int], Answer],
    compared: Mapping[tuple[str, str, str, str, int], Compared],
) -> Iterator[Judgement]:
    """What a judge was to say of the pairs of models that are compared, as far as it was asked.

    A pair with an answer that failed counts as one whose judgement did.
    """
    for a, b in pairs_of(spec):
        for prompt in prompts:
            for sample in range(spec.answers_per_prompt):
                both = [answers.get((model, prompt.key, sample)) for model in (a, b)]
                one = compared.get((judge, a, b, prompt.key, sample))
                if one is None and not any(answer is not None and answer.failure for answer in both):
                    # Not asked yet.
                    continue
                probability = None if one is None else one.probability_a
                yield Judgement(prompt.key, prompt.dimension, judge, a, b, sample, probability)


def token_counts(answers: Mapping[tuple[str, str, int], Answer]) -> dict[tuple[str, str, int], int]:
    """Lengths of the answers whose tokens were counted, by prompt, model and sample."""
    return {(one.prompt, one.model, one.sample): one.tokens for one in answers.values() if one.tokens is not None}
