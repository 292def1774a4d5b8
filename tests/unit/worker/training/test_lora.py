"""LoRA on tiny real models: the frozen model is untouched and is the reference; merged, it is an ordinary model."""

from pathlib import Path

import pytest
import torch
from charter.v1 import run_pb2
from charter.weights.adapter import merge_adapter
from charter.worker.errors import RunError
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.training.architecture import check_architectures
from charter.worker.training.batches import collate
from charter.worker.training.lora import (
    LoraLinear,
    adapter_tensors,
    add_lora,
    frozen_tensors,
    lora_off,
    merge_lora,
    merged_tensors,
)
from charter.worker.training.models import LanguageModel, named_tensors
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig

from tests.support.architectures import make_architecture
from tests.support.learners import CPU, TEMPERATURE, make_episodes, make_learner


def test_the_layer_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 7)
    layer = LoraLinear(base, rank=3, seed=1)
    states = torch.randn(4, 5)
    assert torch.equal(layer(states), base(states))
    nn.init.normal_(layer.up)
    expected = states @ base.weight.T + base.bias + 2.0 * (states @ layer.down.T @ layer.up.T)
    torch.testing.assert_close(layer(states), expected)
    torch.testing.assert_close(states @ layer.merged().T + base.bias, expected)


def test_only_the_adapters_learn_and_the_frozen_model_is_the_reference(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model, lora_rank=2, minibatches=1, learning_rate=1e-2)
    start = load_file(tiny_model / "model.safetensors")
    batch = collate(make_episodes(), range(7), CPU)
    plain = LanguageModel.load(tiny_model, CPU)
    before = plain.logprobs(batch, TEMPERATURE)
    # New adapters change nothing.
    numbers, _, _ = learn(learner, make_episodes(), step=1, controls=Controls(0.05))
    assert numbers["kl_k3"] == 0.0
    numbers, _, _ = learn(learner, make_episodes(1), step=2, controls=Controls(0.05))
    assert numbers["kl_k3"] > 0
    adapters = named_adapters(learner.actor.model)
    assert len(adapters) == 2 * 7
    assert all(adapter.up.abs().max() > 0 for _, adapter in adapters)
    assert all(torch.equal(one.base.weight, start[f"{name}.weight"]) for name, one in adapters)
    after = learner.actor.logprobs(batch, TEMPERATURE)
    assert not torch.allclose(after, before, atol=1e-3)
    with lora_off(learner.actor):
        assert torch.equal(learner.actor.logprobs(batch, TEMPERATURE), before)

    # What a service makes of the adapter and the frozen weights.
    tensors = frozen_tensors(learner.actor.model, named_tensors(learner.actor.model))
    assert all(torch.equal(tensor, start[name]) for name, tensor in tensors.items())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "base.safetensors")
    save_file(adapter_tensors(learner.actor.model), tmp_path / "adapter.safetensors")
    with (tmp_path / "base.safetensors").open("rb") as base:
        merge_adapter(base, tmp_path / "adapter.safetensors", tmp_path / "merged.safetensors")
    merged, own = load_file(tmp_path / "merged.safetensors"), named_tensors(plain.model)
    assert merged.keys() == own.keys()
    for name, tensor in own.items():
        tensor.copy_(merged[name])
    torch.testing.assert_close(plain.logprobs(batch, TEMPERATURE), after, rtol=0, atol=1e-5)
    by_name = merged_tensors(learner.actor.model, named_tensors(learner.actor.model))
    merge_lora(learner.actor.model)
    assert by_name.keys() == named_tensors(learner.actor.model).keys() == own.keys()
    assert all(torch.equal(tensor, by_name[name]) for name, tensor in named_tensors(learner.actor.model).items())
    torch.testing.assert_close(learner.actor.logprobs(batch, TEMPERATURE), after, rtol=0, atol=1e-5)


