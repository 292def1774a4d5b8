"""Which answers are scored together."""

from charter.preference.batching import MOST_PADDED, choose_batch
from hypothesis import given
from hypothesis import strategies as st

lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=80)


@given(lengths, st.integers(1, 8192))
def test_oldest_goes_first_and_limits_hold(waiting: list[int], budget: int) -> None:
    chosen = choose_batch(waiting, budget)
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    sizes = [waiting[index] for index in chosen]
    if len(chosen) > 1:
        assert max(sizes) * len(sizes) <= budget
        assert max(sizes) * len(sizes) <= MOST_PADDED * sum(sizes)


@given(lengths)
def test_every_answer_is_scored_once(waiting: list[int]) -> None:
    left = list(enumerate(waiting))
    done = []
    while left:
        chosen = set(choose_batch([size for _, size in left], 4096))
        done += [name for place, (name, _) in enumerate(left) if place in chosen]
        left = [one for place, one in enumerate(left) if place not in chosen]
    assert sorted(done) == list(range(len(waiting)))


def test_equal_lengths_fill_the_budget() -> None:
    assert len(choose_batch([100] * 50, 4096)) == 40


def test_like_lengths_join_and_others_wait() -> None:
    assert sorted(choose_batch([100, 900, 101, 5, 99, 1000], 4096)) == [0, 2, 4]


def test_a_long_answer_goes_alone() -> None:
    assert choose_batch([5000, 5000, 10], 4096) == [0]
