"""Running a Hugging Face model on trees of tokens, where it can."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from charter.inference.local.prefix_tree import Tree, Wanted, whole_tree

# Most difference between the two ways to compute, relative to the largest state, in float32 and in shorter types.
_TOLERANCE = {torch.float32: 1e-4}
_COARSE_TOLERANCE = 0.05


def tree_arguments(tree: Tree, device: torch.device) -> dict[str, Any]:
    """What a model's forward takes, so that its one row is this tree.

    On CPU attention goes through the segments one by one (``charter.inference.local.cpu_attention``); elsewhere
    one kernel with a mask takes all.
    """
    return {
        "input_ids": torch.tensor([tree.ids], device=device),
        "position_ids": torch.tensor([tree.depths], device=device),
        # With a mask of four dimensions Transformers makes none of its own.
        "attention_mask": _placeholder() if device.type == "cpu" else visible(tree).to(device)[None, None],
        "segments": tree.segments if device.type == "cpu" else None,
        "use_cache": False,
    }


def visible(tree: Tree) -> Tensor:
    """Which token sees which: bool [tokens, tokens], true where the row's token sees the column's."""
    sees = torch.zeros(len(tree.ids), len(tree.ids), dtype=torch.bool)
    for segment in tree.segments:
        own = slice(segment.start, segment.stop)
        for one in segment.before:
            sees[own, one.start : one.stop] = True
        sees[own, own] = torch.ones(segment.stop - segment.start, segment.stop - segment.start).tril().bool()
    return sees


def computes_trees(model: PreTrainedModel) -> bool:
    """Whether a model gives the same states for a tree as for its sequences one by one.

    It does not with attention windows, recurrent layers, positions by a rule of its own.
    """
    return _full_attention(model) and _agrees(model)


def _full_attention(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that comes before, with PyTorch's attention, which takes any mask."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    return layers == {"full_attention"} and not window and "sdpa" in str(model.config._attn_implementation)


@torch.no_grad()
def _agrees(model: PreTrainedModel) -> bool:
    """Try three short sequences that share their beginning, two of them more."""
    backbone: Any = model.base_model
    count = int(model.config.get_text_config().vocab_size)
    ids = [(7919 * step) % count for step in range(1, 33)]
    sequences = [ids[:20], [*ids[:16], *ids[20:30]], [*ids[:10], *ids[30:]]]
    tree = whole_tree([Wanted(index, one, 0) for index, one in enumerate(sequences)])
    found = backbone(**tree_arguments(tree, model.device)).last_hidden_state[0]
    tolerance = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE)
    for index, one in enumerate(sequences):
        alone = backbone(torch.tensor([one], device=model.device), use_cache=False).last_hidden_state[0]
        # Written so that NaN does not agree.
        if not (found[tree.places[index]] - alone).abs().max() <= tolerance * alone.abs().max():
            return False
    return True


def _placeholder() -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=torch.bool)
