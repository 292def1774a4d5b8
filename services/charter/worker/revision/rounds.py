"""One round of critique and revision, asked of the judge (Bai et al. 2022, arXiv 2212.08073, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from charter.data.prompts import TaskPrompt
from charter.v1 import judge_pb2
from charter.worker.clients.failed import Failed
from charter.worker.clients.judge import WrittenText
from charter.worker.context import Run
from charter.worker.revision.filters import why_unfit
from charter.worker.revision.rows import CLEAN, RevisionRow, row_id
from charter.worker.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer as it is to be revised: the policy's, or the revision of the row ``parent``."""

    prompt: TaskPrompt
    answer: str
    parent: str = ""


def revise(run: Run, drafts: Sequence[Draft], number: int, again: int) -> list[RevisionRow | Failed]:
    """The rows of round ``number``, or why the judge wrote no critique or no revision.

    Its principle is drawn from the seed, the prompt and the round. ``again`` is how often the stage has stopped here.
    Raises as the judge's client.
    """
    seed = derive_seed(run.spec.seed, "revision", number, *([again] if again else []))
    options = judge_pb2.JudgingOptions(seed=seed)
    limits = judge_pb2.SamplingLimits(max_new_tokens=run.spec.sampling.max_new_tokens)
    items = [run.answer_item(row_id(one.prompt.key, number), one.prompt, one.answer) for one in drafts]
    critiques = run.services.judge.critique(items, options, limits)
    for item, critique in zip(items, critiques, strict=True):
        item.critique = critique.text if isinstance(critique, WrittenText) else ""
    written = [place for place, critique in enumerate(critiques) if isinstance(critique, WrittenText)]
    revisions = iter(run.services.judge.revise([items[place] for place in written], options, limits) if written else [])
    found: list[RevisionRow | Failed] = []
    for draft, critique in zip(drafts, critiques, strict=True):
        if isinstance(critique, Failed):
            found.append(critique)
            continue
        revision = next(revisions)
        found.append(revision if isinstance(revision, Failed) else _row(run, draft, number, critique, revision))
    return found


def failed_row(run: Run, draft: Draft, number: int, failure: Failed) -> RevisionRow:
    """The row of a draft of which nothing was written."""
    return _row_of(run, draft, number, WrittenText("", "", False), WrittenText("", "", False), failure.kind)


def _row(run: Run, draft: Draft, number: int, critique: WrittenText, revision: WrittenText) -> RevisionRow:
    unfit = why_unfit(
        revision.text,
        answer=draft.answer,
        prompt="\n".join(message.content for message in draft.prompt.messages),
        critique=critique.text,
        cut_off=revision.cut_off,
    )
    return _row_of(run, draft, number, critique, revision, unfit or CLEAN)


def _row_of(
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
        revision=revision.text,
        policy=run.spec.policy.model,
        policy_version=run.start.version,
        judge=run.spec.judge.model,
        constitution_digest=run.constitution.digest,
        verdict=verdict,
    )
