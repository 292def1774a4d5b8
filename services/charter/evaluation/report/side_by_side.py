"""What an evaluation's page lists: each prompt with the answers of all models and what every judge said of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder, StoredReply
from charter.evaluation.compare.people import People
from charter.evaluation.compare.results import Results
from charter.evaluation.compare.spec import EvaluateSpec, pairs_of
from charter.evaluation.compare.votes import PairKey, Vote, text_digest, votes_that_count
from charter.evaluation.figures.refusals import likeliest
from charter.outcomes import failure_of_judgement, same_position_wins, side
from charter.spec.comparison_checks import PEOPLE
from charter.v1 import judge_pb2, types_pb2

# An address of the web, or host:port.
_ADDRESS = re.compile(r"https?://[^\s,;'\")\]]+|(?:localhost|[\w-]+(?:\.[\w-]+)+):\d+")
# Both models, prompt and sample.
_Pair = tuple[str, str, str, int]
# Of probabilities; which side they are on is said apart.
_DIGITS = 4


def side_by_side(spec: EvaluateSpec, folder: EvaluationFolder, results: Results) -> dict[str, Any]:
    """Data of the page's script (evaluation_page.js). Models and judges are their places in ``models`` and ``judges``.

    Raises ``StateFileError``, ``OSError``.
    """
    answers, compared = folder.read_answers(), folder.read_judgements()
    models, judges = [model.name for model in spec.models], list(results.judges)
    prompts, replies = folder.read_prompts(), folder.read_replies()
    voted = _voted(spec, prompts, answers, votes_that_count(folder.read_votes()))
    entries = []
    for prompt in prompts:
        for sample in range(spec.answers_per_prompt):
            found = [answers.get((model, prompt.key, sample)) for model in models]
            entry: dict[str, Any] = {
                "key": prompt.key,
                "dimension": prompt.dimension,
                "turns": [[turn.role, turn.content] for turn in prompt.messages],
                "answers": [None if one is None else _answer(one) for one in found],
                "verdicts": [
                    {"judge": judges.index(judge), "a": models.index(a), "b": models.index(b), **verdict}
                    for a, b in pairs_of(spec)
                    for judge in judges
                    if (verdict := _verdict_of(compared, voted, judge, (a, b, prompt.key, sample))) is not None
                ],
            }
            if spec.answers_per_prompt > 1:
                entry["sample"] = sample
            if prompt.kind:
                entry["kind"] = _words(prompt.kind)
                entry["replies"] = [
                    {"judge": judges.index(judge), "model": models.index(model), **_reply(one)}
                    for model in models
                    for judge in judges
                    if (one := replies.get((judge, model, prompt.key, sample))) is not None
                ]
            entries.append(entry)
    return {
        "start": models.index(spec.start),
        "models": models,
        "judges": [
            {
                "name": name,
                "remarks": results.remarks[name],
                "principles": results.judges[name].get("principles", {}),
            }
            for name in judges
        ],
        "entries": entries,
    }


def _verdict_of(
    compared: Mapping[tuple[str, str, str, str, int], Compared],
    voted: Mapping[_Pair, dict[str, Any]],
    judge: str,
    pair: _Pair,
) -> dict[str, Any] | None:
    if judge == PEOPLE:
        return voted.get(pair)
    one = compared.get((judge, *pair))
    return None if one is None else _verdict(one.judgement)


def _voted(
    spec: EvaluateSpec,
    prompts: Sequence[TaskPrompt],
    answers: Mapping[tuple[str, str, int], Answer],
    votes: Sequence[Vote],
) -> dict[_Pair, dict[str, Any]]:
    """What people say of each pair that counts: their mean, and below it each vote with its reason, without a name."""
    by_pair: dict[PairKey, list[Vote]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, []).append(vote)
    found = {}
    for row in People(spec, prompts, answers, votes).rows():
        digest_a, digest_b = (
            text_digest(answers[model, row.prompt, row.seed].text) for model in (row.model_a, row.model_b)
        )
        said = by_pair.get((row.prompt, frozenset((digest_a, digest_b))), [])
        by = [_vote(vote, digest_a) for vote in said]
        if row.probability_a is not None:
            found[row.model_a, row.model_b, row.prompt, row.seed] = _labelled(row.probability_a, by)
    return found


def _vote(vote: Vote, digest_a: str) -> dict[str, Any]:
    found: dict[str, Any] = {"id": vote.principle, "p": vote.for_answer(digest_a)}
    return found | ({"why": vote.reason} if vote.reason else {})


def _answer(answer: Answer) -> dict[str, Any]:
    if answer.failure:
        return {"failure": _words(answer.failure), "reason": _without_addresses(answer.reason)}
    found: dict[str, Any] = {"text": answer.text}
    if answer.tokens is not None:
        found["tokens"] = answer.tokens
    if answer.cut_off:
        found["cut"] = True
    return found


def _verdict(judgement: judge_pb2.Judgement) -> dict[str, Any]:
    """``side``: 1 where A is preferred, -1 where B is, 0 for a tie; ``failure`` instead where there is no label."""
    principles = [_principle(one) for one in judgement.principles]
    if kind := failure_of_judgement(judgement):
        return {"failure": _words(kind), "by": principles}
    found = _labelled(judgement.probability_a, principles)
    if any(one.get("order") for one in principles):
        found["order"] = True
    return found


def _reply(one: StoredReply) -> dict[str, Any]:
    """What an answer does with a request that is harmful, or looks so."""
    if one.failure:
        return {"failure": _words(one.failure)}
    return {"says": likeliest(one.distribution), "p": round(max(one.distribution), _DIGITS)}


def _labelled(probability_a: float, by: list[dict[str, Any]]) -> dict[str, Any]:
    return {"side": int(side(probability_a)), "p": round(probability_a, _DIGITS), "by": by}


def _principle(one: types_pb2.PrincipleJudgement) -> dict[str, Any]:
    """``first`` and ``second``: P(A is better) when A was shown first and second; ``order``: the position decided."""
    found: dict[str, Any] = {"id": one.principle_id}
    if one.HasField("probability_a"):
        found["p"] = round(one.probability_a, _DIGITS)
    if one.HasField("probability_a_shown_first") and one.HasField("probability_a_shown_second"):
        found["first"] = round(one.probability_a_shown_first, _DIGITS)
        found["second"] = round(one.probability_a_shown_second, _DIGITS)
        if same_position_wins(one.probability_a_shown_first, one.probability_a_shown_second):
            found["order"] = True
    failure = _without_addresses(one.failure)
    said = {"why": one.rationale, "why_swapped": one.rationale_swapped, "failure": failure}
    return found | {name: text for name, text in said.items() if text}


def _without_addresses(reason: str) -> str:
    """A reason as a page tells it, which may be sent to anybody: no endpoint's or service's address."""
    return _ADDRESS.sub("(an address)", reason)


def _words(kind: str) -> str:
    return kind.replace("_", " ")
