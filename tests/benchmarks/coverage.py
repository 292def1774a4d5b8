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
from charter.evaluation.figures.best_of_n import ScoredAnswers, accuracy
from charter.evaluation.figures.frontier import Frontier, frontier
from charter.evaluation.figures.length_control import length_controlled
from charter.evaluation.figures.likelihood import ScoredAnswer, nats_per_token
from charter.evaluation.figures.ratings import ELO, Ratings, ratings
from charter.evaluation.figures.refusals import CategorisedAnswer, Reply, refusals
from charter.evaluation.figures.rows import Judgement
from charter.evaluation.figures.self_bleu import pairs_of
from charter.evaluation.figures.win_rate import win_rate
from charter.evaluation.statistics import Estimate, mean_of_pairs
from scipy.special import expit, softmax
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


@dataclass(frozen=True, slots=True)
class Arms:
    """Ways to train, each with policies of several seeds that scatter around its ratings on two axes."""

    seeds: int
    # Standard deviation of the policies' ratings by their seeds in Elo points, of each arm.
    scatter: tuple[float, ...]
    # Of the scatter on one axis with that on the other.
    correlation: float = -0.5

    def frontier(self, rng: np.random.Generator, prompts: int, draws: int) -> tuple[Frontier, np.ndarray]:
        """What is found, and the true ratings of the arms [arms, axes]; hard labels, so many prompts on each axis."""
        count = len(self.scatter)
        truth = np.stack([np.linspace(-50, 150, count), np.linspace(200, 0, count)], axis=1)
        both = np.linalg.cholesky([[1.0, self.correlation], [self.correlation, 1.0]])
        apart = rng.standard_normal((count, self.seeds, 2)) @ both.T * np.array(self.scatter)[:, None, None]
        policies = truth[:, None] + apart
        names = {f"arm {arm}": [f"{arm}-{one}" for one in range(self.seeds)] for arm in range(count)}
        axes: list[Ratings] = []
        for axis in range(2):
            chance = expit(policies[:, :, axis].ravel() / ELO)
            won = uniforms(rng, prompts, len(chance)) < chance
            rows = [
                Judgement(str(prompt), "", "judge", model, "start", 0, float(won[prompt, place]))
                for place, model in enumerate(model for models in names.values() for model in models)
                for prompt in range(prompts)
            ]
            axes.append(ratings(rows, "start", samples=draws, seed=axis))
        across, up = axes
        return frontier(across, up, names, seed=0), truth


def over_seeds(arms: Arms) -> Simulation:
    """The ratings of arms on both axes."""

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        found, truth = arms.frontier(rng, prompts, draws)
        return [(found.rating(found.names[i], axis), float(truth[i, axis])) for i, axis in np.ndindex(truth.shape)]

    return simulate


def regions_over_seeds(arms: Arms) -> Simulation:
    """The ellipses of arms: how far the truth lies from their middle, of the way to their rim."""

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        found, truth = arms.frontier(rng, prompts, draws)
        ways = []
        for name, true in zip(found.names, truth, strict=False):
            ellipse = found.ellipse(name)
            assert ellipse is not None
            x, y = true - [ellipse.across, ellipse.up]
            along, beside = np.cos(ellipse.angle), np.sin(ellipse.angle)
            ways.append(np.hypot((x * along + y * beside) / ellipse.longer, (y * along - x * beside) / ellipse.shorter))
        return [(Estimate(0.0, 0.0, 1.0, prompts), float(way)) for way in ways]

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


def pair_means(style: float) -> Simulation:
    """How alike two answers are: a part that each prompt brings, and ``style`` more where both have the same of two."""
    share = 0.8
    truth = 0.25 + style * (share**2 + (1 - share) ** 2) + 0.1

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        first, second = pairs_of(prompts, rng)
        part, styles = rng.random(prompts), rng.random(prompts) < share
        alike = (part[first] + part[second]) / 4 + style * (styles[first] == styles[second])
        return [(mean_of_pairs(alike + 0.2 * rng.random(len(first)), first, second, bounds=(0.0, 1.0)), truth)]

    return simulate


