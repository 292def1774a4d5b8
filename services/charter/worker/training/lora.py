"""LoRA: beside each linear layer, which stays as it is, a product of two thin matrices learns.

Hu et al. 2021 ("LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685): ``h = W x + (alpha / r) B A x``
with A random, B zero at the start, and here alpha = 2 r. The frozen model itself is the reference: it is what is left
when the products are switched off.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from charter.inference.local.model_check import backbone_of
from charter.worker.errors import RunError
from charter.worker.seeds import derive_seed

logger = logging.getLogger("charter.worker")

# alpha / r.
_SCALE = 2.0


class LoraLinear(nn.Module):
    """A frozen linear layer and what is learned beside it.

    The layer is an ``nn.Linear``, or one of GPT-2's ``Conv1D``, which keep the same matrix the other way round.
    """

    def __init__(self, base: nn.Linear | Conv1D, rank: int, seed: int) -> None:
        super().__init__()
        self.base = base
        self.on = True
        self.turned = isinstance(base, Conv1D)
        outputs, inputs = base.weight.T.shape if self.turned else base.weight.shape
        down = torch.empty(rank, inputs)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter(down.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=base.weight.device))

    def forward(self, states: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        output: Tensor = self.base(states)
        if not self.on:
            return output
        return output + nn.functional.linear(nn.functional.linear(states, self.down), self.up) * _SCALE

    @property
    def weight(self) -> Tensor:
        """For code that reads a layer's weight itself, such as Mamba's: the matrix that does the same as the layer."""
        return self.merged() if self.on else self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.base.bias

    def merged(self) -> Tensor:
        """The one matrix that does the same, of the shape of the layer's."""
        product = _SCALE * self.up @ self.down
        return self.base.weight + (product.T if self.turned else product)


def layers_to_adapt(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The layers of a model that LoRA adapts, by name: every linear one below its head that reads text.

    Raises ``RunError`` when there is none.
    """
    layers = {
        name: module for name, module in _text_part(model).named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    if not layers:
        raise RunError(
            f"LoRA finds no linear layer in {type(model).__name__} that it could adapt: unset lora_rank, which trains "
            "all of the model, or use another model"
        )
    return layers


def _text_part(model: PreTrainedModel) -> PreTrainedModel:
    part: PreTrainedModel = backbone_of(model).get_decoder()
    return part


def add_lora(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Freeze a model and put adapters of ``rank`` beside every linear layer but its head, in place.

    ``seed`` draws the adapters; each layer has its own. Raises ``RunError`` when there is no such layer.
    """
    layers, text = layers_to_adapt(model), _text_part(model)
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    adapted = sum(layer.weight.numel() for layer in layers.values())
    # Of a mixture of experts little: their matrices lie in one tensor, which is no linear layer.
    logger.info(
        "LoRA adapts %s of %s: %.0f%% of the parameters below its head",
        kinds,
        type(model).__name__,
        100 * adapted / sum(parameter.numel() for parameter in text.parameters()),
    )
    model.requires_grad_(False)
    for name, layer in layers.items():
        owner, _, leaf = name.rpartition(".")
        adapter = LoraLinear(layer, rank, derive_seed(seed, "lora", f"{owner}.{leaf}"))
        setattr(text.get_submodule(owner), leaf, adapter)


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
        if adapter.turned:
            # The product is added to the matrix as it lies in the file: its transpose is that of the transposes.
            down, up = _SCALE * adapter.up.T, adapter.down.T
        else:
            down, up = adapter.down.detach(), _SCALE * adapter.up
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
    return tensors


def merged_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model by name with its adapters merged into its layers.

    Args:
        model: with or without adapters.
        tensors: the model's, by name.
    """
    merged = frozen_tensors(model, tensors)
    for name, adapter in _adapters(model):
        product = _SCALE * tensors[f"{name}.up"] @ tensors[f"{name}.down"]
        merged[f"{name}.weight"] = tensors[f"{name}.base.weight"] + (product.T if adapter.turned else product)
    return merged


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Put the merged layers in the place of layers with adapters."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                child.base.weight.data = child.merged()
                setattr(module, name, child.base)


def _adapters(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]
