"""The length-controlled win rate: against scikit-learn, and where it must be 50 %, the win rate, or refused."""

from collections.abc import Sequence

import numpy as np
import pytest
from charter.evaluation.figures import length_control
from charter.evaluation.figures.length_control import LengthControlled, length_controlled
from charter.evaluation.figures.rows import Judgement
from charter.evaluation.figures.win_rate import win_rate
from charter.evaluation.statistics import NotIdentifiedError
from scipy.special import expit

from tests.benchmarks.coverage import length_controlled_rates

DIFFERENCES = [120, -40, 60, 10, -80, 30, -20, 90, -15, 45, -60, 5]
LABELS = [0.9, 0.3, 0.8, 0.6, 0.2, 0.45, 0.5, 0.95, 0.35, 0.4, 0.55, 0.65]


def controlled(
    differences: Sequence[int] | np.ndarray, labels: Sequence[float] | np.ndarray, orders: int = 1, samples: int = 400
) -> LengthControlled:
    judgements = [
        Judgement(str(prompt), "helpful", "judge", "new", "old", 0, float(label), order == 0)
        for prompt, label in enumerate(labels)
        for order in range(orders)
    ]
    lengths = {(str(prompt), "new", 0): 500 + int(one) for prompt, one in enumerate(differences)}
    lengths |= {(str(prompt), "old", 0): 500 for prompt in range(len(labels))}
    return length_controlled(judgements, lengths, samples=samples, seed=0)


@pytest.mark.parametrize(("ridge", "rate", "slope"), [(0.01, 0.51855178, 0.80230602), (1.0, 0.53334239, 0.52572409)])
def test_the_fit_is_scikit_learns(ridge: float, rate: float, slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn 1.9.1: ``LogisticRegression(C=1 / ridge)`` of u and u^3, soft labels as weighted rows."""
    monkeypatch.setattr(length_control, "RIDGES", (ridge,))
    found = controlled(DIFFERENCES, LABELS)
    assert (found.rate.value, found.slope.value) == pytest.approx((rate, slope), abs=1e-5)


def test_both_orders_of_a_pair_count_once_as_a_prompt() -> None:
    once, twice = controlled(DIFFERENCES, LABELS), controlled(DIFFERENCES, LABELS, orders=2)
    assert twice.rate.prompts == once.rate.prompts == 12
    assert twice.rate.high - twice.rate.low == pytest.approx(once.rate.high - once.rate.low, rel=0.15)


@pytest.mark.parametrize("judge", ["steep", "certain", "linear"])
@pytest.mark.parametrize("longer", [-0.5, 0.3, 1.0])
def test_a_judge_of_length_alone_has_a_rate_of_half(judge: str, longer: float) -> None:
    rng = np.random.default_rng(4)
    differences = np.round(100 * rng.standard_normal(300) + 100 * longer)
    labels = {
        "steep": expit(3 * np.tanh(differences / 100)),
        "certain": np.where(differences == 0, 0.5, (differences > 0).astype(float)),
        "linear": expit(differences / 50),
    }[judge]
    raw = win_rate(labels.tolist(), samples=400, seed=0).mean_probability
    found = controlled(differences, labels)
    assert found.rate.low <= 0.5 <= found.rate.high
    assert not raw.low <= 0.5 <= raw.high
    assert found.slope.low > 0


def test_a_judge_blind_to_length_has_the_win_rate() -> None:
    rng = np.random.default_rng(5)
    differences = rng.normal(80, 100, 2000)
    labels = rng.beta(3, 2, 2000)
    found = controlled(differences, labels)
    assert found.rate.value == pytest.approx(labels.mean(), abs=0.01)
    assert found.rate.low < 0.6 < found.rate.high
    assert found.slope.low < 0 < found.slope.high


def test_the_other_model_has_the_complement() -> None:
    there = controlled(DIFFERENCES, LABELS)
    back = controlled([-one for one in DIFFERENCES], [1 - one for one in LABELS])
    assert back.rate.value == pytest.approx(1 - there.rate.value)
    assert back.slope.value == pytest.approx(there.slope.value)
    assert back.rate.low == pytest.approx(1 - there.rate.high, abs=0.05)


def test_the_fit_finds_its_end_on_labels_that_length_alone_nearly_decides() -> None:
    # Draws of this sample send steps of Newton's method that are not shortened around in a circle.
    simulate = length_controlled_rates(0.0, 3.0, 1.0)
    [(rate, _)] = simulate(np.random.default_rng([0, 99]), 100, 500)
    assert rate.low < rate.value < rate.high


def test_nothing_but_wins_has_a_finite_rate() -> None:
    found = controlled(DIFFERENCES, [1.0] * 12)
    assert 0.5 < found.rate.low < found.rate.value < found.rate.high <= 1
    assert abs(found.slope.value) < 10


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        ([40] * 12, "always differ by \\+40 tokens"),
        ([*range(1, 10), -1, -2, -3], "on 9 of 12 prompts every answer of new is longer than that of old"),
        ([-one for one in range(1, 13)], "on 12 of 12 prompts every answer of old is longer than that of new"),
    ],
)
def test_what_cannot_be_told_is_refused(differences: list[int], message: str) -> None:
    with pytest.raises(NotIdentifiedError, match=message):
        controlled(differences, LABELS)


def test_failed_judgements_alone_are_refused() -> None:
    failed = Judgement("p", "helpful", "judge", "new", "old", 0, None)
    with pytest.raises(NotIdentifiedError, match="every judgement failed"):
        length_controlled([failed], {}, samples=10, seed=0)
    with pytest.raises(NotIdentifiedError, match="nothing was judged"):
        length_controlled([], {}, samples=10, seed=0)


def test_draws_of_models_that_were_judged_on_other_prompts_go_together() -> None:
    rng = np.random.default_rng(4)
    prompts = [f"prompt {place}" for place in range(40)]
    rows = [Judgement(prompt, "", "judge", "a", "b", 0, float(rng.uniform(0.1, 0.9))) for prompt in prompts]
    lengths = {(prompt, name, 0): int(rng.integers(20, 90)) for prompt in prompts for name in "ab"}
    whole, but_first = (
        length_controlled(found, lengths, samples=300, seed=1, among=prompts).log_odds for found in (rows, rows[1:])
    )
    assert np.corrcoef(whole, but_first)[0, 1] > 0.9
