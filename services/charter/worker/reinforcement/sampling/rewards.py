"""Where scores come from: the preference model, the judge, a service of the user's own, or a weighted sum of them.

A source that cannot score an answer says why, and the answer has no score: a failure is never a number.
"""

from collections.abc import Mapping, Sequence

from charter.data.prompts import TaskPrompt
from charter.hashing import stable_number
from charter.rpc.validation import violations
from charter.v1 import judge_pb2, types_pb2
from charter.worker.clients.failed import Failed, failure_of
from charter.worker.clients.policy import Answer
from charter.worker.context import Run
from charter.worker.labels import label_of
from charter.worker.seeds import derive_seed


def score(
    run: Run, prompts: Sequence[TaskPrompt], answers: Sequence[str], seed: int, preference_version: int
) -> list[float | Failed]:
    """Weighted sum of the sources that the spec gives a weight, for each answer; or why one of them has no score.

    Args:
        prompts: one for each answer.
        answers: texts.
        seed: of the judge's draw of principles.
        preference_version: which preference model must be served.

    Raises:
        ServiceError: a source cannot be reached or refused the request.
        RunError: another preference model is served.
    """
    spec, services = run.spec.reward, run.services
    items = [(prompt.messages, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    parts: list[tuple[float, list[float | Failed]]] = []
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
    return [_weighted([(weight, scores[place]) for weight, scores in parts]) for place in range(len(answers))]


def _weighted(parts: Sequence[tuple[float, float | Failed]]) -> float | Failed:
    total = 0.0
    for weight, part in parts:
        if isinstance(part, Failed):
            return part
        total += weight * part
    return total


def compare(
    run: Run, prompts: Sequence[TaskPrompt], pairs: Sequence[Sequence[Answer]], seed: int
) -> list[float | Failed]:
    """The judge's P(better of its pair) of each answer, pair after pair: ``p`` for A, ``1 - p`` for B.

    Two answers that are the same have 0.5 and are not asked about. A pair that cannot be judged has no number, twice.
    What the judge said is stored, as the labels of a preference model are.
    Raises ``ServiceError`` and ``RunError`` as ``JudgeClient.compare``.
    """
    items = [
        run.comparison_item(str(place), prompt, one.text, other.text)
        for place, (prompt, (one, other)) in enumerate(zip(prompts, pairs, strict=True))
        if one.text != other.text
    ]
    judged = run.services.judge.compare(items, run.judging_options(derive_seed(seed, "pairs"))) if items else {}
    _store(run, prompts, pairs, judged)
    scores: list[float | Failed] = []
    for place in range(len(pairs)):
        judgement = judged.get(str(place))
        if judgement is None:
            scores += [0.5, 0.5]
        elif (failure := failure_of(judgement)) is not None:
            scores += [failure, failure]
        else:
            scores += [judgement.probability_a, 1 - judgement.probability_a]
    return scores


def _store(
    run: Run,
    prompts: Sequence[TaskPrompt],
    pairs: Sequence[Sequence[Answer]],
    judged: Mapping[str, judge_pb2.Judgement],
) -> None:
    """Keep what the judge said of these pairs, once however often a step runs again with the same answers."""
    found = []
    for place, judgement in judged.items():
        one, other = pairs[int(place)]
        if judgement.outcome != types_pb2.OUTCOME_UNAVAILABLE:
            found.append(label_of(run, prompts[int(place)], _written(run, one), _written(run, other), judgement))
    if labels := [one for one in found if not violations(one)]:
        texts = (text for one in labels for text in (one.prompt[-1].content, one.answer_a.text, one.answer_b.text))
        run.services.preference.add_comparisons(f"{run.id}-online-{stable_number(*texts):016x}", labels)


def _written(run: Run, one: Answer) -> types_pb2.Answer:
    """What is stored of an answer; its version is the newest that wrote any of it."""
    return types_pb2.Answer(
        text=one.text,
        model=run.spec.policy.model,
        weight_version=max(one.versions, default=0),
        cut_off=not one.ended,
    )
