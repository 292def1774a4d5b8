"""What people say of the models of an evaluation, as one more judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer
from charter.evaluation.compare.spec import EvaluateSpec, pairs_of
from charter.evaluation.compare.votes import PairKey, Vote, text_digest
from charter.evaluation.figures.rows import Judgement
from charter.hashing import stable_fraction
from charter.runs.results import LeftOut
from charter.spec.comparison_checks import PEOPLE

# Of pairs that two people voted on, the one and the other.
ONE_OF_TWO = ("a person", "another person")


class People:
    """The votes of people on the pairs of models that a spec asks for."""

    def __init__(
        self,
        spec: EvaluateSpec,
        prompts: Sequence[TaskPrompt],
        answers: Mapping[tuple[str, str, int], Answer],
        votes: Sequence[Vote],
    ) -> None:
        self._spec = spec
        self._pairs = list(_pairs(spec, prompts, answers))
        self._prompts = {prompt.key for prompt in prompts}
        self._votes = sorted(votes, key=lambda vote: vote.labeller)
        self._by_pair: dict[PairKey, list[Vote]] = {}
        for vote in self._votes:
            self._by_pair.setdefault(vote.pair, []).append(vote)

    @property
    def about(self) -> dict[str, Any]:
        """What is said of this judge where of others stands what served them; it has no model and no constitution."""
        labellers = len({vote.labeller for vote in self._votes})
        nothing = ("engine", "calibration_digest", "constitution_name", "constitution_version", "constitution_digest")
        said = {"model": PEOPLE, "method": "votes", "votes": len(self._votes), "labellers": labellers}
        return said | dict.fromkeys(nothing, "")

    @property
    def left_out(self) -> LeftOut:
        """Votes on answers that these models have given, but for what is no longer (or not yet) stored."""
        models = {model.name for model in self._spec.models}
        known = {pair.key for pair in self._pairs}
        asked = [
            vote
            for vote in self._votes
            if vote.prompt in self._prompts and {vote.model_left, vote.model_right} <= models
        ]
        return LeftOut.of(len(asked), ["of_other_answers" for vote in asked if vote.pair not in known])

    def rows(self) -> list[Judgement]:
        """A judgement for each pair that has votes: their mean.

        Equal answers are a tie that nobody is asked about. As large a share of them counts as of the other pairs of the
        two models in the dimension has votes: who has seen a part would else have none of the ties, or all.
        """
        groups: dict[tuple[str, str, str], list[_Pair]] = {}
        for pair in self._pairs:
            groups.setdefault((pair.model_a, pair.model_b, pair.prompt.dimension), []).append(pair)
        found: list[Judgement] = []
        for group in groups.values():
            different = [pair for pair in group if not pair.equal]
            equal = sorted((pair for pair in group if pair.equal), key=_draw)
            voted = [pair for pair in different if pair.key in self._by_pair]
            for pair in voted:
                said = [vote.for_answer(pair.digest_a) for vote in self._by_pair[pair.key]]
                found.append(pair.judged(PEOPLE, sum(said) / len(said)))
            share = len(voted) / len(different) if different else float(bool(self._votes))
            found += [pair.judged(PEOPLE, 0.5) for pair in equal[: round(share * len(equal))]]
        return found

    def of_two(self) -> dict[str, list[Judgement]]:
        """What every two people said of a pair that both have seen, by ``ONE_OF_TWO``; nothing where there is none."""
        # Two models may have said the same: the same votes are no more agreement.
        pairs = {pair.key: pair for pair in self._pairs if not pair.equal}
        twice = [(pair, both) for key, pair in pairs.items() for both in combinations(self._by_pair.get(key, ()), 2)]
        return {
            name: [
                # Its place in the list tells several people's judgements of one pair apart.
                pair.judged(name, both[which].for_answer(pair.digest_a), seed=place)
                for place, (pair, both) in enumerate(twice)
            ]
            for which, name in enumerate(ONE_OF_TWO)
            if twice
        }


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two models' answers to a prompt."""

    prompt: TaskPrompt
    sample: int
    model_a: str
    model_b: str
    digest_a: str
    digest_b: str

    @property
    def key(self) -> PairKey:
        return self.prompt.key, frozenset((self.digest_a, self.digest_b))

    @property
    def equal(self) -> bool:
        return self.digest_a == self.digest_b

    def judged(self, judge: str, probability_a: float, seed: int | None = None) -> Judgement:
        place = self.sample if seed is None else seed
        return Judgement(
            self.prompt.key, self.prompt.dimension, judge, self.model_a, self.model_b, place, probability_a
        )


def _pairs(
    spec: EvaluateSpec, prompts: Sequence[TaskPrompt], answers: Mapping[tuple[str, str, int], Answer]
) -> Iterator[_Pair]:
    """Of all pairs of models that are compared, where both have answered."""
    digests = {key: text_digest(one.text) for key, one in answers.items() if not one.failure}
    for a, b in pairs_of(spec):
        for prompt in prompts:
            for sample in range(spec.answers_per_prompt):
                one, other = digests.get((a, prompt.key, sample)), digests.get((b, prompt.key, sample))
                if one is not None and other is not None:
                    yield _Pair(prompt, sample, a, b, one, other)


def _draw(pair: _Pair) -> float:
    return stable_fraction("equal answers", pair.prompt.key, str(pair.sample))
