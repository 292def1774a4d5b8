"""Does revising help at all? Asked on held-out prompts, before anything is learned.

A critic that does not see the harm, or a model that cannot rewrite, makes revisions that are no better (Madaan et al.
2023, "Self-Refine", arXiv 2303.17651, find gains only for strong models). What is learned from these is no gain either.
"""

import json

from charter.data.prompts import TaskPrompt
from charter.evaluation.figures.words import ending
from charter.evaluation.statistics import bootstrap_interval
from charter.runs.results import RevisionGate, write_result
from charter.spec.facts import gate_prompts
from charter.worker.clients.failed import Failed
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.failures import Failures, draws
from charter.worker.prompts import take
from charter.worker.revision.acceptance import Candidate, preferences
from charter.worker.revision.filters import common_endings
from charter.worker.revision.rounds import Draft, revise
from charter.worker.revision.rows import CLEAN, RevisionRow
from charter.worker.stages.answers import sample_answers

# The stage of ``Failures``.
GATING = "revising held-out answers"
_NAME = "revision_gate"


def pass_gate(run: Run) -> RevisionGate:
    """Revise the policy's answers to held-out prompts once and have the judge compare; an earlier result is read.

    Raises ``TooManyFailuresError`` when the judge could not revise or compare too many of them.
    """
    file = run.artifacts.folder / f"{_NAME}.json"
    if file.exists():
        return RevisionGate(**json.loads(file.read_text(encoding="utf-8")))
    spec = run.spec.revision
    held_out = [one for one in run.prompts.held_out if not spec.dimensions or one.dimension in spec.dimensions]
    if not held_out:
        raise RunError(
            f"no held-out prompt has one of revision.dimensions ({', '.join(spec.dimensions)}), and the gate asks "
            "about such: add some to prompts.held_out"
        )
    prompts = take(held_out, 0, gate_prompts(spec, len(held_out)), run.spec.seed)
    answers = sample_answers(run, _NAME, prompts, run.start.version)
    drafts = [Draft(prompt, one.text) for prompt, one in zip(prompts, answers, strict=True) if one.text.strip()]
    failures = Failures(run, GATING, len(prompts))
    again = draws(run, GATING, 0)
    results = revise(run, drafts, 1, again)
    failures.add(results)
    rows = [(draft.prompt, row) for draft, row in zip(drafts, results, strict=True) if isinstance(row, RevisionRow)]
    preferred = preferences(run, _clean(rows), "gate", again)
    failures.add(preferred)
    found = _measured(run, len(prompts), len(rows), [one for one in preferred if not isinstance(one, Failed)])
    write_result(run.artifacts.folder, _NAME, found)
    return found


def _clean(rows: list[tuple[TaskPrompt, RevisionRow]]) -> list[Candidate]:
    common = common_endings([row.revision for _, row in rows])
    return [
        Candidate(prompt, row.answer, row)
        for prompt, row in rows
        if row.verdict == CLEAN and ending(row.revision) not in common
    ]


def _measured(run: Run, prompts: int, revised: int, preferred: list[float]) -> RevisionGate:
    if len(preferred) < 2:
        return RevisionGate(prompts, revised, len(preferred), 0.5, 0.5, 0.5)
    samples = run.spec.evaluation.bootstrap_samples
    low, high = bootstrap_interval(preferred, samples=samples, seed=run.spec.seed, bounds=(0, 1))
    return RevisionGate(prompts, revised, len(preferred), sum(preferred) / len(preferred), low, high)
