"""What is learned in which order, and at which rate."""

import math
from collections import Counter
from itertools import chain

import pytest
from charter.worker.supervised.mixture import Batching, Mixture
from charter.worker.supervised.schedule import learning_rate
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=30)


def epochs(mixture: Mixture, count: int, seed: int = 1) -> list[list[tuple[str, int]]]:
    return [mixture.epoch(number, seed) for number in range(count)]


@given(one=SIZES, other=SIZES)
def test_without_weights_an_epoch_takes_everything_once(one: list[int], other: list[int]) -> None:
    mixture = Mixture.weighted({"one": one, "other": other}, {})
    everything = {*(("one", place) for place in range(len(one))), *(("other", place) for place in range(len(other)))}
    for taken in epochs(mixture, 2):
        assert len(taken) == len(everything)
        assert set(taken) == everything


def test_epochs_and_seeds_have_their_own_order() -> None:
    mixture = Mixture.weighted({"one": [1] * 20}, {})
    orders = [mixture.epoch(0, 1), mixture.epoch(1, 1), mixture.epoch(0, 2)]
    assert len({tuple(order) for order in orders}) == 3
    assert mixture.epoch(1, 1) == orders[1]


def test_weights_are_shares_of_the_tokens_that_are_learned() -> None:
    """Short answers against long ones, equally: as many tokens of each, and so far more of the short answers."""
    mixture = Mixture.weighted({"short": [2] * 100, "long": [10] * 50}, {"short": 3.0, "long": 3.0})
    assert mixture.shares == pytest.approx({"short": 0.5, "long": 0.5})
    taken = epochs(mixture, 5)
    tokens = Counter[str]()
    for source, place in chain(*taken):
        tokens[source] += mixture.tokens[source][place]
    assert tokens["long"] / tokens["short"] == pytest.approx(1.0, abs=0.01)
    for epoch in taken:
        # The source that is smallest for its weight is taken whole, and once.
        assert sorted(place for source, place in epoch if source == "short") == list(range(100))
    # Of the long ones two fifths: each was taken as often as any other.
    assert set(Counter(one for epoch in taken for one in epoch if one[0] == "long").values()) == {2}


def test_replay_is_a_share_of_all_as_often_as_that_needs() -> None:
    own = Mixture.weighted({"own": [10] * 90}, {})
    mixture = own.beside(Mixture.weighted({"old": [5] * 10}, {}), 0.1)
    assert mixture.shares == pytest.approx({"own": 0.9, "old": 0.1})
    counted = Counter(source for source, _ in mixture.epoch(0, seed=3))
    assert counted == {"own": 90, "old": 20}


@given(sizes=SIZES, most=st.integers(1, 60), count=st.integers(1, 3), data=st.data())
def test_batches_hold_an_epoch_in_order_and_go_on_from_any_step(
    sizes: list[int], most: int, count: int, data: st.DataObject
) -> None:
    mixture = Mixture.weighted({"one": sizes}, {})
    batching = Batching(mixture, {"one": sizes}, most, count, seed=7)
    steps = batching.steps()
    everything = list(batching.batches(steps, 0))
    assert [len(list(batching.epoch(number))) for number in range(count)] == steps
    assert [*chain(*everything)] == [*chain(*epochs(mixture, count, seed=7))]
    for batch in everything:
        assert len(batch) == 1 or sum(sizes[place] for _, place in batch) <= most
    first = data.draw(st.integers(0, len(everything)))
    assert list(batching.batches(steps, first)) == everything[first:]


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * step / 11 for step in range(1, 11)])
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert rates == [*sorted(rates[:10]), *sorted(rates[10:], reverse=True)]
    assert learning_rate(0, 1, 2.0, 0.1) > 0
