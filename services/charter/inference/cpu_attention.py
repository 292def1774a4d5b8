"""Grouped-query attention on CPU without copies of keys and values.

Transformers repeats the keys and values of each group before PyTorch's attention when there is a mask, because the
CUDA kernels cannot do both. The CPU kernel can, and in decoding the copies cost as much as all matrix products.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "charter_cpu_sdpa"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Switch a model on CPU that uses PyTorch's attention to the form without copies; leave any other as it is."""
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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As Transformers' attention functions: query [rows, heads, new, size], key and value [rows, groups, all, size]."""
    if attention_mask is None or kwargs.get("position_bias") is not None or kwargs.get("cache") is not None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None
