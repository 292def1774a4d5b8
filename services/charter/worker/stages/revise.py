"""Critique and revision of the policy's answers (``revision/``, ``revision.json``): what it may learn from, and why."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from charter.atomic_files import write_text
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.jsonl import append_line, recover_lines
from charter.rpc.messages import proto_messages
from charter.runs.results import RevisionGate, RevisionRound, Revisions, RevisionSample, write_result
from charter.storage.comparisons import REVISION_METHOD
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker.clients.failed import UNAVAILABLE, Failed, failure_of
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.failures import Failures, draws
from charter.worker.revision.acceptance import ACCEPTED, SUPERSEDED, Candidate, decision, judgements
from charter.worker.revision.filters import ENDING, common_endings, ending
from charter.worker.revision.rounds import Draft, failed_row, revise
from charter.worker.revision.rows import CLEAN, RevisionRow, append_rows, read_rows, write_table
from charter.worker.seeds import derive_seed
from charter.worker.stages.gate import pass_gate
from charter.worker.stages.label import held_out_keys

# Stages of ``Failures``.
REVISING, COMPARING = "revising", "comparing revisions"
# In the stage's folder, conversations to learn from: accepted revisions, and the policy's answers to other prompts.
REVISED, HELPFUL = "accepted.jsonl", "helpful.jsonl"
_BATCH = 32
# Characters of a sample's texts: prompts that look for harm are not shown whole.
_SHOWN = 160


class Revising:
    """Asks the gate, revises, and decides what is learned from."""

    phase = run_pb2.PHASE_REVISING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the spec has the section."""
        return spec.HasField("revision")

    def done(self, run: Run) -> bool:
        """Whether every revision is decided about."""
        return (run.artifacts.folder / "revision.json").exists()

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when revising does not help and the spec says to stop then."""
        serve_start(run)
        gate = pass_gate(run)
        if not gate.gain and self._ends_at(run, gate):
            write_result(run.artifacts.folder, "revision", Revisions(gate, skipped=True))
            return
        folder = run.artifacts.folder / "revision"
        folder.mkdir(exist_ok=True)
        prompts = revised_prompts(run)
        failures = Failures(run, REVISING, len(prompts) * run.spec.revision.rounds)
        answers = _answered(run, folder / "answers.jsonl", prompts, "answers to revise")
        drafts = [Draft(prompt, text, "") for prompt, text in zip(prompts, answers, strict=True) if text.strip()]
        rows = _revised(run, folder, drafts, failures)
        result = _decide(run, folder, gate, rows)
        _answer_helpfully(run, folder)
        write_result(run.artifacts.folder, "revision", result)
        text = f"{result.outcomes.get(ACCEPTED, 0)} of {len(drafts)} answers have a revision to learn from"
        run.reporter.report(len(rows), len(rows), text=text)

    def _ends_at(self, run: Run, gate: RevisionGate) -> bool:
        text = (
            f"the judge prefers a revised answer with probability {gate.mean_probability:.2f} "
            f"({gate.low:.2f} to {gate.high:.2f}) on {gate.compared} of {gate.prompts} held-out prompts: revising does "
            "not help beyond chance"
        )
        if run.spec.revision.on_no_gain == "stop":
            raise RunError(
                f"{text}. Take a larger judge, other principles, or set revision.on_no_gain to skip or continue"
            )
        skips = run.spec.revision.on_no_gain == "skip"
        run.reporter.report(1, 1, text=f"{text}; {'the stage is skipped' if skips else 'it goes on, as the spec says'}")
        return skips


def accepted_revisions(run: Run) -> int:
    """How many revisions are learned from; 0 before the stage, and where it was skipped."""
    file = run.artifacts.folder / "revision.json"
    if not file.exists():
        return 0
    result = json.loads(file.read_text(encoding="utf-8"))
    return int(result["outcomes"].get(ACCEPTED, 0))


def revised_prompts(run: Run) -> list[TaskPrompt]:
    """The training prompts of the spec's dimensions, each once, as many as it asks for."""
    spec = run.spec.revision
    found = [one for one in run.prompts.train if not spec.dimensions or one.dimension in spec.dimensions]
    if not found:
        raise RunError(
            f"no training prompt has one of revision.dimensions ({', '.join(spec.dimensions)}): name other ones"
        )
    return found[: spec.prompts] if spec.HasField("prompts") else found


