"""When score and judge part, on histories made by hand."""

import pytest
from charter.evaluation.report.plots import ppo_plots
from charter.worker.reinforcement.overoptimisation import Measurement, best, parted


def history(*numbers: tuple[float, float | None]) -> list[Measurement]:
    return [Measurement(step, judge, score, step / 2) for step, (judge, score) in enumerate(numbers, start=1)]


def test_the_best_is_the_judges_and_the_earliest_of_equals() -> None:
    assert best(history((0.5, 9.0), (0.7, 1.0), (0.7, 3.0), (0.6, 4.0))).step == 2


@pytest.mark.parametrize(
    ("numbers", "patience", "expected"),
    [
        ([], 1, False),
        ([(0.6, 1.0)], 1, False),
        # The judge falls, the score rises.
        ([(0.6, 1.0), (0.5, 2.0)], 1, True),
        ([(0.6, 1.0), (0.5, 2.0)], 2, False),
        ([(0.6, 1.0), (0.5, 2.0), (0.55, 1.5)], 2, True),
        # One in between recovered, or was the new best.
        ([(0.6, 1.0), (0.5, 2.0), (0.7, 2.5), (0.6, 3.0)], 2, False),
        # Both fall: that is no exploit.
        ([(0.6, 1.0), (0.5, 0.5)], 1, False),
        # Both rise.
        ([(0.5, 1.0), (0.6, 2.0)], 1, False),
        # Online DPO has no score to part from.
        ([(0.6, None), (0.5, None)], 1, False),
    ],
)
def test_parted(numbers: list[tuple[float, float | None]], patience: int, expected: bool) -> None:
    assert parted(history(*numbers), patience) == expected


def test_scores_of_two_preference_models_are_never_compared() -> None:
    """The refreshed one has another scale: what it says of the best answers decides, not what the first one said."""
    refreshed = 2
    for scale in (-100.0, 0.0, 100.0):
        top = Measurement(1, 0.7, 1.0, 0.5, preference_version=1)
        for best_score, expected in ((scale - 1, True), (scale + 1, False), (None, False)):
            later = [Measurement(step, 0.5, scale, 1.0, refreshed, best_score) for step in (2, 3)]
            assert parted([top, *later], 2) == expected
        same = [Measurement(step, 0.5, scale, 1.0, 1, best_score=None) for step in (2, 3)]
        assert parted([top, *same], 2) == (scale > 1.0)


def test_the_report_draws_it_over_the_root_of_the_kl() -> None:
    steps = {
        step: {"held_out_kl": kl, "held_out_score": score, "held_out_judge": judge}
        for step, (kl, score, judge) in enumerate([(0.0, 0.1, 0.5), (4.0, 0.9, 0.7), (9.0, 1.4, 0.4)], start=1)
    }
    (plot,) = [plot for plot in ppo_plots(steps) if plot.title == "Over-optimisation"]
    assert plot.legend == ("score", "judge")
    assert "square root of the KL" in plot.svg
    assert all(f">{tick}<" in plot.svg for tick in ("0.0", "3.0"))
    assert not [plot for plot in ppo_plots({1: {"score_mean": 1.0}}) if plot.title == "Over-optimisation"]