def token_means(short: float) -> Simulation:
    """Nats per token of answers that have more of them, by ``short``, where they are short; two answers to a prompt."""
    lengths = np.arange(5, 200)
    truth = float((lengths * (1 + short * (lengths < 50))).sum() / lengths.sum())

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        tokens = lengths[(uniforms(rng, prompts, 2) * len(lengths)).astype(int)]
        nats = tokens * (1 + short * (tokens < 50)) * rng.exponential(1, (prompts, 1))
        rows = [
            ScoredAnswer(str(prompt), float(nats[prompt, one]), int(tokens[prompt, one]))
            for prompt in range(prompts)
            for one in range(2)
        ]
        return [(nats_per_token(rows), truth)]

    return simulate


def subset_means(accuracies: tuple[float, ...]) -> Simulation:
    """Best-of-4 accuracy of subsets of unequal size, and its mean over the subsets."""

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        rows = [
            ScoredAnswers(f"{place}", f"{subset}", (float(rng.random() < right),), (0.5, 0.1, 0.2))
            for subset, right in enumerate(accuracies)
            for place in range(prompts * (subset + 1) // len(accuracies))
        ]
        return [(accuracy(rows, samples=draws, seed=0).mean, float(np.mean(accuracies)))]

    return simulate


def reply_shares(certainty: float, kinds: tuple[float, ...]) -> Simulation:
    """Probabilities of four kinds of answers by a judge; ``certainty`` are the log-odds of the true kind, 0 is none."""
    edges = np.cumsum(kinds)[:-1]

    def said(rng: np.random.Generator, prompts: int, each: int) -> np.ndarray:
        kind = np.searchsorted(edges, uniforms(rng, prompts, each))
        noise = rng.standard_normal((prompts, each, 4)) + rng.standard_normal((prompts, 1, 4))
        return np.asarray(softmax(certainty * np.eye(4)[kind] + (0.3 * certainty + 0.03) * noise, axis=-1))

    truth = said(np.random.default_rng(0), 500_000, 2).mean(axis=(0, 1))

    def simulate(rng: np.random.Generator, prompts: int, draws: int) -> list[tuple[Estimate, float]]:
        # Two models with two answers to each prompt; the figures are of the first.
        found = said(rng, prompts, 4)
        rows = [CategorisedAnswer(f"{prompt}", row) for prompt in range(prompts) for row in found[prompt, :2].tolist()]
        rates = refusals(rows, rows, found.reshape(-1, 4).tolist(), samples=draws, seed=0).harmful
        evaded = rates.shares[Reply.DECLINES_WITHOUT]
        return [(rates.declined, float(truth[2:].sum())), (evaded, float(truth[3]))]

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
        for arms in (
            Arms(3, (0.0,) * 4),
            Arms(3, (15.0,) * 4),
            Arms(3, (60.0,) * 4),
            Arms(3, (15.0,) * 2),
            Arms(5, (15.0,) * 4),
            Arms(3, (10.0, 20.0, 30.0, 40.0)),
            Arms(1, (0.0,) * 4),
            Arms(1, (15.0,) * 4),
            Arms(1, (60.0,) * 4),
        ):
            scatter = "/".join(f"{one:g}" for one in arms.scatter)
            truth = f"{arms.seeds} {'seed' if arms.seeds == 1 else 'seeds'}, scatter {scatter}"
            found.append(Scenario("rating over seeds", truth, prompts, over_seeds(arms)))
            found.append(Scenario("ellipse over seeds", truth, prompts, regions_over_seeds(arms)))
        for agreed, share in ((0.6, 0.5), (0.8, 0.5), (0.9, 0.7)):
            found.append(Scenario("kappa", f"agree {agreed:.0%}, yes {share:.0%}", prompts, kappas(agreed, share)))
        for style in (0.0, 0.5):
            found.append(Scenario("self-BLEU", f"style {style:g}", prompts, pair_means(style)))
        for certainty in (0.0, 1.5, 6.0):
            for kinds in ((0.7, 0.1, 0.1, 0.1), (0.2, 0.2, 0.4, 0.2)):
                truth = f"certainty {certainty:g}, declines {kinds[2] + kinds[3]:.0%}"
                found.append(Scenario("refusals", truth, prompts, reply_shares(certainty, kinds)))
        for short in (0.0, 2.0):
            found.append(Scenario("nats per token", f"short ones {short:g} more", prompts, token_means(short)))
        for right in ((0.3, 0.5, 0.7, 0.9), (0.9, 0.95, 0.98, 0.99)):
            truth = "/".join(f"{one:.0%}" for one in right)
            found.append(Scenario("best-of-n, mean of subsets", truth, prompts, subset_means(right)))
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
