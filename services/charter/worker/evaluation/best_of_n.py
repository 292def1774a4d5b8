"""Has a preference service score the right and wrong answers of a file, prompt by prompt, each kept as it comes."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from charter.data.best_of_n import BestOfN
from charter.evaluation.figures.best_of_n import TIES, ScoredAnswers
from charter.jsonl import append_lines
from charter.outcomes import failure_name
from charter.rpc.channel import connect
from charter.state_files import read_log
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from charter.worker.clients.failed import Failed
from charter.worker.clients.scoring import Scores, add_scores
from charter.worker.errors import RunError

# Answers in one call. What a call that is cut off has given is asked again.
_ANSWERS = 64
_LEFT_OUT = failure_name(types_pb2.FAILURE_KIND_MISSING)
_ADVICE = "Delete that line, or the file: what it held is then scored again"


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The scores of the prompt at ``place`` of its file, or why one of its answers has none (``failure``, a kind)."""

    place: int
    id: str
    subset: str
    chosen: tuple[float, ...] = ()
    rejected: tuple[float, ...] = ()
    failure: str = ""
    reason: str = ""


def score_prompts(
    address: str, prompts: Sequence[BestOfN], model: str, version: int, log: Path, report: Callable[[int], object]
) -> list[ScoredPrompt]:
    """The scores of all prompts, in their order; ``log`` has those of an earlier command, and gets the others.

    A score that the service left out then is asked for again.

    Args:
        address: of the preference service.
        prompts: to score.
        model: name of one of the service's models; empty = its first.
        version: of its weights.
        log: JSON lines.
        report: called with how many prompts are done.

    Raises:
        ServiceError: the service cannot be reached, or has no such model.
        RunError: other weights answered.
        StateFileError: the log is damaged.
    """
    known = {one.place: one for one in read_log(log, _from_line, _ADVICE) if one.failure != _LEFT_OUT}
    missing = [place for place in range(len(prompts)) if place not in known]
    report(len(known))
    with connect(address) as channel:
        stub = preference_pb2_grpc.PreferenceServiceStub(channel)
        for places in _batches(prompts, missing):
            items = [(prompts[place].prompt, answer) for place in places for answer in _answers(prompts[place])]
            scores: Scores = {}
            add_scores(scores, "preference", address, stub, items, lambda: None, version=version, model=model)
            numbers = iter([_number(scores[place], address, version) for place in range(len(items))])
            found = [
                _scored(place, prompts[place], [next(numbers) for _ in _answers(prompts[place])]) for place in places
            ]
            append_lines(log, [json.dumps(asdict(one)) for one in found])
            known |= {one.place: one for one in found}
            report(len(known))
    return [known[place] for place in range(len(prompts))]


def scored_answers(found: Sequence[ScoredPrompt]) -> tuple[list[ScoredAnswers], Counter[str]]:
    """The prompts that have their scores, and why others were left out: a sibling of the subset Ties, too."""
    rows = [ScoredAnswers(one.id, one.subset, one.chosen, one.rejected) for one in found if not one.failure]
    left_out = Counter(one.failure for one in found if one.failure)
    alone = {_sibling(one.id) for one in found if one.failure and one.subset.lower() == TIES}
    kept = [one for one in rows if one.subset.lower() != TIES or _sibling(one.id) not in alone]
    if len(kept) < len(rows):
        left_out["sibling_without_score"] = len(rows) - len(kept)
    return kept, left_out


def _sibling(identity: str) -> str:
    """What both prompts of the subset Ties have in common: ``ref:7`` and ``tied:7``."""
    return identity.partition(":")[2]


def _batches(prompts: Sequence[BestOfN], places: Sequence[int]) -> list[list[int]]:
    """Places of whole prompts, of about so many answers together."""
    batches: list[list[int]] = []
    answers = _ANSWERS
    for place in places:
        if answers >= _ANSWERS:
            batches.append([])
            answers = 0
        batches[-1].append(place)
        answers += len(_answers(prompts[place]))
    return batches


def _answers(prompt: BestOfN) -> tuple[str, ...]:
    return (*prompt.chosen, *prompt.rejected)


def _number(
    found: preference_pb2.PreferenceServiceScoreResponse | Failed, address: str, version: int
) -> float | Failed:
    if isinstance(found, Failed):
        return found
    if found.weight_version != version:
        raise RunError(
            f"the preference service at {address} scored by weight version {found.weight_version}, and its first "
            f"scores were by {version}: something sends weights to it. Stop that, and give the command again"
        )
    return found.score


def _scored(place: int, prompt: BestOfN, numbers: Sequence[float | Failed]) -> ScoredPrompt:
    failure = next((one for one in numbers if isinstance(one, Failed)), None)
    if failure is not None:
        return ScoredPrompt(place, prompt.id, prompt.subset, failure=failure.kind, reason=failure.reason)
    scores = [one for one in numbers if not isinstance(one, Failed)]
    right = len(prompt.chosen)
    return ScoredPrompt(place, prompt.id, prompt.subset, tuple(scores[:right]), tuple(scores[right:]))


def _from_line(line: str) -> ScoredPrompt:
    found = json.loads(line)
    return ScoredPrompt(**{**found, "chosen": tuple(found["chosen"]), "rejected": tuple(found["rejected"])})
