"""Which answers are scored together."""

from charter.preference.batching import Size, choose_batch
from hypothesis import given
from hypothesis import strategies as st


def size(conversation: str, before: int, answer: int) -> Size:
    return Size(conversation, before + answer, answer)


# The conversation's name gives its tokens, as equal conversations have equally many.
answers = st.builds(
    lambda name, answer: size(name, 50 * len(name), answer), st.sampled_from(["a", "bb", "cc"]), st.integers(1, 900)
)
waiting_answers = st.lists(answers, min_size=1, max_size=60)


def computed(chosen: list[Size]) -> int:
    """Tokens of the answers, and those of each conversation once."""
    conversations = {one.conversation: one.tokens - one.alone for one in chosen}
    return sum(conversations.values()) + sum(one.alone for one in chosen)


@given(waiting_answers, st.integers(1, 4096))
def test_oldest_goes_first_and_the_budget_holds(waiting: list[Size], budget: int) -> None:
    chosen = choose_batch(waiting, budget)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == 1 or computed([waiting[index] for index in chosen]) <= budget


@given(waiting_answers)
def test_every_answer_is_scored_once(waiting: list[Size]) -> None:
    left = list(enumerate(waiting))
    done = []
    while left:
        chosen = set(choose_batch([one for _, one in left], 2048))
        done += [name for place, (name, _) in enumerate(left) if place in chosen]
        left = [one for place, one in enumerate(left) if place not in chosen]
    assert sorted(done) == list(range(len(waiting)))


def test_answers_to_one_conversation_come_first_and_pay_for_it_once() -> None:
    waiting = [size("x", 500, 10), size("y", 500, 10), size("x", 500, 20), size("y", 500, 30), size("x", 500, 30)]
    assert choose_batch(waiting, 560) == [0, 2, 4]
    assert choose_batch(waiting, 1070) == [0, 2, 4, 1]
    assert choose_batch(waiting, 10_000) == [0, 2, 4, 1, 3]


def test_a_long_answer_goes_alone() -> None:
    assert choose_batch([size("x", 1, 5000), size("x", 1, 10)], 4096) == [0]
