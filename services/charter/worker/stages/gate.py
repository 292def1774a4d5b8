"""Does revising help at all? Asked on held-out prompts, before anything is learned.

A critic that does not see the harm, or a model that cannot rewrite, makes revisions that are no better (Madaan et al.
2023, "Self-Refine", arXiv 2303.17651, find gains only for strong models). What is learned from these is no gain either.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from charter.data.prompts import TaskPrompt
from charter.evaluation.figures.words import ending
from charter.evaluation.statistics import bootstrap_interval
from charter.runs.results import RevisionGate, write_result
from charter.runs.revisions import FOLDER, RevisionRow
from charter.spec.facts import gate_prompts, is_revised
from charter.worker.answer_log import sample_all
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.prompts import take
from charter.worker.revision.acceptance import Candidate, judge_all
from charter.worker.revision.filters import ENDING, common_endings
from charter.worker.revision.rounds import Draft, revise_all
from charter.worker.revision.rows import CLEAN, samples
from charter.worker.stages.answers import held_out_prompts, watched_prompts

# Stages of ``Failures``.
GATING, GATED = "revising held-out answers", "comparing held-out revisions"
_NAME = "revision_gate"


def pass_gate(run: Run) -> RevisionGate:
    """Revise the policy's answers to held-out prompts once and have the judge compare; an earlier result is read.

    Raises ``TooManyFailuresError`` when the judge could not revise or compare too many of them, ``Cancelled`` between
    batches.
    """
    file = run.artifacts.folder / f"{_NAME}.json"
    if file.exists():
        return TypeAdapter(RevisionGate).validate_json(file.read_bytes())
    folder = run.artifacts.folder / FOLDER
    folder.mkdir(exist_ok=True)
    prompts = prompts_of_gate(run)
    answers = sample_all(
        run,
        folder / "gate_answers.jsonl",
        prompts,
        lambda: serve_start(run),
        seeded="revision gate",
        text="held-out answers to revise",
    )
    drafts = [Draft(prompt, one.text) for prompt, (one,) in zip(prompts, answers, strict=True) if one.text.strip()]
    rows = revise_all(run, folder / "gate_rows.jsonl", drafts, 1, GATING)
    verdicts = _verdicts(rows)
    preferred = judge_all(run, folder / "gate_judged.jsonl", _clean(prompts, rows, verdicts), GATED)
    revised = sum(bool(row.revision) for row in rows)
    found = replace(
        _measured(run, prompts, revised, [one for one in preferred.values() if not isinstance(one, str)]),
        verdicts=dict(Counter(verdicts.values())),
        samples=tuple(samples(rows, verdicts)),
    )
    write_result(run.artifacts.folder, _NAME, found)
    return found


def prompts_of_gate(run: Run) -> list[TaskPrompt]:
    """Held-out prompts of the dimensions that are revised, drawn by the seed.

    First those that nothing else asks about, then those that are watched during RL, at last those of the evaluation.
    """
    spec, held_out = run.spec.revision, run.prompts.held_out
    watched = watched_prompts(run) if run.spec.evaluation.HasField("every_steps") else []
    uses = {prompt.key: 1 for prompt in watched} | {prompt.key: 2 for prompt in held_out_prompts(run)}
    drawn = [one for one in take(held_out, 0, len(held_out), run.spec.seed) if is_revised(spec, one)]
    if not drawn:
        raise RunError(
            f"no held-out prompt has one of revision.dimensions ({', '.join(spec.dimensions)}), and the gate asks "
            "about such: add some to prompts.held_out"
        )
    return sorted(drawn, key=lambda prompt: uses.get(prompt.key, 0))[: gate_prompts(spec, len(drawn))]


def _verdicts(rows: Sequence[RevisionRow]) -> dict[str, str]:
    """What is wrong with each row, by its id, that it ends as many others do included."""
    common = common_endings([row.revision for row in rows])
    return {row.id: ENDING if row.verdict == CLEAN and ending(row.revision) in common else row.verdict for row in rows}


def _clean(prompts: Sequence[TaskPrompt], rows: Sequence[RevisionRow], verdicts: Mapping[str, str]) -> list[Candidate]:
    of_key = {prompt.key: prompt for prompt in prompts}
    return [Candidate(of_key[row.prompt_key], row.answer, row) for row in rows if verdicts[row.id] == CLEAN]


def _measured(run: Run, prompts: Sequence[TaskPrompt], revised: int, preferred: Sequence[float]) -> RevisionGate:
    mean, low, high = 0.5, 0.5, 0.5
    if len(preferred) > 1:
        samples = run.spec.evaluation.bootstrap_samples
        low, high = bootstrap_interval(list(preferred), samples=samples, seed=run.spec.seed, bounds=(0, 1))
        mean = sum(preferred) / len(preferred)
    evaluated = {prompt.key for prompt in held_out_prompts(run)}
    shared = sum(prompt.key in evaluated for prompt in prompts)
    return RevisionGate(len(prompts), revised, len(preferred), mean, low, high, shared)
