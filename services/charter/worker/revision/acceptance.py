"""Which revisions are learned from: clean ones that end as few others do, and that the judge prefers to the answer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.data.prompts import TaskPrompt
from charter.jsonl import append_line
from charter.outcomes import outcome_of
from charter.runs.results import LeftOut
from charter.runs.revisions import RevisionRow
from charter.state_files import read_log
from charter.v1 import judge_pb2, types_pb2
from charter.worker.answer_log import BATCH
from charter.worker.clients.failed import UNAVAILABLE, failure_of
from charter.worker.context import Run
from charter.worker.failures import Failures, draws
from charter.worker.seeds import derive_seed

ACCEPTED, NOT_BETTER, UNJUDGED, SUPERSEDED = "accepted", "not_better", "unjudged", "superseded"


@dataclass(frozen=True, slots=True)
class Candidate:
    """The policy's answer to a prompt, whether the token limit ended it, and the row of its last clean revision."""

    prompt: TaskPrompt
    answer: str
    row: RevisionRow
    cut_off: bool = False


# What P(the revision is better) is by the judge, or the kind of failure where it could not be judged.
Preference = float | str
Judged = Sequence[tuple[Candidate, judge_pb2.Judgement]]


def judge_all(
    run: Run,
    file: Path,
    candidates: Sequence[Candidate],
    stage: str,
    store: Callable[[Judged, int], None] | None = None,
) -> dict[str, Preference]:
    """The judge's preference for each revision over its answer, by the row's id; those that ``file`` holds are read.

    A is the revision, and every method treats both orders alike. ``store`` is given the judgements of each batch that
    are none of a failure, and how often ``stage``, one of ``Failures``, has stopped. Raises ``Cancelled`` between
    batches, and as ``Failures.add``.
    """
    found: dict[str, Preference] = {}
    for one in read_log(file, json.loads, "Delete it and resume the run, which then compares these answers again"):
        found |= one
    failures = Failures(
        run, stage, len(candidates), LeftOut.of(len(found), [one for one in found.values() if isinstance(one, str)])
    )
    again = draws(run, stage, 0)
    waiting = [one for one in candidates if one.row.id not in found]
    for start in range(0, len(waiting), BATCH):
        run.reporter.raise_if_stopped()
        batch = waiting[start : start + BATCH]
        judged = list(zip(batch, _judgements(run, batch, stage, again), strict=True))
        why = {one.row.id: failure_of(judgement) for one, judgement in judged}
        decided = [(one, judgement) for one, judgement in judged if why[one.row.id] is None]
        if store is not None and decided:
            store(decided, again)
        preferences: dict[str, Preference] = {one.row.id: judgement.probability_a for one, judgement in decided}
        append_line(file, json.dumps(preferences))
        # What could not be judged is asked about again where it stops the stage, or the judge was away.
        failures.add(list(why.values()))
        lasting = {name: one.kind for name, one in why.items() if one is not None and one.kind != UNAVAILABLE}
        append_line(file, json.dumps(lasting))
        found |= preferences | {name: one.kind for name, one in why.items() if one is not None}
        run.reporter.report(len(found), len(candidates), text=f"{stage}: the judge compares them with the answers")
    return found


def decision(preference: Preference) -> str:
    """What becomes of a candidate by it."""
    if isinstance(preference, str):
        return UNJUDGED
    return ACCEPTED if outcome_of(preference) == types_pb2.OUTCOME_PREFERRED_A else NOT_BETTER


def _judgements(run: Run, candidates: Sequence[Candidate], stage: str, again: int) -> list[judge_pb2.Judgement]:
    items = [run.comparison_item(one.row.id, one.prompt, one.row.revision, one.answer) for one in candidates]
    seed = derive_seed(run.spec.seed, "revision", stage, *([again] if again else []))
    judged = run.services.judge.compare(items, run.judging_options(seed))
    return [judged[item.id] for item in items]
