"""The plots draw the numbers they were given: read back from the SVG."""

import itertools
import math
import re

import pytest
from charter.evaluation.judge.calibration import calibration_of
from charter.evaluation.report.drawing import Plot
from charter.evaluation.report.plots import _wilson, label_distribution, ppo_plots, reliability
from scipy import stats


def points(plot: Plot, series: int) -> list[tuple[float, float]]:
    """Corners of the line of a series, in SVG coordinates."""
    drawn = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-(\d)\); stroke-width: 1\.8', plot.svg)
    (path,) = [path for path, number in drawn if int(number) == series]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]


def by_title(plots: list[Plot], title: str) -> Plot:
    (plot,) = [plot for plot in plots if plot.title == title]
    return plot


def test_a_line_is_proportional_to_its_metric() -> None:
    values = [3.0, 7.0, 4.0, 5.0, 1.0]
    plots = ppo_plots({step: {"response_tokens_mean": value} for step, value in enumerate(values, start=1)})
    assert [plot.title for plot in plots] == ["Answer length"]
    drawn = points(plots[0], 1)
    assert len(drawn) == len(values)
    steps = [b[0] - a[0] for a, b in itertools.pairwise(drawn)]
    assert steps == pytest.approx([steps[0]] * 4, abs=1e-3)
    # SVG's y points down.
    scale = (drawn[0][1] - drawn[1][1]) / (values[1] - values[0])
    assert scale > 0
    assert [drawn[0][1] - y for _, y in drawn] == pytest.approx([scale * (v - values[0]) for v in values], abs=1e-3)


def test_each_series_is_its_own_metric() -> None:
    plots = ppo_plots({step: {"kl_k1": 1.0 * step, "kl_k3": 2.0 * step, "kl_coefficient": 0.05} for step in (1, 2, 3)})
    kl = by_title(plots, "KL to the start")
    assert kl.legend == ("k1", "k3", "coefficient")
    rise = {series: points(kl, series)[0][1] - points(kl, series)[-1][1] for series in (1, 2, 3)}
    assert rise[2] == pytest.approx(2 * rise[1], rel=1e-4)
    assert rise[3] == pytest.approx(0, abs=1e-6)


def test_lines_on_one_axis_share_its_scale() -> None:
    plots = ppo_plots({step: {"clip_fraction": 0.1 * step, "value_clip_fraction": 0.3 * step} for step in (1, 2)})
    clipped = by_title(plots, "Clipped")
    assert clipped.legend == ("policy ratio", "value")
    first, second = points(clipped, 1), points(clipped, 2)
    assert second[0][1] - second[1][1] == pytest.approx(3 * (first[0][1] - first[1][1]), rel=1e-4)


def test_steps_that_lack_a_metric_are_not_drawn_as_zero() -> None:
    steps = {1: {"explained_variance": 0.2}, 2: {"entropy": 2.0}, 3: {"explained_variance": 0.4}}
    assert len(points(by_title(ppo_plots(steps), "Explained variance"), 1)) == 2


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0, 1e7, math.nan])
def test_odd_values_still_give_plots(value: float) -> None:
    metrics = dict.fromkeys(("score_mean", "score_std", "kl_k1", "kl_k3", "kl_coefficient", "eos_share"), value)
    metrics |= dict.fromkeys(("probe_mismatch_mean", "probe_mismatch_max", "waiting_seconds"), value)
    expected = 0 if math.isnan(value) else 5
    assert len(ppo_plots({1: metrics})) == expected
    assert len(ppo_plots({1: metrics, 2: metrics})) == expected


def test_no_step_gives_no_plot() -> None:
    assert ppo_plots({}) == []


def test_histogram_bars_are_the_counts() -> None:
    labels = [0.01] * 3 + [0.48] * 6 + [1.0] * 2
    plot = label_distribution(labels)
    assert "11 comparisons, 6 of them between 40% and 60%" in plot.caption
    bars = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--series-1\)', plot.svg)
    heights = []
    for bar in bars:
        ys = [float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", bar)]
        heights.append(max(ys) - min(ys))
    assert len(heights) == 20
    unit = max(heights) / 6
    expected = [0] * 20
    expected[0], expected[9], expected[19] = 3, 6, 2
    assert [height / unit for height in heights] == pytest.approx(expected, abs=1e-3)


def test_reliability_shows_a_point_for_each_bin() -> None:
    calibration = calibration_of([0.9, 0.9, 0.6, 0.6], [1.0, 0.0, 1.0, 1.0], list("abcd"), bootstrap_samples=100)
    plot = reliability("judge", "Judge", calibration)
    assert "4 pairs" in plot.caption
    assert f"{calibration.expected_calibration_error:.3f}" in plot.caption
    (points_drawn,) = re.findall(r'<g id="judge-PathCollection_1">(.*?)\n   </g>', plot.svg, re.DOTALL)
    assert points_drawn.count("fill: var(--series-1)") == len(calibration.bins) == 2
    # An interval for each, and no line from bin to bin.
    (intervals,) = re.findall(r'<g id="judge-LineCollection_1">(.*?)\n   </g>', plot.svg, re.DOTALL)
    assert len(re.findall(r"<path", intervals)) == 2
    assert not re.search(r"stroke: var\(--series-1\); stroke-width: 1[;\"]", plot.svg)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 4), (50, 100)])
def test_the_interval_of_a_bin_is_that_of_a_proportion(right: int, count: int) -> None:
    exact = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert _wilson(right / count, count) == pytest.approx((exact.low, exact.high), abs=1e-6)


def lines(plot: Plot, series: int) -> list[int]:
    """Corners of each line of a series."""
    drawn = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-(\d)\); stroke-width: 1\.8', plot.svg)
    return [len(re.findall("[ML]", path)) for path, number in drawn if int(number) == series]


@pytest.mark.parametrize(
    ("title", "metrics", "scaled"),
    [
        ("Reward", ("score_mean", "score_std", "reward_mean"), (1, 2)),
        ("Over-optimisation", ("held_out_score", "held_out_judge", "held_out_kl"), (1,)),
    ],
)
def test_scores_of_two_preference_models_are_two_lines(
    title: str, metrics: tuple[str, ...], scaled: tuple[int, ...]
) -> None:
    """After a refresh the KL may fall again: a line is of one model whatever its place on the axis."""
    kls = {1: 1.0, 2: 4.0, 3: 9.0, 4: 2.0, 5: 5.0}
    steps = {
        step: dict.fromkeys(metrics, 1.0 * step) | {"held_out_kl": kl, "preference_version": 1 + step // 4}
        for step, kl in kls.items()
    }
    plot = by_title(ppo_plots(steps), title)
    for series in scaled:
        assert lines(plot, series) == [3, 2]
    assert ">model 1<" in plot.svg
    assert ">model 2<" in plot.svg
    assert "do not compare across them" in plot.caption
    if title == "Over-optimisation":
        # The judge has one scale.
        assert lines(plot, 2) == [5]
    same = by_title(ppo_plots({step: one | {"preference_version": 1.0} for step, one in steps.items()}), title)
    assert lines(same, 1) == [5]
    assert "model 1" not in same.svg
    assert "compare" not in same.caption
