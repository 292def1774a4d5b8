"""The optimiser steps on tiny real models: against plain PPO in one batch, and against what they should achieve."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.inference.preference_model import PreferenceModel
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker import ppo, update
from charter.worker.batches import Episodes, by_tokens, collate, scatter
from charter.worker.errors import RunError
from charter.worker.models import Critic, LanguageModel
from charter.worker.step import learn
from charter.worker.update import Learner, Targets
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

CPU = torch.device("cpu")
TEMPERATURE = 0.8


def ppo_spec(**values: Any) -> run_pb2.PpoSpec:
    return fill_defaults(run_pb2.RunSpec(ppo=run_pb2.PpoSpec(**values))).ppo


def make_learner(model: Path, **values: Any) -> Learner:
    critic = Critic.from_policy(model, CPU)
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    return Learner(
        spec=ppo_spec(**values),
        temperature=TEMPERATURE,
        actor=LanguageModel.load(model, CPU),
        reference=LanguageModel.load(model, CPU),
        critic=critic,
        device=CPU,
    )


def make_episodes(seed: int = 0, count: int = 7) -> Episodes:
    generator = torch.Generator().manual_seed(seed)

    def ids(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most, (), generator=generator))
        return tuple(torch.randint(3, 200, (length,), generator=generator).tolist())

    answers = tuple(ids(1, 9) for _ in range(count))
    return Episodes(
        prompts=tuple(ids(2, 12) for _ in range(count)),
        answers=answers,
        ended=torch.rand(count, generator=generator) < 0.5,
        scores=torch.randn(count, generator=generator),
        sampler_logprobs=-6 * torch.rand(count, max(map(len, answers)), generator=generator),
    )


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 120))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = by_tokens(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or len(group) * longest <= budget


def test_logprobs_are_those_of_the_whole_model(tiny_model: Path) -> None:
    """Each episode alone through the model's own forward pass and head, at the temperature, against the batch."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    episodes = make_episodes()
    batch = collate(episodes, range(7), CPU)
    model = LanguageModel.load(tiny_model, CPU)
    with torch.no_grad():
        flat, entropies = model.logprobs_and_entropies(batch, TEMPERATURE)
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
                ids = torch.tensor([[*episodes.prompts[row], *episodes.answers[row][:token]]])
                score = preference.scores(ids, torch.ones_like(ids)).item()
                assert values[row, token].item() == pytest.approx(score, abs=1e-5)


