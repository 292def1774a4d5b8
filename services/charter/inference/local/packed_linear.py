"""Linear layers on a CPU whose weights oneDNN has put in its own order beforehand.

Writing an answer reads all weights for a few rows at a time. There PyTorch's own product spends as long on putting the
weights in order as on the arithmetic: the packed ones are 1.2 to 3.5 times as fast for 4 to 64 rows, and no slower for
many.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# The order is chosen for so many rows and right for any number.
_ROWS = 16


class PackedLinear(nn.Linear):
    """Computes with ``packed``, for inference only; its parameter says name, shape and type, and may hold no data."""

    packed: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """For code that reads a layer's weight itself, such as Mamba's: put together anew each time where not kept."""
        held = self.held_weight
        return self.packed.to_dense() if held.is_meta else held

    @property
    def held_weight(self) -> nn.Parameter:
        """The parameter, which may hold no data."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        return parameter

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``. Raises ``RuntimeError`` where a gradient is wanted: the product has none."""
        if torch.is_grad_enabled():
            raise RuntimeError("packed weights compute without gradients only: use torch.inference_mode()")
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")
        return output


def pack_linears(model: nn.Module) -> None:
    """Make every linear layer of a float32 model on a CPU a packed one; leave any other model as it is.

    Their weights are then on the device "meta", but for those that other modules read too. These and all other tensors
    are copied: were they pages of a file, all of the file would stay in memory with them.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    readers = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        weight = module.weight if type(module) is nn.Linear else None
        if weight is not None and weight.device.type == "cpu" and weight.dtype == torch.float32:
            module.__class__ = PackedLinear
            module.packed = _packed(weight)
            if readers[id(weight)] == 1:
                module.register_parameter("weight", nn.Parameter(weight.to("meta"), requires_grad=False))
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def unpack_linears(model: nn.Module) -> None:
    """Make the packed layers of a model plain ones again."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            weight = module.held_weight
            if weight.is_meta:
                module.register_parameter("weight", nn.Parameter(module.packed.to_dense(), requires_grad=False))
            del module.packed
            module.__class__ = nn.Linear  # type: ignore[assignment]


def pack(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[PackedLinear, Tensor]:
    """What ``packed`` of each layer will be with new weights, by their names in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        module: _packed(weights[names[id(module.held_weight)]])
        for module in model.modules()
        if isinstance(module, PackedLinear)
    }


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed
