"""Rounds of critique and revision, asked of the judge (Bai et al. 2022, arXiv 2212.08073, section 3.1)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.data.prompts import TaskPrompt
from charter.runs.results import LeftOut
from charter.runs.revisions import RevisionRow, append_rows, recover_rows, row_id
from charter.v1 import judge_pb2
from charter.worker import metrics
from charter.worker.answer_log import BATCH
from charter.worker.clients.failed import UNAVAILABLE, Failed
from charter.worker.clients.judge import WrittenText
from charter.worker.context import Run
from charter.worker.failures import Failures, draws
from charter.worker.revision.filters import KINDS, why_unfit
from charter.worker.revision.rows import CLEAN
from charter.worker.seeds import derive_seed

_NOTHING = WrittenText("", "", cut_off=False)


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer as it is to be revised: the policy's, or the revision of the row ``parent``."""

    prompt: TaskPrompt
    answer: str
    parent: str = ""

    def after(self, row: RevisionRow | None) -> "Draft":
        """What the next round revises: a clean revision, or after a dirty one what came before it."""
        return Draft(self.prompt, row.revision, row.id) if row is not None and row.verdict == CLEAN else self


def revise_all(
    run: Run, file: Path, drafts: Sequence[Draft], rounds: int, stage: str, *, counted: bool = False
) -> list[RevisionRow]:
    """The rows of every round, by round and prompt; those that ``file`` holds are read, and each batch is added to it.

    ``stage`` is that of ``Failures``; with ``counted`` the rows are in the run's numbers by verdict. Raises
    ``Cancelled`` between batches, and as ``Failures.add``.
    """
    rows = {(row.prompt_key, row.round): row for row in recover_rows(file)}
    total = len(drafts) * rounds
    failed_before = [row.verdict for row in rows.values() if row.verdict not in (CLEAN, *KINDS)]
    failures = Failures(run, stage, total, LeftOut.of(len(rows), failed_before))
    now = list(drafts)
    for number in range(1, rounds + 1):
        waiting = [one for one in now if (one.prompt.key, number) not in rows]
        for start in range(0, len(waiting), BATCH):
            run.reporter.raise_if_stopped()
            batch = waiting[start : start + BATCH]
            results = _revise(run, batch, number, draws(run, stage, number))
            written = [one for one in results if isinstance(one, RevisionRow)]
            append_rows(file, written)
            failures.add(results, number)
            failed = [
                _row(run, draft, number, _NOTHING, _NOTHING, one.kind)
                for draft, one in zip(batch, results, strict=True)
                if isinstance(one, Failed) and one.kind != UNAVAILABLE
            ]
            append_rows(file, failed)
            rows |= {(row.prompt_key, number): row for row in (*written, *failed)}
            clean = sum(row.verdict == CLEAN for row in written)
            text = f"{stage}, round {number}: {clean} of {len(batch)} clean"
            verdicts = Counter(row.verdict for row in rows.values()) if counted else {}
            numbers = {f"{metrics.BY_VERDICT}{verdict}": float(count) for verdict, count in verdicts.items()}
            run.reporter.report(min(len(rows), total), total, numbers=numbers, text=text)
        now = [draft.after(rows.get((draft.prompt.key, number))) for draft in now]
    return sorted(rows.values(), key=lambda row: (row.round, row.prompt_key))


def _revise(run: Run, drafts: Sequence[Draft], number: int, again: int) -> list[RevisionRow | Failed]:
    """The rows of a batch in round ``number``, or why the judge wrote no critique or no revision.

    A principle is drawn from the seed, the prompt and the round. ``again`` is how often the stage has stopped here. A
    critique that the token limit ended is followed as far as it goes. Raises as the judge's client.
    """
    seed = derive_seed(run.spec.seed, "revision", number, *([again] if again else []))
    options = judge_pb2.JudgingOptions(seed=seed)
    items = [run.answer_item(row_id(one.prompt.key, number), one.prompt, one.answer) for one in drafts]
    limits = judge_pb2.SamplingLimits(max_new_tokens=run.spec.revision.critique_tokens)
    critiques = run.services.judge.critique(items, options, limits)
    for item, critique in zip(items, critiques, strict=True):
        item.critique = critique.text if isinstance(critique, WrittenText) else ""
    written = [item for item, critique in zip(items, critiques, strict=True) if isinstance(critique, WrittenText)]
    limits = judge_pb2.SamplingLimits(max_new_tokens=run.spec.sampling.max_new_tokens)
    revisions = iter(run.services.judge.revise(written, options, limits) if written else [])
    found: list[RevisionRow | Failed] = []
    for draft, critique in zip(drafts, critiques, strict=True):
        if isinstance(critique, Failed):
            found.append(critique)
            continue
        revision = next(revisions)
        if isinstance(revision, Failed):
            found.append(revision)
            continue
        unfit = why_unfit(
            revision.text,
            answer=draft.answer,
            prompt="\n".join(message.content for message in draft.prompt.messages),
            critique=critique.text,
            cut_off=revision.cut_off,
        )
        found.append(_row(run, draft, number, critique, revision, unfit or CLEAN))
    return found


def _row(
    run: Run, draft: Draft, number: int, critique: WrittenText, revision: WrittenText, verdict: str
) -> RevisionRow:
    return RevisionRow(
        prompt_key=draft.prompt.key,
        prompt=draft.prompt.messages,
        dimension=draft.prompt.dimension,
        round=number,
        parent=draft.parent,
        answer=draft.answer,
        principle=revision.principle_id,
        critique=critique.text,
        critique_cut_off=critique.cut_off,
        revision=revision.text,
        policy=run.spec.policy.model,
        policy_version=run.start.version,
        judge=run.spec.judge.model,
        constitution_digest=run.constitution.digest,
        verdict=verdict,
    )
