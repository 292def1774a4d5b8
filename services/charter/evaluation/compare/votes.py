"""Votes of people on the answers of an evaluation, as they are stored."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Preference = Literal["left", "right", "tie", ""]
# A prompt's key, and the digests of two answers to it.
PairKey = tuple[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Vote:
    """What a person said of two answers whose models were not named, left and right as they were shown.

    Answers are known by their texts (``text_digest``): a vote is of no other answer than the person has read. A line
    with the same ``id`` and no ``preference`` takes the vote back.
    """

    id: str
    labeller: str
    # UTC, ISO 8601.
    time: str
    prompt: str
    dimension: str
    model_left: str
    model_right: str
    digest_left: str
    digest_right: str
    preference: Preference
    # Thumbs: up, down or empty.
    rating_left: str = ""
    rating_right: str = ""
    reason: str = ""
    # The principle that decided, and the constitution that it is of.
    principle: str = ""
    constitution_digest: str = ""

    @property
    def pair(self) -> PairKey:
        """What it is about, whichever answer was left."""
        return self.prompt, frozenset((self.digest_left, self.digest_right))

    def for_answer(self, digest: str) -> float:
        """1 where the answer of this digest is preferred to the other, 0 where the other is, 0.5 for a tie."""
        if self.preference == "tie":
            return 0.5
        return float((self.preference == "left") == (digest == self.digest_left))


def text_digest(text: str) -> str:
    """sha256 of an answer's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def votes_that_count(lines: Iterable[Vote]) -> list[Vote]:
    """The last vote of each person on each pair, of those that were not taken back. ``lines`` are in their order."""
    given: dict[str, Vote] = {}
    for line in lines:
        if line.preference:
            given[line.id] = line
        else:
            given.pop(line.id, None)
    return list({(vote.labeller, vote.pair): vote for vote in given.values()}.values())


def vote_to_line(vote: Vote) -> str:
    """As ``votes.jsonl`` has it."""
    return json.dumps(asdict(vote), ensure_ascii=False)


def vote_from_line(line: str) -> Vote:
    """Inverse of ``vote_to_line``. Raises ``ValueError``, ``TypeError``."""
    vote = Vote(**json.loads(line))
    if vote.preference not in get_args(Preference):
        raise ValueError(f"preference must be one of left, right, tie and nothing, not {vote.preference!r}")
    return vote
