"""Charter's attention: soft caps, sinks and windows against numpy, and what it does not know."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from charter.inference.local.attention import UnsupportedAttentionError, _attention
from charter.inference.local.prefix_tree import Segment

TOKENS, SIZE = 9, 8
SCALING = 0.4


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of four heads, keys and values of two groups."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, TOKENS, SIZE, generator=generator) for heads in (4, 2, 2))
    return query, key, value


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize(
    "asked",
    [{}, {"softcap": 0.5}, {"s_aux": torch.tensor([2.0, -1.0, 0.5, 3.0])}, {"softcap": 0.7, "s_aux": torch.ones(4)}],
)
@pytest.mark.parametrize("window", [None, 4])
def test_against_numpy(asked: dict[str, Any], window: int | None, segments: bool) -> None:
    query, key, value = states()
    places = np.arange(TOKENS)
    sees = places[None] <= places[:, None]
    if window:
        sees &= places[None] > places[:, None] - window
    mask = torch.from_numpy(sees)[None, None]
    # The beginning as one segment, what comes behind as another.
    first = Segment(0, 3, ())
    row = (first, Segment(3, TOKENS, (first,))) if segments else None
    found, _ = _attention(
        torch.nn.Module(), query, key, value, mask, scaling=SCALING, sliding_window=window, segments=row, **asked
    )
    for head in range(4):
        scores = SCALING * query[0, head].double().numpy() @ key[0, head // 2].double().numpy().T
        if cap := asked.get("softcap"):
            scores = cap * np.tanh(scores / cap)
        weights = np.exp(scores) * sees
        sink = math.exp(asked["s_aux"][head]) if "s_aux" in asked else 0.0
        expected = weights / (weights.sum(axis=1, keepdims=True) + sink) @ value[0, head // 2].double().numpy()
        assert np.allclose(found[0, :, head].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("asked", [{"position_bias": torch.zeros(2)}, {"tomorrows_idea": 0.5}, {"dropout": 0.1}])
def test_what_it_does_not_know_is_an_error(asked: dict[str, Any]) -> None:
    (name,) = asked
    with pytest.raises(UnsupportedAttentionError, match=f"Module asks of attention what is not known here: {name}"):
        _attention(torch.nn.Module(), *states(), None, **asked)


def test_what_says_nothing_about_attention_may_be_there() -> None:
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool)
    plain, _ = _attention(torch.nn.Module(), *states(), mask)
    told, _ = _attention(torch.nn.Module(), *states(), mask, use_cache=True, output_attentions=False, cache=None)
    assert torch.equal(plain, told)
