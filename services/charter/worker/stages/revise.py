"""Critique and revision of the policy's answers (``revision/``, ``revision.json``): what it may learn from, and why."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from charter.atomic_files import write_text
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.evaluation.figures.words import ending
from charter.hashing import stable_number
from charter.outcomes import outcome_of
from charter.rpc.messages import proto_messages
from charter.runs.results import RevisionGate, RevisionRound, Revisions, write_result
from charter.runs.revisions import FOLDER, ROWS, RevisionRow, write_outcomes
from charter.spec.facts import is_revised
from charter.storage.comparisons import REVISION_METHOD
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker.answer_log import Written, sample_all
from charter.worker.clients.served import serve_start
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.revision.acceptance import ACCEPTED, SUPERSEDED, Candidate, Judged, decision, judge_all
from charter.worker.revision.filters import ENDING, UNCHANGED, common_endings
from charter.worker.revision.rounds import Draft, revise_all
from charter.worker.revision.rows import CLEAN, samples, write_table
from charter.worker.stages.gate import pass_gate
from charter.worker.stages.label import held_out_keys

# Stages of ``Failures``.
REVISING, COMPARING = "revising", "comparing revisions"
# In the stage's folder, conversations to learn from: accepted revisions, and the policy's answers to other prompts.
REVISED, HELPFUL = "accepted.jsonl", "helpful.jsonl"


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
        gate = pass_gate(run)
        numbers = {"gate_probability": gate.mean_probability, "gate_low": gate.low, "gate_high": gate.high}
        run.reporter.report(gate.prompts, gate.prompts, numbers=numbers)
        if not gate.gain and self._ends_at(run, gate):
            write_result(run.artifacts.folder, "revision", Revisions(gate, skipped=True))
            return
        folder = run.artifacts.folder / FOLDER
        prompts = revised_prompts(run)
        answers = _answered(run, folder / "answers.jsonl", prompts, "answers to revise")
        written = {prompt.key: one for prompt, one in zip(prompts, answers, strict=True) if one.text.strip()}
        run.artifacts.count(revision_answers_empty=len(prompts) - len(written))
        drafts = [Draft(prompt, written[prompt.key].text) for prompt in prompts if prompt.key in written]
        rows = revise_all(run, run.artifacts.folder / ROWS, drafts, run.spec.revision.rounds, REVISING, counted=True)
        result = _decide(run, folder, gate, rows, written)
        _answer_helpfully(run, folder)
        write_result(run.artifacts.folder, "revision", result)
        accepted = result.outcomes.get(ACCEPTED, 0)
        numbers = {"accepted_share": accepted / len(drafts)} if drafts else {}
        text = f"{accepted} of {len(drafts)} answers have a revision to learn from"
        run.reporter.report(len(rows), len(rows), numbers=numbers, text=text)

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
    found = [one for one in run.prompts.train if is_revised(spec, one)]
    if not found:
        raise RunError(
            f"no training prompt has one of revision.dimensions ({', '.join(spec.dimensions)}): name other ones"
        )
    if not spec.HasField("prompts"):
        return found
    # With weights each source has its share; a prompt that would come again is left out.
    taken = run.prompts.take(found, 0, spec.prompts, run.spec.seed) if run.prompts.weights else found[: spec.prompts]
    return list({one.key: one for one in taken}.values())


def _answer_helpfully(run: Run, folder: Path) -> None:
    """Write what is learned beside the revisions: the policy's own answers to the other prompts, as it gives them.

    Who learns from revisions alone forgets how to help. Bai et al. 2022 mix in answers to helpful prompts.
    """
    spec = run.spec.revision
    others = [one for one in run.prompts.train if not is_revised(spec, one)]
    if spec.helpful or not spec.helpful_share or not others:
        return
    answers = _answered(run, folder / "helpful_answers.jsonl", others, "answers to the other prompts")
    # An answer that the token limit ended would teach to stop in the middle.
    whole = [(prompt.messages, one.text) for prompt, one in zip(others, answers, strict=True) if one.whole]
    run.artifacts.count(helpful_answers_left_out=len(others) - len(whole))
    _write_conversations(folder / HELPFUL, whole)
    if len(whole) < len(others):
        text = (
            f"{len(others) - len(whole)} of {len(others)} answers to other prompts are empty or cut off: not learned. "
            "More sampling.max_new_tokens, or conversations in revision.helpful, hold better against the revisions"
        )
        run.reporter.report(len(whole), len(others), text=text)


def _write_conversations(file: Path, pairs: Sequence[tuple[Sequence[ChatMessage], str]]) -> None:
    lines = []
    for messages, answer in pairs:
        turns = [{"role": one.role, "content": one.content} for one in messages]
        turns.append({"role": "assistant", "content": answer})
        lines.append(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    write_text(file, "".join(lines))


def _answered(run: Run, file: Path, prompts: Sequence[TaskPrompt], text: str) -> list[Written]:
    """The policy's answers; those of an earlier attempt are read."""
    answers = sample_all(run, file, prompts, lambda: serve_start(run), seeded=file.stem, text=text)
    return [one for (one,) in answers]


