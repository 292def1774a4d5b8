"""The win rate that two models would have if their answers were equally long.

After AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, equation 2), without its terms for the difficulty of a prompt,
which need many models: ``logit P(A is better) = a + b u + c u^3`` with ``u = tanh(d / s)``, where d is the difference
in length and s its standard deviation; the length-controlled win rate is the prediction at d = 0, ``sigmoid(a)``. The
cube is ours: a judge whose log-odds are linear in the length leaves 0.4 points of it in the rate without it and 0.1
with it, and as it is odd it costs no certainty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlog1py, xlogy

from charter.evaluation.figures.rows import Judgement, judged
from charter.evaluation.statistics import (
    Array,
    Estimate,
    NotIdentifiedError,
    damped,
    interval_of,
    numbered,
    prior_weights,
    prompt_weights,
)

# Penalties on b and c, from the weakest: the cost in nats of b = 1 is half of it.
RIDGES = (0.01, 0.1, 1.0, 10.0)
# Fewer prompts on which A, or B, is not the longer tell nothing about equal lengths.
LEAST_PROMPTS = 5
_FOLDS = 5
# The terms behind a of an answer that is longer by one standard deviation.
_LONGER = np.array([0.0, np.tanh(1.0), np.tanh(1.0) ** 3])
# Most steps of Newton's method.
_MOST_STEPS = 100


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """What remains of a win rate without the lengths, and what the lengths do."""

    rate: Estimate
    # What an answer that is longer by one standard deviation of the differences has more in log-odds.
    slope: Estimate
    # What the rate may be in log-odds, 0 = as often as not [draws].
    log_odds: Array
    ridge: float
    # Tokens of the answers that were judged.
    mean_length: float
    mean_length_against: float


@dataclass(frozen=True, slots=True)
class _Samples:
    """Judgements of one prompt with one difference in length, together: both orders of a pair are one sample.

    The fit is that of single judgements, and twice as fast. All have a first axis of samples.
    """

    # Place of the prompt.
    prompts: NDArray[np.intp]
    # 1, u, u^3 [samples, 3].
    terms: Array
    # Mean of P(A is better), and how many judgements it is of.
    probability: Array
    judgements: Array

    @property
    def count(self) -> int:
        """How many prompts there are."""
        return int(self.prompts.max()) + 1

    @property
    def each(self) -> float:
        """Judgements of a prompt, on average."""
        return float(self.judgements.sum()) / self.count


def length_controlled(
    judgements: Sequence[Judgement],
    lengths: Mapping[tuple[str, str, int], int],
    *,
    samples: int,
    seed: int,
    among: Sequence[str] = (),
) -> LengthControlled:
    """The length-controlled win rate of model A in judgements of two models (``rows.between``).

    The ridge is the weakest of ``RIDGES`` whose loss on left-out prompts is within a standard error of the best: a
    stronger one leaves a part of the lengths in the rate. Half a prompt won and half a prompt lost at equal lengths
    keep a finite where everything was won.

    Args:
        judgements: of one judge; failed ones are left out.
        lengths: by prompt, model and seed, in tokens.
        samples: bootstrap draws.
        seed: of the draws.
        among: prompts that the draws weigh, these among them, so that draws of several models go together. Empty =
            those of the judgements.

    Raises:
        NotIdentifiedError: the rate at equal lengths cannot be told: nothing was judged, all answers differ by the same
            length, or on nearly all prompts the same model's answer is the longer; or a length is missing.
    """
    rows = judged(judgements)
    if not rows:
        why = "every judgement failed" if judgements else "nothing was judged"
        raise NotIdentifiedError(f"no length-controlled win rate: {why}")
    if unknown := [
        name for one, _ in rows for name in (one.model_a, one.model_b) if (one.prompt, name, one.seed) not in lengths
    ]:
        raise NotIdentifiedError(f"no length-controlled win rate: nobody counted the tokens of {unknown[0]}'s answers")
    ours = np.array([lengths[one.prompt, one.model_a, one.seed] for one, _ in rows], dtype=np.float64)
    theirs = np.array([lengths[one.prompt, one.model_b, one.seed] for one, _ in rows], dtype=np.float64)
    prompts, _ = numbered([one.prompt for one, _ in rows])
    _check(prompts, ours - theirs, rows[0][0])
    # Of each prompt that was judged, its place among those that are weighed.
    weighed = {prompt: place for place, prompt in enumerate(among or dict.fromkeys(one.prompt for one, _ in rows))}
    places = [weighed[prompt] for prompt in dict.fromkeys(one.prompt for one, _ in rows)]
    found = _samples(prompts, ours - theirs, np.array([probability for _, probability in rows]))
    ridge = _ridge(found, seed)
    fitted = _fit(found, np.ones((1, found.count)), np.full((1, 2), 0.5), ridge)
    unseen = prior_weights(2, samples, seed)
    drawn: list[Array] = []
    for weights in prompt_weights(len(weighed), samples, seed):
        done = sum(map(len, drawn))
        drawn.append(_fit(found, weights[:, places], unseen[done : done + len(weights)], ridge, start=fitted[0]))
    draws = np.concatenate(drawn)
    return LengthControlled(
        rate=_estimate(expit(fitted[0, 0]), expit(draws[:, 0]), found.count),
        slope=_estimate(fitted[0] @ _LONGER, draws @ _LONGER, found.count),
        log_odds=draws[:, 0],
        ridge=ridge,
        mean_length=float(ours.mean()),
        mean_length_against=float(theirs.mean()),
    )


def _estimate(value: float, draws: Array, prompts: int) -> Estimate:
    return Estimate(float(value), *interval_of(draws, float(value)), prompts)


def _check(prompts: NDArray[np.intp], difference: Array, one: Judgement) -> None:
    a, b = one.model_a, one.model_b
    if difference.std() == 0:
        always = f"always differ by {difference[0]:+g} tokens" if difference[0] else "are always equally long"
        raise NotIdentifiedError(
            f"no length-controlled win rate: the answers of {a} and {b} {always}, so that the effect of the length "
            "cannot be told from that of the model"
        )
    count = prompts.max() + 1
    for longer, shorter, not_longer in ((a, b, difference <= 0), (b, a, difference >= 0)):
        against = len(np.unique(prompts[not_longer]))
        if against < LEAST_PROMPTS:
            raise NotIdentifiedError(
                f"no length-controlled win rate: on {count - against} of {count} prompts every answer of {longer} is "
                f"longer than that of {shorter}; what would be preferred at equal lengths was hardly ever seen "
                f"(it needs {LEAST_PROMPTS} other prompts)"
            )


def _samples(prompts: NDArray[np.intp], difference: Array, probability: Array) -> _Samples:
    keys, place = np.unique(np.stack([prompts, difference]), axis=1, return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    u = np.tanh(keys[1] / difference.std())
    terms = np.stack([np.ones_like(u), u, u**3], axis=1)
    return _Samples(keys[0].astype(np.intp), terms, np.bincount(place, weights=probability) / counts, counts)


def _ridge(samples: _Samples, seed: int) -> float:
    """The weakest ridge whose loss on left-out prompts is within one standard error of the least."""
    fold = np.random.default_rng(seed).permutation(samples.count) % _FOLDS
    weights = (fold != np.arange(_FOLDS)[:, None]).astype(np.float64)
    fitted = _fit(
        samples, np.tile(weights, (len(RIDGES), 1)), np.full((len(RIDGES) * _FOLDS, 2), 0.5), np.repeat(RIDGES, _FOLDS)
    ).reshape(len(RIDGES), _FOLDS, -1)
    # The fit without its fold predicts each sample [ridges, samples].
    p = expit(np.einsum("rst,st->rs", fitted[:, fold[samples.prompts]], samples.terms))
    y = samples.probability
    by_sample = samples.judgements * (-xlogy(y, p) - xlog1py(1 - y, -p))
    losses = np.stack([np.bincount(samples.prompts, weights=one) for one in by_sample])
    excess = losses - losses[losses.sum(axis=1).argmin()]
    error = excess.std(axis=1) * np.sqrt(samples.count)
    return RIDGES[int(np.argmax(excess.sum(axis=1) <= error))]


def _fit(samples: _Samples, weights: Array, unseen: Array, ridge: float | Array, start: Array | float = 0.0) -> Array:
    """a, b and c of each draw [draws, 3], by Newton's method on all draws at once.

    ``weights`` [draws, prompts]; ``unseen`` [draws, 2] are those of a prompt won and one lost at equal lengths.
    """
    terms, size = samples.terms, samples.terms.shape[1]
    products = np.einsum("si,sj->sij", terms, terms).reshape(len(terms), -1)
    by_sample = (weights if samples.count == len(terms) else weights[:, samples.prompts]) * samples.judgements
    won = by_sample @ (samples.probability[:, None] * terms)
    won[:, 0] += unseen[:, 0] * samples.each
    at_equal = unseen.sum(axis=1) * samples.each
    penalty = np.multiply.outer(ridge, np.diag([0.0] + [1.0] * (size - 1)))
    found = np.full((len(weights), size), start)
    for _ in range(_MOST_STEPS):
        p = expit(found @ terms.T)
        predicted = by_sample * p
        equal = expit(found[:, 0])
        gradient = won - predicted @ terms - (penalty @ found[..., None])[..., 0]
        gradient[:, 0] -= at_equal * equal
        hessian = ((predicted - predicted * p) @ products).reshape(-1, size, size) + penalty
        hessian[:, 0, 0] += at_equal * equal * (1.0 - equal)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        found += damped(step, np.linalg.norm(terms, axis=1).max())
        if np.abs(step).max() < 1e-7:
            return found
    raise ArithmeticError(f"the fit of a length-controlled win rate found no end in {_MOST_STEPS} steps")
