"""Several sequences as one row of tokens: what a Hugging Face model's forward takes for it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from charter.inference.local.prefix_tree import Segment, Tree

# Settings that hold how many tokens back a model sees in some of its layers.
WINDOWS = ("sliding_window", "attention_chunk_size")


def windows(config: PreTrainedConfig) -> list[int]:
    """Widths of a model's attention windows, in tokens; none of a model that sees everything."""
    text = config.get_text_config()
    return [width for name in WINDOWS if (width := getattr(text, name, None))]


def tree_arguments(tree: Tree, device: torch.device, config: PreTrainedConfig) -> dict[str, Any]:
    """What the forward of a model with this config takes, so that its one row is this tree.

    On CPU attention goes through the segments one by one (``charter.inference.local.attention``); elsewhere one kernel
    with a mask takes all, but for models with windows: one mask is for all layers.
    """
    ids, depths = (torch.tensor([values], device=device) for values in (tree.ids, tree.depths))
    if device.type == "cpu" or windows(config):
        return segment_arguments(ids, depths, tree.segments)
    return _arguments(ids, depths, visible(tree).to(device)[None, None])


def segment_arguments(ids: Tensor, depths: Tensor, segments: Sequence[Segment]) -> dict[str, Any]:
    """As ``tree_arguments``, on any device by segments. ``ids`` and ``depths`` are int64 [1, tokens]."""
    placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    return _arguments(ids, depths, placeholder) | {"segments": segments}


def _arguments(ids: Tensor, depths: Tensor, mask: Tensor) -> dict[str, Any]:
    # With a mask of four dimensions Transformers makes none of its own.
    return {"input_ids": ids, "position_ids": depths, "attention_mask": mask, "use_cache": False}


def visible(tree: Tree) -> Tensor:
    """Which token sees which: bool [tokens, tokens], true where the row's token sees the column's."""
    sees = torch.zeros(len(tree.ids), len(tree.ids), dtype=torch.bool)
    for segment in tree.segments:
        own = slice(segment.start, segment.stop)
        for one in segment.before:
            sees[own, one.start : one.stop] = True
        sees[own, own] = torch.ones(segment.stop - segment.start, segment.stop - segment.start).tril().bool()
    return sees
