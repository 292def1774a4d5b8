"""DPO and KTO learn what labels say, either way, and stand still under a great beta or without a preference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charter.worker.offline.items import ComparedAnswers, RatedAnswer
from charter.worker.supervised.learner import Learner

from tests.support.labelled import Draw, dpo, kto, sequence, with_reference

STEPS, PAIRS, RATE = 12, 24, 1e-2
WEAK, STRONG = 0.1, 300.0
# Largest part of the gain that may be left under the strong pull: Adam's steps have their length however small a
# gradient is.
HELD = {"dpo": 0.3, "kto": 0.6}


def answers(seed: int) -> list[tuple[list[int], list[int], list[int]]]:
    """A prompt, an answer of small ids and one of large ids."""
    draw = Draw(seed)
    return [(draw.ids(4, 5), draw.ids(4, 8, 3, 100), draw.ids(4, 8, 100, 200)) for _ in range(PAIRS)]


def pairs(seed: int, probability: float) -> list[ComparedAnswers]:
    """``probability`` is that small ids are better; they are A in every other pair."""
    found = []
    for place, (prompt, small, large) in enumerate(answers(seed)):
        both = (sequence(prompt, small), sequence(prompt, large))
        turned = place % 2
        found.append(
            ComparedAnswers(
                both[::-1] if turned else both,
                group=str(prompt),
                label_source="AI",
                probability_a=1 - probability if turned else probability,
            )
        )
    return found


def thumbs(seed: int, small_is_good: bool) -> list[RatedAnswer]:
    """Each answer with the same kind of answer to another prompt behind it."""
    made = answers(seed)
    return [
        RatedAnswer(
            (sequence(prompt, ids), sequence(prompt, made[place - 1][1 + kind])),
            group=str(prompt),
            label_source="HUMAN",
            good=small_is_good == (kind == 0),
        )
        for place, (prompt, *both) in enumerate(made)
        for kind, ids in enumerate(both)
    ]


def gain(learner: Learner[Any], train: Sequence[Any], unseen: Sequence[ComparedAnswers]) -> float:
    """By how many nats small ids gain on large ones, in answers that were not learned."""

    def lead() -> float:
        total = 0.0
        for place, pair in enumerate(unseen):
            a, b = learner.summed_logprobs(pair.sequences)
            total += b - a if place % 2 else a - b
        return total / len(unseen)

    train = with_reference(learner, train)
    before = lead()
    for step in range(STEPS):
        learner.update([train[(step * 8 + place) % len(train)] for place in range(8)], RATE)
    return lead() - before


def test_dpo_learns_either_way_and_stands_still(tiny_model: Path) -> None:
    unseen = pairs(100, 1.0)[:8]
    up = gain(dpo(tiny_model, WEAK), pairs(0, 1.0), unseen)
    down = gain(dpo(tiny_model, WEAK), pairs(0, 0.0), unseen)
    assert up > 1.5
    assert down < -1.5
    # The margin that satisfies a soft label is small where beta is great.
    assert abs(gain(dpo(tiny_model, STRONG), pairs(0, 0.9), unseen)) < HELD["dpo"] * up


def test_kto_learns_either_way_and_stands_still(tiny_model: Path) -> None:
    unseen = pairs(100, 1.0)[:8]
    up = gain(kto(tiny_model, WEAK), thumbs(0, True), unseen)
    down = gain(kto(tiny_model, WEAK), thumbs(0, False), unseen)
    assert up > 1.5
    assert down < -1.5
    # A gain is worth nothing more once it is far above the reference point, which a great beta makes near.
    assert abs(gain(kto(tiny_model, STRONG), thumbs(0, True), unseen)) < HELD["kto"] * up


def test_a_certain_label_pulls_more_than_a_soft_one(tiny_model: Path) -> None:
    unseen = pairs(100, 1.0)[:8]
    certain, soft = (gain(dpo(tiny_model, 1.0), pairs(0, probability), unseen) for probability in (1.0, 0.8))
    assert soft < certain / 2
