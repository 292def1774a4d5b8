"""The plots of the report."""

import math
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from charter.evaluation.report.drawing import INK, SERIES, Plot, plot_series, svg_of
from charter.runs.results import Calibration, PreferenceFit

Steps = dict[int, dict[str, float]]

# Said where there is more than one line.
_SCALES = " The preference model was refreshed: each has a line and a scale of its own; do not compare across them."


def ppo_plots(steps: Steps) -> list[Plot]:
    """One plot for each side of PPO's health. Plots whose metrics no step reported are left out."""
    steps = {step: {name: v for name, v in metrics.items() if math.isfinite(v)} for step, metrics in steps.items()}
    plots = [
        _reward(steps),
        _kl(steps),
        _over_optimisation(steps),
        _lines(
            steps,
            "Answer length",
            {"response_tokens_mean": "tokens"},
            "Mean tokens of an answer. A reward that grows with length alone is no alignment.",
            from_zero=True,
        ),
        _lines(
            steps,
            "Answers that end",
            {"eos_share": "share"},
            "Share of answers that end by themselves within the token limit.",
            share=True,
        ),
        _lines(
            steps,
            "Clipped",
            {"clip_fraction": "policy ratio", "value_clip_fraction": "value"},
            "Share of tokens whose update was clipped. Above about 30% the steps are too large.",
            from_zero=True,
            as_percent=True,
        ),
        _lines(
            steps,
            "Explained variance",
            {"explained_variance": "explained variance"},
            "How much of the returns the critic predicts: 1 is all, 0 no better than their mean.",
            line_at=0,
        ),
        _lines(
            steps,
            "Sampler against trainer",
            {"probe_mismatch_mean": "mean", "probe_mismatch_max": "largest"},
            "Difference of the log-probabilities of the same tokens by the same weights, in nats; the policy's engine "
            "against the trainer.",
            logarithmic=True,
        ),
        _lines(
            steps,
            "Idle",
            {"worker_idle_share": "worker", "policy_idle_share": "policy"},
            "Share of each step in which the trainer's device computed nothing, and in which no answer was sampled.",
            share=True,
        ),
        _lines(
            steps,
            "Entropy",
            {"entropy": "nats per token"},
            "Of the policy's next-token distribution. A fall towards 0 is a collapse.",
            from_zero=True,
        ),
        _step_seconds(steps),
    ]
    return [plot for plot in plots if plot is not None]


def label_distribution(labels: Sequence[float]) -> Plot:
    """Histogram of the soft labels P(A is better)."""

    def draw(axes: Axes) -> None:
        axes.hist(labels, bins=[i / 20 for i in range(21)], color=SERIES[0], alpha=0.85, rwidth=0.92)
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xlim(0, 1)
        axes.set_xlabel("P(answer A is better)")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(visible=False, axis="x")

    undecided = sum(0.4 <= label <= 0.6 for label in labels)
    caption = f"{len(labels)} comparisons, {undecided} of them between 40% and 60%: there the judge does not decide."
    return Plot("Labels", svg_of("labels", "Histogram of soft labels", draw), caption)


