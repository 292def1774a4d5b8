"""Labels of the pairs of an evaluation or a study as votes in its folder."""

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from charter.evaluation.compare.asked import AskedFolder
from charter.evaluation.compare.votes import PairKey, Preference, Vote, text_digest, votes_that_count
from charter.feedback.labels import METHOD, RATINGS
from charter.feedback.pairs import Pair
from charter.held_out import prompt_key
from charter.outcomes import outcome_of
from charter.rpc.messages import chat_messages
from charter.runs.artifacts import now
from charter.state_files import alone_in
from charter.v1 import types_pb2

_PREFERENCES: dict[types_pb2.Outcome.ValueType, Preference] = {
    types_pb2.OUTCOME_PREFERRED_A: "left",
    types_pb2.OUTCOME_PREFERRED_B: "right",
    types_pb2.OUTCOME_TIE: "tie",
}
_RATINGS = {rating: name for name, rating in RATINGS.items()}


class VoteFile:
    """The votes of an evaluation or a study, while no other page adds to them; ``close`` it at the end.

    Raises ``FolderBusyError`` when another does, ``StateFileError``, ``OSError``.
    """

    def __init__(self, folder: AskedFolder, pairs: Sequence[Pair]) -> None:
        self._folder = folder
        self._pairs = {_key(pair.comparison): pair for pair in pairs}
        self._held = ExitStack()
        self._held.enter_context(alone_in(folder.path, ".votes.lock"))
        folder.recover_votes()
        self._votes = {vote.id: vote for vote in folder.read_votes()}
        self._untold = [vote for vote in votes_that_count(self._votes.values()) if vote.pair in self._pairs]

    def close(self) -> None:
        """Let another page add votes."""
        self._held.close()

    async def labels(self) -> AsyncIterator[types_pb2.Comparison]:
        """The stored labels of these pairs that this has not given before."""
        while self._untold:
            vote = self._untold.pop(0)
            yield _label(vote, self._pairs[vote.pair].comparison)

    async def add(self, request_id: str, comparison: types_pb2.Comparison) -> str:
        """Store a label; its id. Repeating a request id stores nothing."""
        if request_id not in self._votes:
            self._store(_vote(request_id, comparison))
        return request_id

    async def remove(self, comparison_id: str, labeller: str) -> None:
        """Take a person's own label back."""
        vote = self._votes.get(comparison_id)
        if vote is not None and vote.labeller == labeller and vote.preference:
            self._store(replace(vote, preference="", time=now()))

    def _store(self, vote: Vote) -> None:
        self._folder.add_vote(vote)
        self._votes[vote.id] = vote


def _vote(request_id: str, label: types_pb2.Comparison) -> Vote:
    left, right = label.answer_a, label.answer_b
    return Vote(
        id=request_id,
        labeller=label.labeller,
        time=now(),
        prompt=prompt_key(chat_messages(label.prompt)),
        dimension=label.dimension,
        model_left=left.model,
        model_right=right.model,
        digest_left=text_digest(left.text),
        digest_right=text_digest(right.text),
        preference=_PREFERENCES[label.outcome],
        rating_left=_RATINGS[left.rating],
        rating_right=_RATINGS[right.rating],
        reason=label.rationale,
        principle=label.judgements[0].principle_id if label.judgements else "",
        constitution_digest=label.constitution_digest,
    )


def _label(vote: Vote, pair: types_pb2.Comparison) -> types_pb2.Comparison:
    """What the queue counts of a stored vote: who said what of which pair."""
    left_is_a = text_digest(pair.answer_a.text) == vote.digest_left
    left, right = (pair.answer_a, pair.answer_b) if left_is_a else (pair.answer_b, pair.answer_a)
    return types_pb2.Comparison(
        id=vote.id,
        prompt=pair.prompt,
        answer_a=left,
        answer_b=right,
        source=types_pb2.LABEL_SOURCE_HUMAN,
        labeller=vote.labeller,
        method=METHOD,
        outcome=outcome_of(vote.for_answer(vote.digest_left)),
    )


def _key(comparison: types_pb2.Comparison) -> PairKey:
    digests = (text_digest(comparison.answer_a.text), text_digest(comparison.answer_b.text))
    return prompt_key(chat_messages(comparison.prompt)), frozenset(digests)
