"""Which answers of a step are kept, and the figures of their tokens with every algorithm."""

from pathlib import Path

import pytest
import torch
from charter.data.prompts import TaskPrompt
from charter.v1 import run_pb2
from charter.worker.clients.failed import Failed
from charter.worker.reinforcement.algorithms import ALGORITHMS
from charter.worker.reinforcement.algorithms.base import Prepared, Targets
from charter.worker.reinforcement.samples import EXTREMES, choose
from charter.worker.reinforcement.sampling.rollouts import Scored
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.training.batches import Episodes

from tests.support.learners import make_episodes, make_learner

FAILED = Failed("too_long", "more tokens than the model reads")


def scored(*scores: float | Failed, together: int = 1) -> Scored:
    """Answers of which only the scores are looked at, so many to a prompt."""
    prompts: list[TaskPrompt] = []
    return Scored(prompts, [number // together for number in range(len(scores))], [], list(scores), None)


def test_the_ends_of_a_step_are_kept() -> None:
    kept = choose(scored(*(float((7 * number) % 20) for number in range(20))), share=0.0, seed=1, step=1)
    assert not any(one.random for one in kept)
    assert sorted((7 * one.number) % 20 for one in kept) == [*range(EXTREMES), *range(20 - EXTREMES, 20)]
    few = choose(scored(*map(float, range(2 * EXTREMES))), share=0.0, seed=1, step=1)
    assert [one.number for one in few if one.extreme] == list(range(2 * EXTREMES))


def test_whole_groups_are_drawn_with_what_was_left_out_of_them() -> None:
    """Of 10 groups of 4 the drawn ones are whole; rows count the answers that have a score."""
    group: list[float | Failed] = [FAILED, 0.1, 0.2, 0.3]
    answers = scored(*group * 10, together=4)
    kept = choose(answers, share=0.3, seed=1, step=1)
    drawn = [one for one in kept if one.random]
    assert len(drawn) == 12
    assert {one.number // 4 for one in drawn} == {one.number // 4 for one in drawn if one.row is None}
    for one in kept:
        assert one.row == (None if one.number % 4 == 0 else one.number - one.number // 4 - 1)
        assert one.extreme or one.random
    assert [one.number for one in kept] == sorted({one.number for one in kept})
    assert choose(answers, share=0.3, seed=1, step=1) == kept


def test_every_prompt_is_as_likely_as_any_and_seed_and_step_decide() -> None:
    answers = scored(*map(float, range(20)))
    counts = [0] * 20
    for step in range(400):
        drawn = [one.number for one in choose(answers, share=0.05, seed=3, step=step) if one.random]
        assert len(drawn) == 1
        counts[drawn[0]] += 1
    # 20 each; a binomial count is this far off once in 10,000 times.
    assert all(4 <= count <= 40 for count in counts)
    other = [choose(answers, share=0.5, seed=seed, step=step) for seed, step in ((3, 1), (3, 2), (4, 1))]
    assert len({tuple(one.number for one in kept if one.random) for kept in other}) == 3
    assert all(one.random for one in choose(answers, share=1.0, seed=3, step=1))


@pytest.mark.parametrize("algorithm", [run_pb2.Algorithm.Name(number) for number in ALGORITHMS])
def test_figures_are_those_that_the_step_learns_from(tiny_model: Path, algorithm: str) -> None:
    """Log-probs of the policy as it was before the update, and what the update was given."""
    learner = make_learner(tiny_model, algorithm=algorithm, samples_per_prompt=2, learning_rate=1e-2)
    episodes = make_episodes(count=8)
    if algorithm == "ALGORITHM_ONLINE_DPO":
        episodes.scores[:] = torch.tensor([0.9, 0.1] * 4)
    learn(learner, episodes, 0, Controls(0.05))
    given: list[tuple[Prepared, Targets]] = []
    update = learner.update

    def noting(of: Episodes, prepared: Prepared, targets: Targets, *, train_actor: bool) -> dict[str, float]:
        given.append((prepared, targets))
        return update(of, prepared, targets, train_actor=train_actor)

    learner.update = noting  # type: ignore
    figures = learn(learner, episodes, 1, Controls(0.05), [5, 0]).figures
    ((prepared, targets),) = given
    for row, found in zip([5, 0], figures, strict=True):
        tokens = len(episodes.answers[row])
        difference = (prepared.logprobs - prepared.reference_logprobs)[row, :tokens]
        assert difference.abs().max() > 1e-4
        assert list(found.log_ratios) == pytest.approx(difference.tolist())
        expected = [] if algorithm == "ALGORITHM_ONLINE_DPO" else targets.advantages[row, :tokens].tolist()
        assert list(found.advantages) == expected
        values = prepared.values[row, :tokens].tolist() if prepared.values is not None else []
        assert list(found.values) == values
        assert bool(values) == (algorithm == "ALGORITHM_PPO")
