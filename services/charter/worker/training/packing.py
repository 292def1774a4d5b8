"""Packed sequences: answers one behind the other in one row, without padding, each attending only to itself."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from charter.inference.local.cpu_attention import attend_in_tree
from charter.inference.local.prefix_tree import Segment
from charter.worker.errors import RunError

_NAME = "charter_packed"


class Packed(Protocol):
    """What a model needs to know of packed sequences."""

    @property
    def input_ids(self) -> Tensor:
        """Int64 [1, tokens]."""

    @property
    def positions(self) -> Tensor:
        """Of each token in its sequence, int64 [1, tokens]."""

    @property
    def segments(self) -> Sequence[Segment]:
        """Which of these tokens see which."""

    @property
    def states(self) -> Tensor:
        """Places of the tokens whose hidden states are wanted, int64 [wanted]."""


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a model read packed sequences. Called without segments it reads rows without padding, as before."""
    AttentionInterface.register(_NAME, _attention)
    model.set_attn_implementation(_NAME)


def packed_hidden(model: Any, batch: Packed, precision: torch.dtype) -> Tensor:
    """Final hidden states, float32 [wanted, width], of packed sequences; matrix products are done in ``precision``."""
    device = batch.input_ids.device
    # No weight is used twice: rounded ones need not be kept, and would be those of all layers where they are sharded.
    with torch.autocast(device.type, precision, enabled=precision != torch.float32, cache_enabled=False):
        output = model(
            input_ids=batch.input_ids, position_ids=batch.positions, segments=batch.segments, use_cache=False
        )
    hidden: Tensor = output.last_hidden_state[0]
    # Not by brackets: their gradient adds up in no fixed order where sequences share a place.
    return hidden.index_select(0, batch.states).float()


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As Transformers' attention functions: query [1, heads, tokens, size], key and value [1, groups, tokens, size].

    One mask for all would compute every pair of tokens of the row and throw most away; attention segment by segment
    computes only what is used.
    """
    longest = query.shape[2] if segments is None else max(map(_seen, segments))
    if sliding_window is not None and longest > sliding_window:
        raise RunError(
            f"the model attends to {sliding_window} tokens and a sequence has {longest}: lower "
            "prompts.max_prompt_tokens or sampling.max_new_tokens"
        )
    if segments is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    return attend_in_tree(query, key, value, segments, scaling).transpose(1, 2).contiguous(), None


def _seen(segment: Segment) -> int:
    """Tokens that the last one of a segment sees."""
    return sum(one.stop - one.start for one in (*segment.before, segment))
