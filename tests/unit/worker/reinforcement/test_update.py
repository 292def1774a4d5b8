"""The optimiser steps on tiny real models: against plain PPO in one batch, and against what they should achieve."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.inference.preference_model import PreferenceModel
from charter.worker.errors import RunError
from charter.worker.reinforcement import formulas, update
from charter.worker.reinforcement.algorithms import ppo
from charter.worker.reinforcement.algorithms.base import Targets
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner
from charter.worker.training.batches import Episodes, collate, packs, scatter
from charter.worker.training.models import Critic, LanguageModel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.learners import CPU, TEMPERATURE, critic_of, make_episodes, make_learner


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 120))
def test_packs_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = packs(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[row] for row in group) <= budget for group in groups)
    # Two groups that fit into one would have been one.
    sizes = sorted(sum(lengths[row] for row in group) for group in groups)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


@pytest.mark.parametrize("shared", [0, 10])
def test_logprobs_are_those_of_the_whole_model(tiny_model: Path, shared: int) -> None:
    """Each episode alone through the model's own forward pass and head, at the temperature, against the batch."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    episodes = make_episodes(shared=shared)
    batch = collate(episodes, range(7), CPU)
    assert (batch.input_ids.shape[1] < sum(episodes.lengths)) == bool(shared)
    model = LanguageModel.load(tiny_model, CPU)
    with torch.no_grad():
        flat, entropies, _ = model.logprobs_entropies_and_values(batch, TEMPERATURE)
        got = scatter(flat, episodes.mask)
        got_entropies = scatter(entropies, episodes.mask)
        for row, (prompt, answer) in enumerate(zip(episodes.prompts, episodes.answers, strict=True)):
            logits = plain(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
            probabilities = logits.softmax(dim=1)
            size = len(answer)
            expected = probabilities[torch.arange(size), torch.tensor(answer)].log()
            torch.testing.assert_close(got[row, :size], expected, rtol=0, atol=1e-5)
            expected = -(probabilities * probabilities.log()).sum(dim=1)
            torch.testing.assert_close(got_entropies[row, :size], expected, rtol=0, atol=1e-5)


def test_critic_starts_as_the_preference_model(tiny_model: Path, tmp_path: Path) -> None:
    """The value before a token is the preference model's score of the text so far."""
    preference = PreferenceModel.from_causal_lm(tiny_model, seed=1)
    preference.centre(torch.tensor([0.3, 1.1]))
    preference.save(tmp_path)
    critic = Critic.from_preference_model(tmp_path, CPU)
    episodes = make_episodes(count=2)
    with torch.no_grad():
        values = scatter(critic.values(collate(episodes, [0, 1], CPU)), episodes.mask)
        for row in range(2):
            for token in range(len(episodes.answers[row])):
                score = preference.scores([[*episodes.prompts[row], *episodes.answers[row][:token]]]).item()
                assert values[row, token].item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("shared", [0, 10])
def test_one_step_equals_plain_ppo_in_one_batch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, shared: int) -> None:
    """Micro-batches, shared beginnings and the blockwise head change nothing: the same parameters after the step.

    The other side is written out here with the model's own logits, one whole batch and one AdamW step.
    """
    monkeypatch.setattr(update, "BACKWARD_TOKENS", 30 + 8 * shared)
    monkeypatch.setattr(update, "FORWARD_TOKENS", 40 + 8 * shared)
    learner = make_learner(tiny_model, minibatches=1, learning_rate=1e-3, critic_learning_rate=1e-3, kl_coefficient=0.3)
    with torch.no_grad():
        # A policy that has moved away from its reference.
        for parameter in learner.actor.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    episodes = make_episodes(shared=shared)
    start = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    actor, critic = copy.deepcopy(learner.actor.model), copy.deepcopy(critic_of(learner))
    learn(learner, episodes, step=1, controls=Controls(0.3))

    spec, mask = learner.spec, episodes.mask

    def logprobs(model: Any) -> torch.Tensor:
        rows = []
        for prompt, answer in zip(episodes.prompts, episodes.answers, strict=True):
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
            found = logits.log_softmax(1)[torch.arange(len(answer)), torch.tensor(answer)]
            rows.append(nn.functional.pad(found, (0, mask.shape[1] - len(answer))))
        return torch.stack(rows)

    def values() -> torch.Tensor:
        rows = []
        for prompt, answer in zip(episodes.prompts, episodes.answers, strict=True):
            hidden = critic.backbone(torch.tensor([[*prompt, *answer]])).last_hidden_state
            found = critic.head(hidden)[0, len(prompt) - 1 : -1, 0]
            rows.append(nn.functional.pad(found, (0, mask.shape[1] - len(answer))))
        return torch.stack(rows)

    new, new_values = logprobs(actor), values()
    old, old_values = new.detach(), new_values.detach()
    reference = logprobs(start).detach()
    rewards = -0.3 * (old - reference) * mask
    for row, answer in enumerate(episodes.answers):
        rewards[row, len(answer) - 1] += episodes.scores[row] - (0.0 if episodes.ended[row] else 1.0)
    advantages, returns = ppo.generalised_advantages(rewards, old_values, mask, gamma=1.0, gae_lambda=0.95)
    weights = (old - episodes.sampler_logprobs).exp().clamp(max=2.0)
    whitened = formulas.whiten(advantages, mask)
    policy_loss = -(whitened * (new - old).exp() * weights)[mask].mean()
    value_loss = 0.5 * (new_values - returns)[mask].square().mean()
    for module, loss, name in ((actor, policy_loss, "actor"), (critic, spec.value_coefficient * value_loss, "critic")):
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        torch.optim.AdamW(module.parameters(), lr=1e-3 * (1 - 1 / 8), eps=1e-5, weight_decay=0.0).step()
        trained = learner.actor.model if name == "actor" else critic_of(learner)
        for key, parameter in trained.named_parameters():
            expected = dict(module.named_parameters())[key]
            torch.testing.assert_close(parameter, expected, rtol=0, atol=2e-5, msg=f"{name} {key} differs")