def reliability(name: str, title: str, calibration: Calibration) -> Plot:
    """How often a preference is right against how sure it is; the area of a point is its share of the pairs.

    Each bin has its own 95 % interval, as if its pairs were independent (Wilson 1927): a bin of one pair says little.
    """

    def draw(axes: Axes) -> None:
        bins = [one for one in calibration.bins if one.count > 0]
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        sizes = [12 + 500 * one.count / calibration.pairs for one in bins]
        predicted = [one.mean_predicted for one in bins]
        observed = [one.mean_observed for one in bins]
        limits = [_wilson(one.mean_observed, one.count) for one in bins]
        axes.vlines(predicted, *zip(*limits, strict=True), color=SERIES[0], linewidth=1.4, alpha=0.7)
        axes.scatter(predicted, observed, s=sizes, color=SERIES[0], alpha=0.6, linewidths=0, clip_on=False)
        axes.set(xlim=(0.48, 1.02), ylim=(-0.04, 1.04), xlabel="sure of its preference", ylabel="right")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))

    caption = (
        f"On the dashed line, preferences held with 70% are right 70% of the time; lines are 95% intervals of a bin. "
        f"{calibration.pairs} pairs; "
        f"expected calibration error {calibration.expected_calibration_error:.3f}, Brier score {calibration.brier:.3f}."
    )
    return Plot(title, svg_of(name, f"{title}: observed against predicted", draw), caption)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen in ``count`` independent trials (Wilson 1927)."""
    z2 = 1.959964**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return middle - half, middle + half


def fit_losses(fit: PreferenceFit) -> Plot:
    """Training loss of each step, and the held-out loss where it was measured."""

    def draw(axes: Axes) -> None:
        plot_series(axes, 0, [one.step for one in fit.history], [one.train_loss for one in fit.history])
        measured = [(one.step, one.held_out_loss) for one in fit.history if one.held_out_loss is not None]
        plot_series(axes, 1, [step for step, _ in measured], [loss for _, loss in measured])
        axes.axhline(0.693147, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    caption = "Cross-entropy against the soft labels, in nats. The dashed line is log 2: a model that knows nothing."
    svg = svg_of("fit-losses", "Losses of the preference model by step", draw)
    return Plot("Preference model: loss", svg, caption, ("training", "held out"))


def _reward(steps: Steps) -> Plot | None:
    if not any("score_mean" in metrics for metrics in steps.values()):
        return None

    def draw(axes: Axes) -> None:
        for version, part in scales.items():
            x, score = _column(part, "score_mean")
            deviation = dict(zip(*_column(part, "score_std"), strict=True))
            low = [s - deviation.get(step, 0) for step, s in zip(x, score, strict=True)]
            high = [s + deviation.get(step, 0) for step, s in zip(x, score, strict=True)]
            axes.fill_between(x, low, high, color=SERIES[0], alpha=0.15, linewidth=0)
            plot_series(axes, 0, x, score)
            plot_series(axes, 1, *_column(part, "reward_mean"))
            _name_scale(axes, scales, version, x[0], score[0])
        _step_axis(axes)

    scales = _by_scale({step: metrics for step, metrics in steps.items() if "score_mean" in metrics})
    caption = (
        "Preference-model score of the sampled answers (band: one standard deviation), and the reward: the score "
        f"less the penalties for KL and for a missing end.{_SCALES if len(scales) > 1 else ''}"
    )
    return Plot("Reward", svg_of("reward", "Score and reward by RL step", draw), caption, ("score", "reward"))


def _kl(steps: Steps) -> Plot | None:
    if not any("kl_k1" in metrics for metrics in steps.values()):
        return None

    def draw(upper: Axes, lower: Axes) -> None:
        plot_series(upper, 0, *_column(steps, "kl_k1"))
        plot_series(upper, 1, *_column(steps, "kl_k3"))
        upper.tick_params(labelbottom=False)
        plot_series(lower, 2, *_column(steps, "kl_coefficient"))
        lower.set_ylim(0, 1.5 * max(_column(steps, "kl_coefficient")[1], default=1) or 1)
        lower.yaxis.set_major_locator(MaxNLocator(2))
        _step_axis(lower)

    caption = (
        "KL of an answer to the starting policy, in nats: k1 is in the reward, k3 is never negative. Below, the "
        "coefficient that weighs it."
    )
    svg = svg_of("kl", "KL divergence and its coefficient by RL step", draw, heights=(5, 2))
    return Plot("KL to the start", svg, caption, ("k1", "k3", "coefficient"))


def _over_optimisation(steps: Steps) -> Plot | None:
    measured = {
        step: {"distance": math.sqrt(max(metrics["held_out_kl"], 0.0)), **metrics}
        for step, metrics in steps.items()
        if {"held_out_kl", "held_out_score", "held_out_judge"} <= set(metrics)
    }
    if not measured:
        return None
    scales = _by_scale(dict(sorted(measured.items(), key=lambda one: one[1]["distance"])))
    judged = sorted((one["distance"], one["held_out_judge"]) for one in measured.values())

    def draw(upper: Axes, lower: Axes) -> None:
        for version, part in scales.items():
            distance, score = _column(part, "distance")[1], _column(part, "held_out_score")[1]
            plot_series(upper, 0, distance, score)
            _name_scale(upper, scales, version, distance[0], score[0])
        upper.tick_params(labelbottom=False)
        plot_series(lower, 1, *zip(*judged, strict=True))
        lower.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        lower.yaxis.set_major_formatter(PercentFormatter(1))
        lower.set_xlabel("square root of the KL to the start, nats per answer")

    caption = (
        "On held-out prompts, against how far the policy has moved: above, the score that training raises; below, how "
        "likely the judge prefers its answer to the starting policy's. Where they part, the policy exploits its "
        f"reward.{_SCALES if len(scales) > 1 else ''}"
    )
    svg = svg_of("over-optimisation", "Held-out score and judge's preference over KL", draw, heights=(1, 1))
    return Plot("Over-optimisation", svg, caption, ("score", "judge"))


def _step_seconds(steps: Steps) -> Plot | None:
    parts = {
        "waiting_seconds": "waiting for answers",
        "scoring_seconds": "scoring",
        "update_seconds": "update",
        "weight_sync_seconds": "weights",
    }
    if not any(part in metrics for metrics in steps.values() for part in parts):
        return None

    def draw(axes: Axes) -> None:
        x = list(steps)
        floor = [0.0] * len(x)
        for colour, part in zip(SERIES, parts, strict=False):
            height = [metrics.get(part, 0.0) for metrics in steps.values()]
            axes.bar(x, height, bottom=floor, width=0.75, color=colour, linewidth=0)
            floor = [a + b for a, b in zip(floor, height, strict=True)]
        axes.grid(visible=False, axis="x")
        _step_axis(axes)

    caption = "Seconds of each step, by what they went into."
    svg = svg_of("step-seconds", "Seconds by RL step", draw)
    return Plot("Time of a step", svg, caption, tuple(parts.values()), filled=True)


def _lines(
    steps: Steps,
    title: str,
    series: dict[str, str],
    caption: str,
    *,
    from_zero: bool = False,
    share: bool = False,
    as_percent: bool = False,
    line_at: float | None = None,
    logarithmic: bool = False,
) -> Plot | None:
    """Lines of metrics over the steps; None when no step has any of them."""
    columns = [_column(steps, metric) for metric in series]
    if not any(x for x, _ in columns):
        return None

    def draw(axes: Axes) -> None:
        for index, (x, y) in enumerate(columns):
            plot_series(axes, index, x, y)
        if from_zero:
            axes.set_ylim(0, 1.1 * max(value for _, y in columns for value in y) or 1)
        if share:
            axes.set_ylim(-0.03, 1.03)
        if share or as_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if line_at is not None:
            axes.axhline(line_at, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        values = [value for _, y in columns for value in y]
        if logarithmic and min(values) > 0:
            axes.set_yscale("log")
            axes.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.01)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        _step_axis(axes)

    name = re.sub(r"\W+", "-", title.lower())
    legend = tuple(series.values()) if len(series) > 1 else ()
    return Plot(title, svg_of(name, f"{title} by RL step", draw), caption, legend)


def _by_scale(steps: Steps) -> dict[int, Steps]:
    """The steps by version of the preference model that scored them, 0 where none is named, each in its order."""
    parts: dict[int, Steps] = {}
    for step, metrics in steps.items():
        parts.setdefault(int(metrics.get("preference_version", 0)), {})[step] = metrics
    return dict(sorted(parts.items()))


def _name_scale(axes: Axes, scales: dict[int, Steps], version: int, x: float, y: float) -> None:
    """Say of which preference model the line is that begins here, where there are several."""
    if len(scales) > 1:
        axes.annotate(f"model {version}", (x, y), xytext=(3, 6), textcoords="offset points", fontsize=8)


def _column(steps: Steps, metric: str) -> tuple[list[int], list[float]]:
    """The steps that reported a metric, and its values."""
    found = {step: metrics[metric] for step, metrics in steps.items() if metric in metrics}
    return list(found), list(found.values())


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("RL step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