def test_one_step_equals_plain_ppo_in_one_batch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches, padding and the blockwise head change nothing: the same parameters after the step.

    The other side is written out here with the model's own logits, one whole batch and one AdamW step.
    """
    monkeypatch.setattr(update, "BACKWARD_TOKENS", 30)
    monkeypatch.setattr(update, "FORWARD_TOKENS", 40)
    learner = make_learner(tiny_model, minibatches=1, learning_rate=1e-3, critic_learning_rate=1e-3, kl_coefficient=0.3)
    with torch.no_grad():
        # A policy that has moved away from its reference.
        for parameter in learner.actor.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    episodes = make_episodes()
    actor, critic = copy.deepcopy(learner.actor.model), copy.deepcopy(learner.critic)
    learn(learner, episodes, step=1, kl_coefficient=0.3)

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
    reference = logprobs(learner.reference.model).detach()
    rewards = -0.3 * (old - reference) * mask
    for row, answer in enumerate(episodes.answers):
        rewards[row, len(answer) - 1] += episodes.scores[row] - (0.0 if episodes.ended[row] else 1.0)
    advantages, returns = ppo.generalised_advantages(rewards, old_values, mask, gamma=1.0, gae_lambda=0.95)
    weights = (old - episodes.sampler_logprobs).exp().clamp(max=2.0)
    whitened = ppo.whiten(advantages, mask)
    policy_loss = -(whitened * (new - old).exp() * weights)[mask].mean()
    value_loss = 0.5 * (new_values - returns)[mask].square().mean()
    for module, loss, name in ((actor, policy_loss, "actor"), (critic, spec.value_coefficient * value_loss, "critic")):
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        torch.optim.AdamW(module.parameters(), lr=1e-3 * (1 - 1 / 8), eps=1e-5, weight_decay=0.0).step()
        trained = learner.actor.model if name == "actor" else learner.critic
        for key, parameter in trained.named_parameters():
            expected = dict(module.named_parameters())[key]
            torch.testing.assert_close(parameter, expected, rtol=0, atol=2e-5, msg=f"{name} {key} differs")


def test_the_first_pass_starts_at_ratio_one(tiny_model: Path) -> None:
    """Dropout off and the same temperature everywhere: old and new log-probs are equal before the first step."""
    learner = make_learner(tiny_model, minibatches=1)
    numbers, _ = learn(learner, make_episodes(), step=0, kl_coefficient=0.05)
    assert numbers["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert numbers["clip_fraction"] == 0.0
    assert numbers["kl_k1"] == pytest.approx(0.0, abs=1e-5)
    assert numbers["kl_k3"] == pytest.approx(0.0, abs=1e-5)


def test_warm_up_leaves_the_policy_alone(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, critic_warmup_steps=1)
    actor, critic = copy.deepcopy(learner.actor.state_dict()), copy.deepcopy(learner.critic.state_dict())
    numbers, _ = learn(learner, make_episodes(), step=0, kl_coefficient=0.05)
    assert all(torch.equal(tensor, actor[name]) for name, tensor in learner.actor.state_dict().items())
    assert not all(torch.equal(tensor, critic[name]) for name, tensor in learner.critic.state_dict().items())
    assert "policy_loss" not in numbers
    learn(learner, make_episodes(1), step=1, kl_coefficient=0.05)
    assert not all(torch.equal(tensor, actor[name]) for name, tensor in learner.actor.state_dict().items())


def test_the_critic_is_calibrated_before_the_first_step_only(tiny_model: Path) -> None:
    """Its values then explain the returns no worse than a constant; what was calibrated is what is served on."""
    learner = make_learner(tiny_model, gae_lambda=1.0, critic_learning_rate=1e-12)
    learner.critic.rescale(50.0, 20.0)
    episodes = make_episodes()
    far = learner.prepare(episodes).values
    numbers, _ = learn(learner, episodes, step=0, kl_coefficient=0.05)
    assert -1e-6 <= numbers["explained_variance"] <= 1.0
    assert learner.prepare(episodes).values[episodes.mask].abs().max() < far[episodes.mask].abs().max() / 10
    head = learner.critic.head.weight.clone()
    learn(learner, episodes, step=1, kl_coefficient=0.05)
    torch.testing.assert_close(learner.critic.head.weight, head, rtol=0, atol=1e-9)


def test_learning_rates_fall_linearly(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, steps=4, learning_rate=1e-3, critic_learning_rate=2e-3)
    rates = []
    for step in range(4):
        learner.set_learning_rates(step)
        rates.append((learner.actor_optimizer.param_groups[0]["lr"], learner.critic_optimizer.param_groups[0]["lr"]))
    assert rates == [pytest.approx((1e-3 * share, 2e-3 * share)) for share in (1.0, 0.75, 0.5, 0.25)]


def test_adaptive_coefficient_reaches_the_next_step(tiny_model: Path) -> None:
    _, fixed = learn(make_learner(tiny_model), make_episodes(), step=0, kl_coefficient=0.05)
    assert fixed == 0.05
    _, adapted = learn(make_learner(tiny_model, kl_target=3.0), make_episodes(), step=0, kl_coefficient=0.05)
    assert adapted == pytest.approx(0.05 * 0.98)


def test_a_broken_score_stops_the_step_and_changes_nothing(tiny_model: Path) -> None:
    learner = make_learner(tiny_model)
    before = copy.deepcopy(learner.actor.state_dict())
    episodes = make_episodes()
    episodes.scores[3] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        learn(learner, episodes, step=0, kl_coefficient=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.actor.state_dict().items())


def test_a_head_that_the_fast_path_does_not_know_is_refused(tiny_model: Path) -> None:
    model = LanguageModel.load(tiny_model, CPU)

    class Capped(nn.Module):
        """Caps its logits, as some architectures do."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model.model
            self.base_model = model.model.base_model
            self.get_output_embeddings = model.model.get_output_embeddings

        def forward(self, **inputs: Any) -> Any:
            output = self.inner(**inputs)
            output.logits = 0.5 * torch.tanh(output.logits / 0.5)
            return output

    with pytest.raises(RunError, match="changes its logits"):
        LanguageModel(Capped()).check()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_updates_raise_a_known_reward(tiny_model: Path, sign: float) -> None:
    """Score = tokens of the answer below 130. Their probability rises; with the sign flipped it falls."""
    learner = make_learner(
        tiny_model, steps=40, learning_rate=1e-2, critic_learning_rate=1e-2, kl_coefficient=0.0, missing_eos_penalty=0.0
    )
    prompt, length, wanted = (10, 11, 12), 6, torch.arange(learner.actor.model.config.vocab_size) < 130
    torch.manual_seed(0)

    def next_tokens(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = learner.actor.model(rows).logits[:, -1] / TEMPERATURE
        return logits.softmax(dim=1)

    def sample(count: int) -> Episodes:
        rows = torch.tensor([prompt] * count)
        logprobs = []
        for _ in range(length):
            probabilities = next_tokens(rows)
            token = torch.multinomial(probabilities, 1)
            logprobs.append(probabilities.gather(1, token).log())
            rows = torch.cat([rows, token], dim=1)
        answers = rows[:, len(prompt) :]
        return Episodes(
            prompts=(prompt,) * count,
            answers=tuple(tuple(row) for row in answers.tolist()),
            ended=torch.ones(count, dtype=torch.bool),
            scores=sign * wanted[answers].float().sum(dim=1),
            sampler_logprobs=torch.cat(logprobs, dim=1),
        )

    def probability() -> float:
        return float(next_tokens(torch.tensor([prompt]))[0, wanted].sum())

    start = probability()
    for step in range(10):
        numbers, _ = learn(learner, sample(32), step=step, kl_coefficient=0.0)
        assert numbers["logprob_mismatch_max"] < 1e-4
    assert sign * (probability() - start) > 0.2


def test_targets_are_not_learned_from_padding(tiny_model: Path) -> None:
    """Garbage behind the end of an answer, in every tensor of the step, changes no parameter."""
    after = []
    for garbage in (0.0, 1e3):
        learner = make_learner(tiny_model, minibatches=1)
        episodes = make_episodes()
        mask = episodes.mask
        old = learner.prepare(episodes)
        targets = Targets(*(torch.ones(mask.shape) for _ in range(3)))
        for tensor in (*old, *targets, episodes.sampler_logprobs):
            tensor[~mask] = garbage
        torch.manual_seed(0)
        learner.update(episodes, old, targets, train_actor=True)
        after.append({**learner.actor.state_dict(), **learner.critic.state_dict()})
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())
