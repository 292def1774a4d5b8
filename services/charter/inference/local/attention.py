"""Charter's attention: grouped queries without copies, soft caps, sinks, windows, and trees of tokens without a mask.

Transformers repeats the keys and values of each group before PyTorch's attention when there is a mask, because the
CUDA kernels cannot do both. The CPU kernel can, and in decoding the copies cost as much as all matrix products. What a
model asks of attention is done or refused: Transformers' own function takes what it does not know and ignores it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from charter.inference.local.prefix_tree import Segment

_NAME = "charter"
# Arguments of a model's forward pass that reach attention on their way to others.
_WITHOUT_EFFECT = {"position_ids", "cache_position", "use_cache", "output_router_logits", "output_hidden_states"}


class UnsupportedAttentionError(RuntimeError):
    """A model asks for a kind of attention that is not computed here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores become weights. Raw scores are multiplied by ``scaling``, unset 1 / sqrt(size of a head).

    ``softcap`` c makes c * tanh(score / c) of each score (Gemma Team 2024, "Gemma 2", arXiv 2408.00118, section 2).
    ``sinks`` [heads] are scores that take part in the softmax and have no value (OpenAI 2025, "gpt-oss-120b and
    gpt-oss-20b", arXiv 2508.10925, section 2.3). With ``window`` w a token sees the last w, itself among them.
    """

    scaling: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    window: int | None = None


def use_charter_attention(model: PreTrainedModel) -> None:
    """Switch a model to this attention. What does not take its attention from Transformers' table stays as it is."""
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


def use_own_attention(model: PreTrainedModel) -> None:
    """Switch a model to the attention that its own code spells out."""
    model.set_attn_implementation("eager")


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    segments: Sequence[Segment] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As Transformers' attention functions: query [rows, heads, new, size], key and value [rows, groups, all, size].

    With ``segments`` the one row is a tree, and the mask is not looked at. Raises ``UnsupportedAttentionError`` for an
    argument that is not known.
    """
    asked = {name for name, given in others.items() if given is not None and given is not False}
    unknown = sorted(asked - _WITHOUT_EFFECT)
    if unknown or dropout:
        names = ", ".join([*unknown, *(["dropout"] if dropout else [])])
        raise UnsupportedAttentionError(f"{type(module).__name__} asks of attention what is not known here: {names}")
    rule = Rule(scaling, softcap, s_aux, sliding_window)
    if segments is not None:
        attended = attend_in_tree(query, key, value, segments, rule)
    elif softcap is not None or s_aux is not None or (attention_mask is not None and query.device.type == "cpu"):
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is None and causal:
            attention_mask = _visible(query.shape[2], key.shape[2], None, query.device)
        attended = _attend(query, key, value, attention_mask, rule)
    else:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal
        )
        return output
    return attended.transpose(1, 2).contiguous(), None


def attend_in_tree(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], rule: Rule) -> Tensor:
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
        attended.append(_attend_to_path(new, [keys[one] for one in seen], [values[one] for one in seen], rule))
    return torch.cat(attended, dim=2)


def _attend_to_path(new: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], rule: Rule) -> Tensor:
    """Attention of the tokens of a segment to those of its ancestors, then to their own, which come last."""
    seen = sum(one.shape[2] for one in keys)
    plain = rule.softcap is None and rule.sinks is None and (rule.window is None or seen <= rule.window)
    if len(keys) == 1 and plain:
        return scaled_dot_product_attention(
            new, keys[0], values[0], is_causal=True, scale=rule.scaling, enable_gqa=True
        )
    key, value = torch.cat([*keys], dim=2), torch.cat([*values], dim=2)
    return _attend(new, key, value, _visible(new.shape[2], seen, rule.window, new.device), rule)


def _visible(new: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """Which of all tokens each of the last ``new`` sees: bool [new, seen]."""
    visible = torch.ones(new, seen, dtype=torch.bool, device=device).tril_(seen - new)
    return visible if window is None else visible.triu_(seen - new - window + 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attention with a mask, which is true where a token is seen or is added to the scores."""
    if rule.softcap is None and rule.sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rule.scaling, enable_gqa=True)
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = query @ repeat_kv(key, groups).transpose(2, 3) * scaling
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is not None:
        unseen = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, unseen) if mask.dtype == torch.bool else scores + mask
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=3)
    weights = scores.softmax(dim=3, dtype=torch.float32).to(value.dtype)
    attended: Tensor = weights[..., : key.shape[2]] @ repeat_kv(value, groups)
    return attended
