"""What a run showed, in words: one sentence, and what weakens it."""

from dataclasses import dataclass
from typing import Literal

from charter.runs.results import Evaluation, JudgeCheck, PreferenceFit

# Below this many judged prompts the coverage of intervals was not looked at (tests/benchmarks/coverage.py).
FEW_PROMPTS = 20

Direction = Literal["better", "worse", "open", "none"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a run."""

    # Whether the interval of the win rate lies above 50 %, below it, or includes it; "none" without an evaluation.
    direction: Direction
    sentence: str
    # What the policy was rewarded by; empty without a fitted preference model.
    reward: str
    # Each a sentence that says why the one above is worth less than it seems.
    caveats: tuple[str, ...]


def percent(share: float) -> str:
    """A share of 1 as text: 0.656 -> "65.6%"."""
    return f"{100 * share:.1f}%"


def interval(low: float, high: float) -> str:
    """An interval of shares as text: "48.4% to 81.3%"."""
    return f"{percent(low)} to {percent(high)}"


def verdict(
    evaluation: Evaluation | None, judge: JudgeCheck | None, fit: PreferenceFit | None, *, fake: bool = False
) -> Verdict:
    """Say what the evaluation showed. A win rate whose interval includes 50 % shows no difference.

    ``fit`` is of the preference model that was the reward, None where there was none.

    ``fake``: an engine that stands in for a model took part, so that there is nothing to say.
    """
    if fake:
        return Verdict(
            "none", "No verdict: a fake engine took part, and what it writes or prefers means nothing.", "", ()
        )
    if evaluation is None:
        sentence = "No verdict: the aligned policy was not compared with the policy it started from."
        return Verdict("none", sentence, _reward(fit), (*judge_warnings(judge), *reward_warnings(fit)))
    judged = evaluation.wins + evaluation.ties + evaluation.losses
    caveats = judge_warnings(judge)
    who = "A judge that was not measured" if judge is None else "A weak judge" if caveats else "The judge"
    shown = interval(evaluation.win_rate_low, evaluation.win_rate_high)
    of_judged = f"{percent(evaluation.win_rate)} of {judged} held-out prompts (95% interval {shown})"
    direction: Direction
    if evaluation.win_rate_low > 0.5:
        direction = "better"
        sentence = f"{who} preferred the aligned policy on {of_judged}."
    elif evaluation.win_rate_high < 0.5:
        direction = "worse"
        sentence = f"{who} preferred the aligned policy on only {of_judged}: it got worse."
    else:
        direction = "open"
        sentence = (
            f"{who} preferred the aligned policy on {of_judged}. The interval includes 50%: no difference was shown."
        )
    caveats += reward_warnings(fit)
    if judged < FEW_PROMPTS:
        caveats.append(f"Only {judged} prompts were judged: with so few, the interval itself is uncertain.")
    failed = sum(evaluation.failures.values())
    if failed > judged / 10:
        caveats.append(f"{failed} of {failed + judged} judgements failed and are in no figure.")
    return Verdict(direction, sentence, _reward(fit), tuple(caveats))


def judge_warnings(judge: JudgeCheck | None) -> list[str]:
    """Why the judge's preferences should not be trusted; empty for a judge that beats a coin and the baseline."""
    if judge is None:
        return ["The judge was not measured on labelled pairs, so nobody knows how far its preferences can be trusted."]
    measured = judge.calibration
    warnings = []
    if measured.accuracy_low <= 0.5:
        warnings.append(
            f"The judge cannot be told from a coin: it agrees with {percent(measured.accuracy)} of {measured.pairs} "
            f"labelled pairs, and the interval ({interval(measured.accuracy_low, measured.accuracy_high)}) "
            "reaches down to 50%."
        )
    if measured.accuracy < judge.shorter_is_better_accuracy:
        warnings.append(
            f"The judge is below a trivial baseline: it agrees with {percent(measured.accuracy)} of labelled pairs, "
            f"while always preferring the shorter answer agrees with {percent(judge.shorter_is_better_accuracy)}."
        )
    return warnings


def reward_warnings(fit: PreferenceFit | None) -> list[str]:
    """Why the preference model is a poor reward; empty where it agrees with held-out labels more than a coin."""
    if fit is None or fit.held_out.accuracy_low > 0.5:
        return []
    found = fit.held_out
    return [
        f"The reward cannot be told from a coin: the preference model agrees with {percent(found.accuracy)} of "
        f"{found.pairs} held-out labels, and the interval ({interval(found.accuracy_low, found.accuracy_high)}) "
        "reaches down to 50%."
    ]


def _reward(fit: PreferenceFit | None) -> str:
    """How right and how sure the preference model is on held-out labels, in one sentence."""
    if fit is None:
        return ""
    found = fit.held_out
    # Bins hold the confidence in the preferred answer, so that this is its mean over all pairs.
    sure = sum(entry.count * entry.mean_predicted for entry in found.bins) / found.pairs
    return (
        f"The reward is a model of the labels. On {found.pairs} held-out pairs it agrees with "
        f"{percent(found.accuracy)} of them ({interval(found.accuracy_low, found.accuracy_high)}), and is "
        f"{percent(sure)} sure on average, where 50% is a coin."
    )