def _decide(
    run: Run, folder: Path, gate: RevisionGate, rows: Sequence[RevisionRow], answers: Mapping[str, Written]
) -> Revisions:
    """Say of every row what became of it, store the judged pairs as comparisons, and write what is learned from."""
    prompts = {prompt.key: prompt for prompt in run.prompts.train}
    clean = [row for row in rows if row.verdict == CLEAN]
    last = {row.prompt_key: row for row in clean}
    common = common_endings([row.revision for row in last.values()])
    outcomes = {row.id: SUPERSEDED if row.verdict == CLEAN else row.verdict for row in rows}
    candidates = []
    for key, row in last.items():
        answer = answers[key]
        if ending(row.revision) in common:
            outcomes[row.id] = ENDING
        elif row.revision.strip() == answer.text.strip():
            # Revised, and revised back.
            outcomes[row.id] = UNCHANGED
        else:
            candidates.append(Candidate(prompts[key], answer.text, row, answer.cut_off))
    outcomes |= _judged(run, folder, candidates)
    accepted = [(row.prompt, row.revision) for row in last.values() if outcomes[row.id] == ACCEPTED]
    _write_conversations(folder / REVISED, accepted)
    write_table(folder / "rows.parquet", rows, outcomes)
    write_outcomes(run.artifacts.folder, outcomes)
    return Revisions(
        gate,
        skipped=False,
        rounds=tuple(_round(number, rows) for number in range(1, run.spec.revision.rounds + 1)),
        outcomes=dict(Counter(outcomes[row.id] for row in last.values())),
        by_principle=_by_principle(rows, outcomes),
        samples=tuple(samples(rows, outcomes)),
    )


def _judged(run: Run, folder: Path, candidates: Sequence[Candidate]) -> dict[str, str]:
    """What becomes of each candidate, by its row. All are compared and stored, with ``accept: all`` too."""
    held_out = held_out_keys(run)

    def store(judged: Judged, again: int) -> None:
        comparisons = [_comparison(run, one, judgement, one.prompt.key in held_out) for one, judgement in judged]
        # Another one where other pairs of the batch are stored.
        request = stable_number(str(again), *(one.row.id for one, _ in judged))
        run.services.preference.add_comparisons(f"{run.id}-revisions-{request:016x}", comparisons)

    preferences = judge_all(run, folder / "judged.jsonl", candidates, COMPARING, store)
    if run.spec.revision.accept == "all":
        return dict.fromkeys(preferences, ACCEPTED)
    return {name: decision(preference) for name, preference in preferences.items()}


def _comparison(run: Run, one: Candidate, judgement: judge_pb2.Judgement, held_out: bool) -> types_pb2.Comparison:
    """The revision against the answer, with the judge's soft label: a revision is not better because it is one."""
    policy = types_pb2.Answer(
        text=one.answer, model=one.row.policy, weight_version=one.row.policy_version, cut_off=one.cut_off
    )
    revision = types_pb2.Answer(text=one.row.revision, model=one.row.judge)
    return types_pb2.Comparison(
        prompt=proto_messages(one.prompt.messages),
        answer_a=revision,
        answer_b=policy,
        source=types_pb2.LABEL_SOURCE_AI,
        labeller=judgement.model,
        outcome=outcome_of(judgement.probability_a),
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
    return RevisionRound(
        number,
        dict(Counter(row.verdict for row in found)),
        fmean(words) if words else 0.0,
        sum(row.critique_cut_off for row in found),
    )


def _by_principle(rows: Sequence[RevisionRow], outcomes: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    counted: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.principle:
            counted[row.principle].append(outcomes[row.id])
    return {name: (len(found), found.count(ACCEPTED)) for name, found in sorted(counted.items())}
