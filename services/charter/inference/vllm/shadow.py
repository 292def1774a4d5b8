"""A second set of weights for a model that vLLM serves on a CPU: made while it generates, exchanged in a moment.

On a CPU vLLM multiplies by packed copies of its weights. Packing takes longer than a step of generation, so it must not
happen while generation is paused. On a GPU there is no memory for a second set, and nothing is packed.
"""

from collections.abc import Iterable
from copy import copy
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

_PACKED_BY_LAYER = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


def can_shadow(model: nn.Module, device: torch.device) -> bool:
    """Whether what vLLM makes of the weights is kept in the layers alone, so that it can be made beside them.

    Not so for experts and quantised weights, whose methods keep a part of it, nor for latent attention.
    """
    return device.type == "cpu" and all(
        isinstance(getattr(layer, "quant_method", None), (*_PACKED_BY_LAYER, type(None)))
        and not isinstance(layer, MLAAttention)
        # Those of attention are scales of quantised checkpoints.
        and (isinstance(layer, Attention) or layer._non_persistent_buffers_set.issuperset(layer._buffers))
        for layer in model.modules()
    )


class ShadowModel:
    """The layers of ``model`` once more, with the same settings and weights of their own."""

    def __init__(self, model: nn.Module) -> None:
        self._twins: list[tuple[nn.Module, nn.Module, dict[str, Any]]] = []  # Live, shadow, what the shadow began with.
        self._root: Any = self._shadow_of(model, {})

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Fill all weights from a checkpoint, in the model's precision, and pack them."""
        loaded = self._root.load_weights(tensors)
        if missing := {name for name, _ in self._root.named_parameters()} - loaded:
            raise RuntimeError(f"the checkpoint holds nothing for {sorted(missing)[:5]}, {len(missing)} in all")
        for _, shadow, _ in self._twins:
            if isinstance(method := getattr(shadow, "quant_method", None), _PACKED_BY_LAYER):
                method.process_weights_after_loading(shadow)

    def exchange(self) -> None:
        """Put these weights into the live model; no step of it may be under way. This holds the old ones afterwards."""
        exchanged: set[int] = set()
        for live, shadow, before in self._twins:
            for name, weight in shadow._parameters.items():
                served = live._parameters[name]
                if weight is not None and served is not None and id(served) not in exchanged:
                    # The live parameter stays the same object: tied layers and compiled code refer to it.
                    served.data, weight.data = weight.data, served.data
                    exchanged.add(id(served))
            for name, made in vars(shadow).items():
                if made is not before.get(name):
                    # What the layer computes with, such as ``cpu_linear``, which holds the packed weights.
                    setattr(live, name, made)

    def _shadow_of(self, layer: nn.Module, weights: dict[int, nn.Parameter]) -> nn.Module:
        """``weights`` are those made so far, by the id of the live one: tied weights stay tied."""
        if next(layer.parameters(), None) is None:
            return layer
        shadow = copy(layer)
        shadow._modules = {
            name: None if child is None else self._shadow_of(child, weights) for name, child in layer._modules.items()
        }
        shadow._parameters = {}
        for name, live in layer._parameters.items():
            if live is not None and id(live) not in weights:
                weights[id(live)] = _as_loadable(layer, name, live)
            shadow.register_parameter(name, None if live is None else weights[id(live)])
        self._twins.append((layer, shadow, dict(vars(shadow))))
        return shadow


def _as_loadable(layer: nn.Module, name: str, live: nn.Parameter) -> nn.Parameter:
    """A parameter as it was before vLLM packed it, of no particular value."""
    recorded = get_layerwise_info(layer).restore_metadata[0].get(name)
    empty: nn.Parameter = materialize_meta_tensor(to_meta_tensor(live) if recorded is None else recorded)
    restore_layer_refs(empty, layer)
    return empty