def test_a_matrix_that_is_kept_the_other_way_round(tiny_model: Path, tmp_path: Path) -> None:
    """GPT-2's: the adapter that travels, joined with the file of the frozen weights, is the merged model."""
    model = LanguageModel.load(make_architecture("gpt2", tiny_model, tmp_path), CPU).model
    start = load_file(tmp_path / "model.safetensors")
    add_lora(model, 2, seed=0)
    for _, adapter in named_adapters(model):
        nn.init.normal_(adapter.up)
    save_file({name: one.contiguous() for name, one in adapter_tensors(model).items()}, tmp_path / "adapter")
    with (tmp_path / "model.safetensors").open("rb") as base:
        merge_adapter(base, tmp_path / "adapter", tmp_path / "joined")
    joined, merged = load_file(tmp_path / "joined"), merged_tensors(model, named_tensors(model))
    changed = [name for name in start if not torch.equal(joined[name], start[name])]
    assert len(changed) == 2 * 4
    assert all(name.startswith("transformer.h.") and name.endswith(".weight") for name in changed)
    for name, tensor in joined.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)


def test_what_it_adapts_is_named(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Experts are not linear layers: of a mixture it is little."""
    model = LanguageModel.load(make_architecture("mixtral", tiny_model, tmp_path), CPU).model
    with caplog.at_level("INFO"):
        add_lora(model, 2, seed=0)
    layers = sum(adapter.base.weight.numel() for _, adapter in named_adapters(model))
    share = 100 * layers / sum(p.numel() for n, p in model.model.named_parameters() if not n.endswith((".up", ".down")))
    assert f"LoRA adapts k_proj, o_proj, q_proj, v_proj of MixtralForCausalLM: {share:.0f}% of the" in caplog.text


@pytest.mark.parametrize("whose", ["policy", "preference_model"])
def test_a_model_without_a_layer_to_adapt_is_refused_before_the_run_begins(
    tiny_model: Path, tmp_path: Path, whose: str
) -> None:
    config = LlamaConfig.from_pretrained(tiny_model, num_hidden_layers=0)
    config.save_pretrained(tmp_path)
    spec = run_pb2.RunSpec(reward=run_pb2.RewardSpec(preference_weight=1))
    spec.policy.model = spec.preference_model.model = str(tiny_model)
    getattr(spec, whose).model = str(tmp_path)
    check_architectures(spec)
    spec.ppo.lora_rank = spec.preference_model.lora_rank = 2
    with pytest.raises(RunError, match="LoRA finds no linear layer in LlamaForCausalLM"):
        check_architectures(spec)


def test_a_model_that_cannot_checkpoint_is_refused_before_the_run_begins(tmp_path: Path, tiny_model: Path) -> None:
    LlamaConfig.from_pretrained(tiny_model, num_hidden_layers=0).save_pretrained(tmp_path)
    spec = run_pb2.RunSpec(ppo=run_pb2.PpoSpec(gradient_checkpointing=True))
    spec.policy.model = str(tmp_path)
    with pytest.raises(RunError, match="has no gradient checkpointing"):
        check_architectures(spec)


def named_adapters(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]


def test_without_adapters_there_is_nothing_but_the_model(tiny_model: Path) -> None:
    model = LanguageModel.load(tiny_model, CPU).model
    tensors = named_tensors(model)
    assert frozen_tensors(model, tensors).keys() == tensors.keys()
    assert adapter_tensors(model) == {}


@pytest.mark.parametrize("algorithm", ["ALGORITHM_PPO", "ALGORITHM_GRPO"])
def test_gradient_checkpointing_goes_with_it(tiny_model: Path, algorithm: str) -> None:
    """Frozen embeddings give the first layer an input without gradient."""
    after = []
    for checkpointing in (False, True):
        learner = make_learner(tiny_model, algorithm=algorithm, lora_rank=2, gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        learn(learner, make_episodes(count=8), step=1, controls=Controls(0.05))
        after.append(learner.actor.state_dict())
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())
