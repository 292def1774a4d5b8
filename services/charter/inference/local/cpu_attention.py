"""Attention on CPU: grouped queries without copies of keys and values, and trees of tokens without a mask.

Transformers repeats the keys and values of each group before PyTorch's attention when there is a mask, because the
CUDA kernels cannot do both. The CPU kernel can, and in decoding the copies cost as much as all matrix products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from charter.inference.local.prefix_tree import Segment

_NAME = "charter_cpu_sdpa"


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Switch a model on CPU that uses PyTorch's attention to these forms; leave any other as it is."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Sequence[Segment] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As Transformers' attention functions: query [rows, heads, new, size], key and value [rows, groups, all, size].

    With ``segments`` the one row is a tree, and the mask is not looked at.
    """
    special = kwargs.get("position_bias") is not None or kwargs.get("cache") is not None
    # A model that was moved to a GPU keeps its attention.
    if query.device.type != "cpu" or special or (attention_mask is None and segments is None):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    if segments is None:
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    else:
        attended = attend_in_tree(query, key, value, segments, scaling)
    return attended.transpose(1, 2).contiguous(), None


def attend_in_tree(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scaling: float | None
) -> Tensor:
    """Attention of a row that is a tree: query [1, heads, tokens, size], key and value [1, groups, tokens, size].

    ``segments`` are all of the row's, in order. Each token attends to those before its segment and to its own.
    """
    sizes = [one.stop - one.start for one in segments]
    # Split, not sliced: each slice would have a gradient as large as the row.
    queries, keys, values = (torch.split(states, sizes, dim=2) for states in (query, key, value))
    number = {one.start: place for place, one in enumerate(segments)}
    attended = []
    for new, segment in zip(queries, segments, strict=True):
        seen = [number[one.start] for one in (*segment.before, segment)]
        attended.append(_attend(new, [keys[one] for one in seen], [values[one] for one in seen], scaling))
    return torch.cat(attended, dim=2)


def _attend(new: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scaling: float | None) -> Tensor:
    """Attention of the tokens of a segment to those of its ancestors, then to their own, which come last."""
    if len(keys) == 1:
        return scaled_dot_product_attention(new, keys[0], values[0], is_causal=True, scale=scaling, enable_gqa=True)
    key, value = torch.cat([*keys], dim=2), torch.cat([*values], dim=2)
    visible = torch.ones(new.shape[2], key.shape[2], dtype=torch.bool, device=new.device)
    visible.tril_(key.shape[2] - new.shape[2])
    return scaled_dot_product_attention(new, key, value, attn_mask=visible, scale=scaling, enable_gqa=True)
