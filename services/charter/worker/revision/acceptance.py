"""Which revisions are learned from: clean ones that end as few others do, and that the judge prefers to the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from charter.data.prompts import TaskPrompt
from charter.outcomes import outcome_of
from charter.v1 import judge_pb2, types_pb2
from charter.worker.clients.failed import Failed, failure_of
from charter.worker.context import Run
from charter.worker.revision.rows import RevisionRow
from charter.worker.seeds import derive_seed

ACCEPTED, NOT_BETTER, UNJUDGED, SUPERSEDED = "accepted", "not_better", "unjudged", "superseded"


@dataclass(frozen=True, slots=True)
class Candidate:
    """The policy's answer to a prompt, whether the token limit ended it, and the row of its last clean revision."""

    prompt: TaskPrompt
    answer: str
    row: RevisionRow
    cut_off: bool = False


def judgements(run: Run, candidates: Sequence[Candidate], name: str, again: int) -> list[judge_pb2.Judgement]:
    """The judge's opinion of each, A is the revision; every method treats both orders alike. Raises as ``compare``."""
    items = [run.comparison_item(one.row.id, one.prompt, one.row.revision, one.answer) for one in candidates]
    if not items:
        return []
    seed = derive_seed(run.spec.seed, "revision", name, *([again] if again else []))
    judged = run.services.judge.compare(items, run.judging_options(seed))
    return [judged[item.id] for item in items]


def preferences(run: Run, candidates: Sequence[Candidate], name: str, again: int) -> list[float | Failed]:
    """P(the revision is better) of each, or why it could not be judged."""
    return [failure_of(one) or one.probability_a for one in judgements(run, candidates, name, again)]


def decision(judgement: judge_pb2.Judgement) -> str:
    """What becomes of a candidate by its judgement."""
    if failure_of(judgement) is not None:
        return UNJUDGED
    return ACCEPTED if outcome_of(judgement.probability_a) == types_pb2.OUTCOME_PREFERRED_A else NOT_BETTER
