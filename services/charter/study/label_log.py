"""``labels.jsonl`` of a study: one line a label, in our own layout of comparisons; its run id says whose it is."""

import json
from collections.abc import Iterable, Sequence

from charter.evaluation.compare.votes import Vote, text_digest, votes_that_count
from charter.held_out import prompt_key
from charter.jsonl import append_lines
from charter.outcomes import mean_probability, outcome_of
from charter.rpc.messages import chat_messages
from charter.state_files import read_log
from charter.storage.comparisons import comparison_from_row, comparison_to_row, row_to_json
from charter.study.folder import StudyFolder
from charter.study.labels import run_id_of
from charter.study.pairs import stored_pairs
from charter.study.spec import IMPORTED, PEOPLE, StudySpec, labellers
from charter.v1 import types_pb2

# Of people's labels, as those of the feedback page.
FEEDBACK = "feedback"
_ADVICE = "Bring it back from a copy, or delete that line: what it held is then asked again"

# By labeller, then by id of the pair.
Labels = dict[str, dict[str, types_pb2.Comparison]]


def read_labels(spec: StudySpec, folder: StudyFolder) -> Labels:
    """What is stored of those whom the arms learn from, labels that failed too; votes of people are not in it yet."""
    stored = read_log(folder.labels, lambda line: comparison_from_row(json.loads(line)), _ADVICE)
    named = {run_id_of(spec, name): name for name in labellers(spec)}
    found: Labels = {name: {} for name in named.values()}
    for one in stored:
        if one.run_id in named:
            found[named[one.run_id]][one.id] = one
    return found


def add_labels(folder: StudyFolder, labels: Iterable[types_pb2.Comparison]) -> None:
    """Store some. Raises ``OSError``, and then none of them is stored."""
    append_lines(folder.labels, [row_to_json(comparison_to_row(one)) for one in labels])


def unlabelled(pair: types_pb2.Comparison, run_id: str) -> types_pb2.Comparison:
    """The pair without what its file says of it, for a label of the given run id."""
    answers = [types_pb2.Answer(), types_pb2.Answer()]
    for answer, given in zip(answers, (pair.answer_a, pair.answer_b), strict=True):
        answer.CopyFrom(given)
        answer.ClearField("rating")
    return types_pb2.Comparison(
        id=pair.id,
        prompt=pair.prompt,
        answer_a=answers[0],
        answer_b=answers[1],
        run_id=run_id,
        split=pair.split,
        dimension=pair.dimension,
    )


def imported_labels(spec: StudySpec, pairs: Iterable[types_pb2.Comparison]) -> list[types_pb2.Comparison]:
    """What the files say of their pairs."""
    found = []
    for pair in pairs:
        label = types_pb2.Comparison()
        label.CopyFrom(pair)
        label.run_id = run_id_of(spec, IMPORTED)
        found.append(label)
    return found


def people_labels(
    spec: StudySpec, pairs: Iterable[types_pb2.Comparison], votes: Sequence[Vote]
) -> list[types_pb2.Comparison]:
    """A label of each pair that people voted on: the mean of their votes."""
    by_pair: dict[object, list[Vote]] = {}
    for vote in sorted(votes_that_count(votes), key=lambda vote: vote.labeller):
        by_pair.setdefault(vote.pair, []).append(vote)
    found = []
    for pair in pairs:
        digests = [text_digest(answer.text) for answer in (pair.answer_a, pair.answer_b)]
        given = by_pair.get((prompt_key(chat_messages(pair.prompt)), frozenset(digests)))
        if given is None:
            continue
        label = unlabelled(pair, run_id_of(spec, PEOPLE))
        label.source = types_pb2.LABEL_SOURCE_HUMAN
        label.method = FEEDBACK
        label.labeller = ", ".join(vote.labeller for vote in given)
        label.probability_a = mean_probability(vote.for_answer(digests[0]) for vote in given)
        label.outcome = outcome_of(label.probability_a)
        label.rationale = "\n".join(vote.reason for vote in given if vote.reason)
        principles = {(vote.principle, vote.constitution_digest) for vote in given if vote.principle}
        if len(principles) == 1:
            (principle, label.constitution_digest), *_ = principles
            label.judgements.add(principle_id=principle, outcome=label.outcome, probability_a=label.probability_a)
        found.append(label)
    return found


def labelled(spec: StudySpec, folder: StudyFolder) -> dict[str, tuple[int, int]]:
    """By labeller how many of the pairs are labelled, or could not be, and how many there are; no service is asked."""
    pairs = stored_pairs(spec, folder)
    there = {one.id for one in pairs}
    stored = read_labels(spec, folder)
    done = {name: len(there & stored[name].keys()) for name in stored}
    if PEOPLE in done:
        voted = people_labels(spec, (one for one in pairs if one.id not in stored[PEOPLE]), folder.read_votes())
        done[PEOPLE] += len(voted)
    return {name: (count, len(there)) for name, count in done.items()}