def test_a_shared_trunk_learns_from_both_losses_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against both losses of one model, written out here in one whole batch, and one AdamW step with two rates."""
    monkeypatch.setattr(update, "BACKWARD_TOKENS", 30)
    learner = make_learner(
        tiny_model, shared_trunk=True, minibatches=1, learning_rate=1e-3, critic_learning_rate=2e-3, kl_coefficient=0.3
    )
    assert learner.critic is None
    head = learner.actor.value_head
    assert head is not None
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(4))
    episodes = make_episodes()
    model, value_head = copy.deepcopy(learner.actor.model), copy.deepcopy(head)
    numbers, _, _ = learn(learner, episodes, step=1, controls=Controls(0.3))

    mask, spec = episodes.mask, learner.spec
    new, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for row, (prompt, answer) in enumerate(zip(episodes.prompts, episodes.answers, strict=True)):
        output = model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        chosen = (output.logits[0, places] / TEMPERATURE).log_softmax(1)[
            torch.arange(len(answer)), torch.tensor(answer)
        ]
        new[row, : len(answer)] = chosen
        values[row, : len(answer)] = value_head(output.hidden_states[-1][0, places]).squeeze(-1)
    old, old_values = new.detach(), values.detach()
    # The policy is still its reference: no KL.
    rewards = torch.zeros(mask.shape)
    for row, answer in enumerate(episodes.answers):
        rewards[row, len(answer) - 1] += episodes.scores[row] - (0.0 if episodes.ended[row] else 1.0)
    advantages, returns = ppo.generalised_advantages(rewards, old_values, mask, gamma=1.0, gae_lambda=0.95)
    weights = (old - episodes.sampler_logprobs).exp().clamp(max=2.0)
    policy_loss = -(formulas.whiten(advantages, mask) * (new - old).exp() * weights)[mask].mean()
    value_loss = 0.5 * (values - returns)[mask].square().mean()
    torch.autograd.backward(policy_loss + spec.value_coefficient * value_loss)
    nn.utils.clip_grad_norm_([*model.parameters(), *value_head.parameters()], 1.0)
    share = 1 - 1 / 8
    groups: list[dict[str, Any]] = [
        {"params": [*model.parameters()], "lr": 1e-3 * share},
        {"params": [*value_head.parameters()]},
    ]
    torch.optim.AdamW(groups, lr=2e-3 * share, eps=1e-5, weight_decay=0.0).step()
    assert numbers["value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    assert numbers["policy_loss"] == pytest.approx(policy_loss.item(), rel=1e-4, abs=1e-5)
    for got, expected in ((learner.actor.model, model), (head, value_head)):
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(got.get_parameter(name), parameter, rtol=0, atol=2e-5, msg=f"{name} differs")


def test_the_first_pass_starts_at_ratio_one(tiny_model: Path) -> None:
    """Dropout off and the same temperature everywhere: old and new log-probs are equal before the first step."""
    learner = make_learner(tiny_model, minibatches=1)
    numbers, _, _ = learn(learner, make_episodes(), step=0, controls=Controls(0.05))
    assert numbers["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert numbers["clip_fraction"] == 0.0
    assert numbers["kl_k1"] == pytest.approx(0.0, abs=1e-5)
    assert numbers["kl_k3"] == pytest.approx(0.0, abs=1e-5)


def test_warm_up_leaves_the_policy_alone(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, critic_warmup_steps=1)
    actor, critic = copy.deepcopy(learner.actor.state_dict()), copy.deepcopy(critic_of(learner).state_dict())
    numbers, _, _ = learn(learner, make_episodes(), step=0, controls=Controls(0.05))
    assert all(torch.equal(tensor, actor[name]) for name, tensor in learner.actor.state_dict().items())
    assert not all(torch.equal(tensor, critic[name]) for name, tensor in critic_of(learner).state_dict().items())
    assert "policy_loss" not in numbers
    learn(learner, make_episodes(1), step=1, controls=Controls(0.05))
    assert not all(torch.equal(tensor, actor[name]) for name, tensor in learner.actor.state_dict().items())


def values_of(learner: Learner, episodes: Episodes) -> torch.Tensor:
    values = learner.prepare(episodes).values
    assert values is not None
    return values[episodes.mask]


def test_the_critic_is_calibrated_before_the_first_step_only(tiny_model: Path) -> None:
    """Its values then explain the returns no worse than a constant; what was calibrated is what is served on."""
    learner = make_learner(tiny_model, gae_lambda=1.0, critic_learning_rate=1e-12)
    critic_of(learner).head.rescale(50.0, 20.0)
    episodes = make_episodes()
    far = values_of(learner, episodes)
    numbers, _, _ = learn(learner, episodes, step=0, controls=Controls(0.05))
    assert -1e-6 <= numbers["explained_variance"] <= 1.0
    assert values_of(learner, episodes).abs().max() < far.abs().max() / 10
    head = critic_of(learner).head.weight.clone()
    learn(learner, episodes, step=1, controls=Controls(0.05))
    torch.testing.assert_close(critic_of(learner).head.weight, head, rtol=0, atol=1e-9)


def test_learning_rates_fall_linearly(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, steps=4, learning_rate=1e-3, critic_learning_rate=2e-3)
    rates = []
    assert learner.critic_optimizer is not None
    for step in range(4):
        learner.set_learning_rates(step)
        rates.append((learner.actor_optimizer.param_groups[0]["lr"], learner.critic_optimizer.param_groups[0]["lr"]))
    assert rates == [pytest.approx((1e-3 * share, 2e-3 * share)) for share in (1.0, 0.75, 0.5, 0.25)]


def test_adaptive_coefficient_reaches_the_next_step(tiny_model: Path) -> None:
    _, fixed, _ = learn(make_learner(tiny_model), make_episodes(), step=0, controls=Controls(0.05))
    assert fixed.kl_coefficient == 0.05
    _, adapted, _ = learn(make_learner(tiny_model, kl_target=3.0), make_episodes(), step=0, controls=Controls(0.05))
    assert adapted.kl_coefficient == pytest.approx(0.05 * 0.98)


def test_a_broken_score_stops_the_step_and_changes_nothing(tiny_model: Path) -> None:
    learner = make_learner(tiny_model)
    before = copy.deepcopy(learner.actor.state_dict())
    episodes = make_episodes()
    episodes.scores[3] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        learn(learner, episodes, step=0, controls=Controls(0.05))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.actor.state_dict().items())


def test_bfloat16_changes_little_and_keeps_the_weights(tiny_model: Path) -> None:
    """The same step with rounded matrix products: other numbers, close ones, and float32 weights."""
    prepared = {}
    for precision in ("float32", "bfloat16"):
        learner = make_learner(tiny_model, minibatches=1, precision=precision)
        prepared[precision] = learner.prepare(make_episodes())
        learn(learner, make_episodes(), step=1, controls=Controls(0.05))
        assert {parameter.dtype for parameter in learner.actor.parameters()} == {torch.float32}
    for rounded, exact in zip(prepared["bfloat16"], prepared["float32"], strict=True):
        assert rounded is not None
        assert exact is not None
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.02 * exact.abs().max()


def test_gradient_checkpointing_keeps_less_and_changes_nothing(tiny_model: Path) -> None:
    after, kept = [], []
    for checkpointing in (False, True):
        learner = make_learner(tiny_model, minibatches=1, gradient_checkpointing=checkpointing)
        size = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            learner.actor.logprobs(collate(make_episodes(), range(7), CPU), TEMPERATURE)
        kept.append(size)
        torch.manual_seed(0)
        learn(learner, make_episodes(), step=1, controls=Controls(0.05))
        after.append({**learner.actor.state_dict(), **critic_of(learner).state_dict()})
    assert kept[1] < 0.7 * kept[0]
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())


def test_targets_are_not_learned_from_padding(tiny_model: Path) -> None:
    """Garbage behind the end of an answer, in every tensor of the step, changes no parameter."""
    after = []
    for garbage in (0.0, 1e3):
        learner = make_learner(tiny_model, minibatches=1)
        episodes = make_episodes()
        mask = episodes.mask
        old = learner.prepare(episodes)
        advantages, weights, values, returns = (torch.ones(mask.shape) for _ in range(4))
        targets = Targets(advantages, weights, values=values, returns=returns)
        for tensor in (*old, *targets[:2], values, returns, episodes.sampler_logprobs):
            assert tensor is not None
            tensor[~mask] = garbage
        torch.manual_seed(0)
        learner.update(episodes, old, targets, train_actor=True)
        after.append({**learner.actor.state_dict(), **critic_of(learner).state_dict()})
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())
