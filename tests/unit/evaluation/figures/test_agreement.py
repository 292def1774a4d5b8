"""Cohen's kappa against known tables and scikit-learn."""

import pytest
from charter.evaluation.figures.agreement import cohen_kappa, kappa_estimate
from charter.evaluation.statistics import NotIdentifiedError


def test_cohen_kappa_of_a_known_table() -> None:
    """Two raters, 50 items: both yes 20, both no 15, yes/no 5, no/yes 10. p_o = 0.7, p_e = 0.5, kappa 0.4."""
    labels = [("y", "y")] * 20 + [("n", "n")] * 15 + [("y", "n")] * 5 + [("n", "y")] * 10
    assert cohen_kappa(labels) == pytest.approx(0.4)


def test_cohen_kappa_of_three_labels_is_scikit_learns() -> None:
    """``sklearn.metrics.cohen_kappa_score`` 1.9.1."""
    labels = list(zip("abcabcaabbccabcaaabb", "abcabbaabcccabcabaab", strict=True))
    assert cohen_kappa(labels) == pytest.approx(0.6946564885496183)


def test_cohen_kappa_at_its_ends() -> None:
    assert cohen_kappa([("a", "a"), ("b", "b")]) == 1.0
    assert cohen_kappa([("a", "b"), ("b", "a")]) == -1.0
    assert cohen_kappa([("a", "a")] * 3) is None


def test_full_agreement_has_an_interval_of_some_width() -> None:
    found = kappa_estimate([("a", "a"), ("b", "b")] * 10, range(20), samples=1000, seed=0)
    assert found.value == found.high == 1.0
    assert 0.5 < found.low < 0.95


def test_items_of_one_prompt_are_not_independent() -> None:
    labels = [("a", "a"), ("b", "b"), ("a", "b"), ("b", "a"), ("b", "b"), ("a", "a")] * 4
    once = kappa_estimate(labels, range(24), samples=1000, seed=0)
    again = kappa_estimate(labels * 5, [*range(24)] * 5, samples=1000, seed=0)
    assert (again.low, again.high) == pytest.approx((once.low, once.high))


def test_two_who_always_say_the_same_are_refused() -> None:
    with pytest.raises(NotIdentifiedError, match="always say the same"):
        kappa_estimate([("a", "a")] * 5, range(5), samples=10, seed=0)
