"""Packed linear layers against the plain ones that they are made from."""

from pathlib import Path

import pytest
import torch
from charter.inference.packed_linear import PackedLinear, pack, pack_linears
from torch import nn
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("rows", [1, 16, 333])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_plain_layer_does(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain, model = nn.Linear(48, 80, bias=bias), nn.Sequential(nn.Linear(48, 80, bias=bias))
    model[0].load_state_dict(plain.state_dict())
    pack_linears(model)
    assert type(model[0]) is PackedLinear
    states = torch.randn(2, rows, 48, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(model(states), plain(states))
    # With a gradient it must go to the weight that the optimiser knows.
    model(states).sum().backward()
    plain(states).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, plain.weight.grad)


def test_new_weights_are_packed_beside_the_live_ones(tiny_model: Path) -> None:
    """All layers, a tied head by the name of the embedding; nothing changes before they are put in."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    pack_linears(model)
    head = model.get_output_embeddings()
    new = {name: parameter + 1.0 for name, parameter in model.named_parameters()}
    states = torch.randn(3, head.in_features)
    with torch.inference_mode():
        before = head(states)
        packed = pack(model, new)
        assert torch.equal(head(states), before)
        assert len(packed) == sum(isinstance(module, nn.Linear) for module in model.modules())
        head.packed = packed[head]
        expected = states @ new[next(n for n, p in model.named_parameters() if p is head.weight)].T
        torch.testing.assert_close(head(states), expected)


def test_other_models_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4, device="meta"))
    pack_linears(model)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear]
