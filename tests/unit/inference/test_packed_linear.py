"""Packed linear layers against the plain ones that they are made from."""

from pathlib import Path

import pytest
import torch
from charter.inference.local.packed_linear import PackedLinear, pack, pack_linears, unpack_linears
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
    states = torch.randn(2, rows, 48)
    with torch.inference_mode():
        torch.testing.assert_close(model(states), plain(states))
    # A gradient must not be lost without a word.
    with pytest.raises(RuntimeError, match="without gradients"):
        model(states)


def test_only_weights_that_others_read_are_kept_beside_the_packed_ones(tiny_model: Path) -> None:
    """Here the head's, which are the embedding's too."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    pack_linears(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head.weight is embedding.weight
    layers = {name: one for name, one in model.named_modules() if isinstance(one, PackedLinear)}
    assert {name for name, one in layers.items() if not one.held_weight.is_meta} == {"lm_head"}
    # Code that reads a weight itself finds its numbers, not memory of no meaning.
    for name, one in layers.items():
        assert torch.equal(one.weight, plain[f"{name}.weight"])
    state = model.state_dict()
    assert {name: one.shape for name, one in state.items()} == {name: one.shape for name, one in plain.items()}


def test_new_weights_are_packed_beside_the_live_ones(tiny_model: Path) -> None:
    """All layers, a tied head by the name of the embedding; nothing changes before they are put in."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    new = {name: parameter + 1.0 for name, parameter in model.named_parameters()}
    pack_linears(model)
    head = model.get_output_embeddings()
    states = torch.randn(3, head.in_features)
    with torch.inference_mode():
        before = head(states)
        packed = pack(model, new)
        assert torch.equal(head(states), before)
        assert len(packed) == sum(isinstance(module, nn.Linear) for module in model.modules())
        head.packed = packed[head]
        expected = states @ new[next(n for n, p in model.named_parameters() if p is head.weight)].T
        torch.testing.assert_close(head(states), expected)


def test_unpacked_it_is_the_model_that_it_was(tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    pack_linears(model)
    unpack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = torch.arange(5, 25)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)


def test_other_models_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4, device="meta"))
    pack_linears(model)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear]
