"""Where scores come from: the preference model, the judge, a service of the user's own, or a weighted sum of them.

Each source answers for every item or the step ends with an error that names it: a failure is never a number.
"""

from collections.abc import Sequence

from charter.spec.prompts import TaskPrompt
from charter.storage.comparisons import enum_name
from charter.worker.clients.policy import Answer
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.seeds import derive_seed


def score(
    run: Run, prompts: Sequence[TaskPrompt], answers: Sequence[str], seed: int, preference_version: int
) -> list[float]:
    """Weighted sum of the sources that the spec gives a weight, one number for each answer.

    Args:
        prompts: one for each answer.
        answers: texts.
        seed: of the judge's draw of principles.
        preference_version: which preference model must be served.

    Raises:
        ServiceError: a source cannot be reached or refused.
        RunError: a source left an answer out, could not rate it, or gave a number that is not finite.
    """
    spec, services = run.spec.reward, run.services
    items = [(prompt.messages, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    parts: list[tuple[float, list[float]]] = []
    if spec.preference_weight > 0:
        parts.append((spec.preference_weight, services.preference.score(items, preference_version)))
    if spec.judge_weight > 0:
        options = run.judging_options(derive_seed(seed, "rating"))
        rated = [
            run.answer_item(str(place), prompt, answer)
            for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        parts.append((spec.judge_weight, services.judge.rate(rated, options)))
    if spec.service_weight > 0:
        parts.append((spec.service_weight, services.score_elsewhere(spec.service, spec.service_model, items)))
    return [sum(weight * scores[place] for weight, scores in parts) for place in range(len(answers))]


def compare(run: Run, prompts: Sequence[TaskPrompt], pairs: Sequence[Sequence[Answer]], seed: int) -> list[float]:
    """The judge's P(better of its pair) of each answer, pair after pair: ``p`` for A, ``1 - p`` for B.

    Two answers that are the same have 0.5 and are not asked about. Raises ``ServiceError`` and, for a pair that cannot
    be judged, ``RunError``.
    """
    items = [
        run.comparison_item(str(place), prompt, one.text, other.text)
        for place, (prompt, (one, other)) in enumerate(zip(prompts, pairs, strict=True))
        if one.text != other.text
    ]
    judged = run.services.judge.compare(items, run.judging_options(derive_seed(seed, "pairs"))) if items else {}
    for judgement in judged.values():
        if not judgement.HasField("probability_a"):
            raise RunError(
                f"the judge at {run.spec.services.judge} could not judge a pair of this step: "
                f"{enum_name('outcome', judgement.outcome)}; see its log"
            )
    probabilities = [judged[str(place)].probability_a if str(place) in judged else 0.5 for place in range(len(pairs))]
    return [score for probability in probabilities for score in (probability, 1 - probability)]
