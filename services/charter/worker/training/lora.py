"""LoRA: beside each linear layer, which stays as it is, a product of two thin matrices learns.

Hu et al. 2021 ("LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685): ``h = W x + (alpha / r) B A x``
with A random, B zero at the start, and here alpha = 2 r. The frozen model itself is the reference: it is what is left
when the products are switched off.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from charter.worker.seeds import derive_seed

# alpha / r.
_SCALE = 2.0


class LoraLinear(nn.Module):
    """A frozen linear layer and what is learned beside it."""

    def __init__(self, base: nn.Linear, rank: int, seed: int) -> None:
        super().__init__()
        self.base = base
        self.on = True
        down = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter(down.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        output: Tensor = self.base(states)
        if not self.on:
            return output
        return output + nn.functional.linear(nn.functional.linear(states, self.down), self.up) * _SCALE

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The one matrix that does the same, [out_features, in_features]."""
        return self.base.weight + _SCALE * self.up @ self.down


def add_lora(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Freeze a model and put adapters of ``rank`` beside every linear layer but its head, in place.

    ``seed`` draws the adapters; each layer has its own.
    """
    model.requires_grad_(False)
    for name, module in list(model.base_model.named_modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                path = f"{name}.{child_name}"
                setattr(module, child_name, LoraLinear(child, rank, derive_seed(seed, "lora", path)))


@contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is the one that it was before it learned."""
    adapters = [adapter for _, adapter in _adapters(model)]
    for adapter in adapters:
        adapter.on = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.on = True


def frozen_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model by name as they were before adapters were put into it.

    Args:
        model: with or without adapters.
        tensors: the model's, by name.
    """
    adapters = dict(_adapters(model))
    frozen: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if owner not in adapters:
            layer = owner.removesuffix(".base")
            frozen[f"{layer}.{leaf}" if layer in adapters else name] = tensor
    return frozen


@torch.no_grad()
def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters as they travel: of each layer L matrices A [rank, in] and B [out, rank], whose product B A is added.

    Named as in ``WeightHeader.base_sha256``; empty for a model without adapters. Of a sharded model they are sharded.
    """
    tensors = {}
    for name, adapter in _adapters(model):
        tensors[f"{name}.lora_A.weight"] = adapter.down.detach()
        tensors[f"{name}.lora_B.weight"] = _SCALE * adapter.up
    return tensors


def merged_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model by name with its adapters merged into its layers.

    Args:
        model: with or without adapters.
        tensors: the model's, by name.
    """
    merged = frozen_tensors(model, tensors)
    for name, _ in _adapters(model):
        merged[f"{name}.weight"] = (
            tensors[f"{name}.base.weight"] + _SCALE * tensors[f"{name}.up"] @ tensors[f"{name}.down"]
        )
    return merged


def merge_lora(model: nn.Module) -> None:
    """Put the merged layers in the place of layers with adapters."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                child.base.weight.data = child.merged()
                setattr(module, name, child.base)


def _adapters(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]
