"""How often 95 % intervals hold the truth, by simulation: `python -m tests.benchmarks.coverage`.

Everything that is judged of one prompt goes together (a normal copula with correlation 0.5 between the judgements of a
prompt), and the marginal probabilities are exact, so that the truth of each figure is known. An interval that took
judgements for independent would hold it far too seldom.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from charter.evaluation.figures.agreement import kappa_estimate
from charter.evaluation.figures.length_control import length_controlled
from charter.evaluation.figures.ratings import ELO, ratings
from charter.evaluation.figures.rows import Judgement
from charter.evaluation.figures.win_rate import win_rate
from charter.evaluation.statistics import Estimate
from scipy.special import expit
from scipy.stats import norm

_CORRELATION = 0.5
# Both orders of a pair.
_ORDERS = 2

Simulation = Callable[[np.random.Generator, int, int], list[tuple[Estimate, float]]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated: a figure with numbers that are true, on so many prompts."""

    figure: str
    truth: str
    prompts: int
    simulate: Simulation

    def coverage(self, replications: int, draws: int, seed: int) -> float:
        """The share of intervals that hold the truth."""
        held = []
        for replication in range(replications):
            rng = np.random.default_rng([seed, replication])
            held += [one.low <= truth <= one.high for one, truth in self.simulate(rng, self.prompts, draws)]
        return sum(held) / len(held)


def uniforms(rng: np.random.Generator, prompts: int, each: int) -> np.ndarray:
    """Uniform numbers [prompts, each] that are correlated within a prompt."""
    shared = np.sqrt(_CORRELATION) * rng.standard_normal((prompts, 1))
    return np.asarray(norm.cdf(shared + np.sqrt(1 - _CORRELATION) * rng.standard_normal((prompts, each))))


def win_rates(probability: float) -> Simulation:
    """Hard labels, of which the share of wins is known."""

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        # A prompt has one to three seeds, in both orders: the prompts are of unequal size.
        seeds = rng.integers(1, 4, prompts)
        won = uniforms(rng, prompts, 3 * _ORDERS) < probability
        taken = np.arange(3 * _ORDERS) < (seeds * _ORDERS)[:, None]
        groups = np.repeat(np.arange(prompts), seeds * _ORDERS).tolist()
        found = win_rate(won[taken].astype(float).tolist(), groups, samples=draws, seed=0)
        return [(found.win_rate, probability)]

    return simulate


def soft_win_rates(probability: float, concentration: float = 3.0) -> Simulation:
    """Soft labels with a Beta distribution."""
    from scipy.stats import beta

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        spread = (probability * concentration, (1 - probability) * concentration)
        soft = beta.ppf(uniforms(rng, prompts, _ORDERS), *spread)
        groups = np.repeat(np.arange(prompts), _ORDERS).tolist()
        found = win_rate(soft.ravel().tolist(), groups, samples=draws, seed=0)
        return [(found.mean_probability, probability)]

    return simulate


def length_controlled_rates(at_equal: float, slope: float, longer: float) -> Simulation:
    """Hard labels that depend on the length; A is longer by so many standard deviations."""

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        difference = np.round(100 * rng.standard_normal(prompts) + 100 * longer).astype(int)
        p = expit(at_equal + slope * np.tanh(difference / 100))
        won = uniforms(rng, prompts, _ORDERS) < p[:, None]
        judgements = [
            Judgement(str(prompt), "", "judge", "a", "b", 0, float(won[prompt, order]), order == 0)
            for prompt in range(prompts)
            for order in range(_ORDERS)
        ]
        lengths = {(str(prompt), "a", 0): 500 + int(difference[prompt]) for prompt in range(prompts)}
        lengths |= {(str(prompt), "b", 0): 500 for prompt in range(prompts)}
        found = length_controlled(judgements, lengths, samples=draws, seed=0)
        return [(found.rate, float(expit(at_equal)))]

    return simulate


def model_ratings(elo: tuple[float, ...]) -> Simulation:
    """Hard labels of all pairs of models on each prompt; every rating but the start's counts."""
    truth = np.array(elo) / ELO
    names = [f"model {place}" for place in range(len(elo))]
    pairs = list(combinations(range(len(elo)), 2))

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        u = uniforms(rng, prompts, len(pairs) * _ORDERS).reshape(prompts, len(pairs), _ORDERS)
        judgements = [
            Judgement(str(prompt), "", "judge", names[i], names[j], 0, float(one < expit(truth[i] - truth[j])))
            for prompt in range(prompts)
            for place, (i, j) in enumerate(pairs)
            for one in u[prompt, place]
        ]
        found = ratings(judgements, names[0], samples=draws, seed=0)
        return [(found.rating(name), one) for name, one in zip(names[1:], elo[1:], strict=True)]

    return simulate


def kappas(agreed: float, share: float) -> Simulation:
    """Two people who say yes with this share each, and agree on so many items; three items to a prompt."""
    apart = (1 - agreed) / 2
    cells = np.array([share - apart, apart, apart, 1 - share - apart])
    chance = share**2 + (1 - share) ** 2
    truth = (agreed - chance) / (1 - chance)

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        said = np.searchsorted(np.cumsum(cells)[:-1], uniforms(rng, prompts, 3).ravel())
        labels = [(int(one) // 2, int(one) % 2) for one in said]
        groups = np.repeat(np.arange(prompts), 3).tolist()
        return [(kappa_estimate(labels, groups, samples=draws, seed=0), truth)]

    return simulate


def scenarios() -> list[Scenario]:
    """All that is simulated."""
    found = []
    for prompts in (50, 200):
        found += [Scenario("win rate", f"{p:.0%}", prompts, win_rates(p)) for p in (0.5, 0.7, 0.9)]
        found += [Scenario("soft win rate", f"{p:.0%}", prompts, soft_win_rates(p)) for p in (0.5, 0.7, 0.9)]
    for prompts in (100, 400):
        for a, b, longer in ((0.0, 0.0, 0.5), (0.0, 1.5, 0.5), (0.8, 1.5, 0.5), (0.0, 3.0, 1.0)):
            truth = f"{expit(a):.0%}, slope {b:g}, longer by {longer:g} sd"
            found.append(Scenario("length-controlled", truth, prompts, length_controlled_rates(a, b, longer)))
    for prompts in (50, 200):
        for elo in ((0.0, 35.0, 100.0, -50.0), (0.0, 300.0, 150.0, 400.0)):
            found.append(Scenario("ratings", "/".join(f"{one:g}" for one in elo), prompts, model_ratings(elo)))
        for agreed, share in ((0.6, 0.5), (0.8, 0.5), (0.9, 0.7)):
            found.append(Scenario("kappa", f"agree {agreed:.0%}, yes {share:.0%}", prompts, kappas(agreed, share)))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="", help="only this figure")
    options = parser.parse_args()
    print("| figure | truth | prompts | intervals that hold it |\n| --- | --- | ---: | ---: |")  # noqa: T201
    for one in [one for one in scenarios() if options.figure in one.figure]:
        share = one.coverage(options.replications, options.draws, options.seed)
        print(f"| {one.figure} | {one.truth} | {one.prompts} | {share:.1%} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
