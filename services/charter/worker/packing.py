"""Packed sequences: answers one behind the other in one row, without padding, each attending only to itself."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from charter.worker.errors import RunError

_NAME = "charter_packed"


class Packed(Protocol):
    """What a model needs to know of packed sequences."""

    @property
    def input_ids(self) -> Tensor:
        """Int64 [1, tokens]."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each sequence, in their order."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a model read packed sequences. Called without their lengths it reads rows without padding, as before."""
    AttentionInterface.register(_NAME, _attention)
    model.set_attn_implementation(_NAME)


def packed_hidden(model: Any, batch: Packed, precision: torch.dtype) -> Tensor:
    """Final hidden states of packed sequences, float32 [tokens, width]; matrix products are done in ``precision``."""
    positions = torch.cat([torch.arange(length) for length in batch.lengths]).unsqueeze(0)
    device = batch.input_ids.device
    # No weight is used twice: rounded ones need not be kept, and would be those of all layers where they are sharded.
    with torch.autocast(device.type, precision, enabled=precision != torch.float32, cache_enabled=False):
        output = model(
            input_ids=batch.input_ids,
            position_ids=positions.to(device),
            sequence_lengths=list(batch.lengths),
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden.float()


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sequence_lengths: list[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As Transformers' attention functions: query [1, heads, tokens, size], key and value [1, groups, tokens, size].

    A block-diagonal mask would compute every pair of tokens of the row and throw most away; one causal attention for
    each sequence computes only what is used.
    """
    longest = max(sequence_lengths or [query.shape[2]])
    if sliding_window is not None and longest > sliding_window:
        raise RunError(
            f"the model attends to {sliding_window} tokens and a sequence has {longest}: lower "
            "prompts.max_prompt_tokens or sampling.max_new_tokens"
        )
    if sequence_lengths is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    pieces = zip(*(torch.split(states, sequence_lengths, dim=2) for states in (query, key, value)), strict=True)
    attended = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in pieces
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None
