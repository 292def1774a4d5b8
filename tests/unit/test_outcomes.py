"""What a probability of preference says: ties are ties, and exchanging the answers exchanges what is said."""

import math

import numpy as np
import pytest
import torch
from charter.outcomes import (
    TIE_TOLERANCE,
    failure_name,
    failure_of_judgement,
    held_between,
    mean_probability,
    outcome_of,
    probability_of,
    same_position_wins,
    side,
    win,
)
from charter.v1 import judge_pb2, types_pb2
from charter.worker.clients.failed import failure_of
from hypothesis import given
from hypothesis import strategies as st

A, B, TIE = types_pb2.OUTCOME_PREFERRED_A, types_pb2.OUTCOME_PREFERRED_B, types_pb2.OUTCOME_TIE
EXCHANGED = {A: B, B: A, TIE: TIE}
LOG_ODDS = st.floats(-1000, 1000)
LAPSE = st.floats(0, 0.499)
PROBABILITY = st.floats(0, 1)


@given(LOG_ODDS, LAPSE)
def test_a_probability_and_that_of_the_opposite_add_to_one(log_odds: float, lapse: float) -> None:
    probability, opposite = probability_of(log_odds, lapse), probability_of(-log_odds, lapse)
    assert probability + opposite == 1.0
    assert opposite == 1.0 - probability
    assert lapse - 1e-15 <= probability <= 1.0 - lapse + 1e-15
    expected = lapse + (1 - 2 * lapse) / (1 + math.exp(-max(log_odds, -700)))
    assert probability == pytest.approx(expected, abs=1e-14)


@given(LOG_ODDS, LAPSE)
def test_opposite_evidence_in_two_orders_is_a_tie_at_exactly_a_half(log_odds: float, lapse: float) -> None:
    mean = mean_probability([probability_of(log_odds, lapse), probability_of(-log_odds, lapse)])
    assert (mean, outcome_of(mean)) == (0.5, TIE)


@given(st.lists(st.tuples(LOG_ODDS, LAPSE), min_size=1, max_size=9))
def test_the_mean_of_exchanged_pairs_is_the_exact_complement(parts: list[tuple[float, float]]) -> None:
    mean = mean_probability([probability_of(x, lapse) for x, lapse in parts])
    exchanged = mean_probability([probability_of(-x, lapse) for x, lapse in parts])
    assert exchanged == 1.0 - mean
    assert outcome_of(exchanged) == EXCHANGED[outcome_of(mean)]
    assert held_between(exchanged, 0.4) == 1.0 - held_between(mean, 0.4)


# Hypothesis looks at the numbers around each of these.
NEAR = st.integers(-4, 4).flatmap(
    lambda steps: st.sampled_from([0.0, TIE_TOLERANCE, -TIE_TOLERANCE, 0.25, -0.25, 0.5, -0.5]).map(
        lambda away: min(1.0, max(0.0, 0.5 + away + steps * 2.0**-54))
    )
)


@given(PROBABILITY | NEAR)
def test_the_outcome_of_the_complement_is_the_exchanged_one(probability: float) -> None:
    assert outcome_of(1.0 - probability) == EXCHANGED[outcome_of(probability)]
    assert win(1.0 - probability) == 1.0 - win(probability)
    assert win(probability) == {A: 1.0, B: 0.0, TIE: 0.5}[outcome_of(probability)]


@given(st.lists(PROBABILITY | NEAR, min_size=1))
def test_arrays_and_tensors_are_read_by_the_same_rule(probabilities: list[float]) -> None:
    expected = [side(one) for one in probabilities]
    assert side(np.array(probabilities)).tolist() == expected
    assert side(torch.tensor(probabilities, dtype=torch.float64)).tolist() == expected


def test_the_tolerance() -> None:
    assert outcome_of(0.49999999999999994) == outcome_of(0.5 + 0.9 * TIE_TOLERANCE) == TIE
    assert outcome_of(0.5 + 1.1 * TIE_TOLERANCE) == A
    assert outcome_of(0.5 - 1.1 * TIE_TOLERANCE) == B
    # A label that a tensor holds in float32.
    assert side(torch.tensor([0.5 + 1e-8, 0.5001])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_probability_has_no_outcome(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        outcome_of(wrong)


def test_the_same_position_wins_only_when_neither_order_is_a_tie() -> None:
    assert same_position_wins(0.9, 0.2)
    assert not same_position_wins(0.9, 0.8)
    assert not same_position_wins(0.5 + 1e-9, 0.2)


def test_a_failure_has_one_name_everywhere() -> None:
    """That under which the worker counts it, also where the service did not say of what kind it is."""
    too_long = judge_pb2.Judgement(outcome=types_pb2.OUTCOME_INVALID, failure_kind=types_pb2.FAILURE_KIND_TOO_LONG)
    unsaid = judge_pb2.Judgement(outcome=types_pb2.OUTCOME_INVALID)
    away = judge_pb2.Judgement(outcome=types_pb2.OUTCOME_UNAVAILABLE)
    for judgement, name in ((too_long, "too_long"), (unsaid, "other"), (away, "unavailable")):
        assert failure_of_judgement(judgement) == name
        found = failure_of(judgement)
        assert found is not None
        assert found.kind == name
    labelled = judge_pb2.Judgement(outcome=A, probability_a=1.0)
    assert (failure_of_judgement(labelled), failure_of(labelled)) == ("", None)
    assert len({failure_name(kind) for kind in types_pb2.FailureKind.values()}) == len(types_pb2.FailureKind.values())