def _answer_helpfully(run: Run, folder: Path) -> None:
    """Write what is learned beside the revisions: the policy's own answers to the other prompts, as it gives them.

    Who learns from revisions alone forgets how to help. Bai et al. 2022 mix in answers to helpful prompts.
    """
    spec = run.spec.revision
    others = [one for one in run.prompts.train if spec.dimensions and one.dimension not in spec.dimensions]
    if spec.helpful or not spec.helpful_share or not others:
        return
    answers = _answered(run, folder / "helpful_answers.jsonl", others, "answers to the other prompts")
    pairs = [(prompt.messages, text) for prompt, text in zip(others, answers, strict=True) if text.strip()]
    _write_conversations(folder / HELPFUL, pairs)


def _write_conversations(file: Path, pairs: Sequence[tuple[Sequence[ChatMessage], str]]) -> None:
    lines = []
    for messages, answer in pairs:
        turns = [{"role": one.role, "content": one.content} for one in messages]
        turns.append({"role": "assistant", "content": answer})
        lines.append(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    write_text(file, "".join(lines))


def _answered(run: Run, file: Path, prompts: Sequence[TaskPrompt], what: str) -> list[str]:
    """The policy's answers, batch by batch; those of an earlier attempt are read."""
    answers: list[str] = [text for line in recover_lines(file) for text in json.loads(line)]
    for start in range(len(answers), len(prompts), _BATCH):
        run.reporter.raise_if_stopped()
        batch = prompts[start : start + _BATCH]
        sampled = run.services.policy.generate(
            [prompt.messages for prompt in batch],
            run.spec.sampling,
            version=run.start.version,
            seed=derive_seed(run.spec.seed, file.stem, start),
        )
        texts = [one.text for (one,) in sampled]
        append_line(file, json.dumps(texts, ensure_ascii=False))
        answers += texts
        run.reporter.report(len(answers), len(prompts), text=what)
    return answers


def _revised(run: Run, folder: Path, drafts: Sequence[Draft], failures: Failures) -> list[RevisionRow]:
    """The rows of every round; a dirty revision is not revised again, but what came before it."""
    file = folder / "rows.jsonl"
    rows = {(row.prompt_key, row.round): row for row in read_rows(file)}
    total = len(drafts) * run.spec.revision.rounds
    now = list(drafts)
    for number in range(1, run.spec.revision.rounds + 1):
        waiting = [one for one in now if (one.prompt.key, number) not in rows]
        for start in range(0, len(waiting), _BATCH):
            run.reporter.raise_if_stopped()
            batch = waiting[start : start + _BATCH]
            results = revise(run, batch, number, draws(run, REVISING, number))
            written = [one for one in results if isinstance(one, RevisionRow)]
            append_rows(file, written)
            failures.add(results, number)
            failed = [
                failed_row(run, draft, number, one)
                for draft, one in zip(batch, results, strict=True)
                if isinstance(one, Failed) and one.kind != UNAVAILABLE
            ]
            append_rows(file, failed)
            rows |= {(row.prompt_key, number): row for row in (*written, *failed)}
            text = f"round {number}: {Counter(row.verdict for row in written)[CLEAN]} of {len(batch)} clean"
            run.reporter.report(min(len(rows), total), total, text=text)
        now = [_next(draft, rows.get((draft.prompt.key, number))) for draft in now]
    return sorted(rows.values(), key=lambda row: (row.round, row.prompt_key))


def _next(draft: Draft, row: RevisionRow | None) -> Draft:
    return Draft(draft.prompt, row.revision, row.id) if row is not None and row.verdict == CLEAN else draft


def _decide(run: Run, folder: Path, gate: RevisionGate, rows: Sequence[RevisionRow]) -> Revisions:
    """Say of every row what became of it, store the judged pairs as comparisons, and write what is learned from."""
    prompts = {prompt.key: prompt for prompt in run.prompts.train}
    clean = [row for row in rows if row.verdict == CLEAN]
    answers = {row.prompt_key: row.answer for row in rows if not row.parent}
    last = {row.prompt_key: row for row in clean}
    common = common_endings([row.revision for row in last.values()])
    outcomes = {row.id: SUPERSEDED if row.verdict == CLEAN else row.verdict for row in rows}
    candidates = []
    for key, row in last.items():
        if ending(row.revision) in common:
            outcomes[row.id] = ENDING
        else:
            candidates.append(Candidate(prompts[key], answers[key], row))
    outcomes |= _judged(run, folder, candidates)
    accepted = [(row.prompt, row.revision) for row in last.values() if outcomes[row.id] == ACCEPTED]
    _write_conversations(folder / REVISED, accepted)
    write_table(folder / "rows.parquet", rows, outcomes)
    return Revisions(
        gate,
        skipped=False,
        rounds=tuple(_round(number, rows) for number in range(1, run.spec.revision.rounds + 1)),
        outcomes=dict(Counter(outcomes[row.id] for row in last.values())),
        by_principle=_by_principle(rows, outcomes),
        samples=tuple(_samples(rows, outcomes)),
    )


def _judged(run: Run, folder: Path, candidates: Sequence[Candidate]) -> dict[str, str]:
    """What becomes of each candidate, by its row; with ``accept: all`` nobody is asked."""
    if run.spec.revision.accept == "all":
        return {one.row.id: decision(None) for one in candidates}
    file = folder / "judged.jsonl"
    found: dict[str, str] = {}
    for line in recover_lines(file):
        found |= json.loads(line)
    waiting = [one for one in candidates if one.row.id not in found]
    held_out = held_out_keys(run)
    failures = Failures(run, COMPARING, len(candidates))
    again = draws(run, COMPARING, 0)
    for start in range(0, len(waiting), _BATCH):
        run.reporter.raise_if_stopped()
        batch = waiting[start : start + _BATCH]
        judged = judgements(run, batch, "comparing", again)
        comparisons = [
            _comparison(run, candidate, judgement, candidate.prompt.key in held_out)
            for candidate, judgement in zip(batch, judged, strict=True)
            if failure_of(judgement) is None
        ]
        if comparisons:
            run.services.preference.add_comparisons(f"{run.id}-revisions-{batch[0].row.id}", comparisons)
        failures.add([failure_of(one) for one in judged])
        decided = {one.row.id: decision(judgement) for one, judgement in zip(batch, judged, strict=True)}
        append_line(file, json.dumps(decided))
        found |= decided
        run.reporter.report(len(found), len(candidates), text="the judge compares revisions with answers")
    return found


def _comparison(run: Run, one: Candidate, judgement: judge_pb2.Judgement, held_out: bool) -> types_pb2.Comparison:
    """The revision against the answer, with the judge's soft label: a revision is not better because it is one."""
    policy = types_pb2.Answer(text=one.answer, model=one.row.policy, weight_version=one.row.policy_version)
    revision = types_pb2.Answer(text=one.row.revision, model=one.row.judge)
    return types_pb2.Comparison(
        prompt=proto_messages(one.prompt.messages),
        answer_a=revision,
        answer_b=policy,
        source=types_pb2.LABEL_SOURCE_AI,
        labeller=judgement.model,
        outcome=judgement.outcome,
        probability_a=judgement.probability_a,
        judgements=judgement.principles,
        method=REVISION_METHOD,
        constitution_digest=judgement.constitution_digest,
        run_id=run.id,
        split=types_pb2.SPLIT_HELD_OUT if held_out else types_pb2.SPLIT_TRAIN,
        dimension=one.prompt.dimension,
    )


def _round(number: int, rows: Sequence[RevisionRow]) -> RevisionRound:
    found = [row for row in rows if row.round == number]
    words = [len(row.revision.split()) for row in found if row.verdict == CLEAN]
    return RevisionRound(number, dict(Counter(row.verdict for row in found)), fmean(words) if words else 0.0)


def _by_principle(rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    counted: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.principle:
            counted[row.principle].append(outcomes[row.id])
    return {name: (len(found), found.count(ACCEPTED)) for name, found in sorted(counted.items())}


def _samples(rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> Iterator[RevisionSample]:
    first: dict[str, RevisionRow] = {}
    for row in rows:
        first.setdefault(outcomes[row.id], row)
    for outcome, row in sorted(first.items()):
        texts = (row.prompt[-1].content, row.answer, row.revision)
        yield RevisionSample(outcome, row.principle, *(_cut(text) for text in texts))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
