"""Packed sequences: answers one behind the other in one row, without padding, each attending only to itself.

A model that gives other numbers then (``charter.inference.local.model_check``) reads each sequence alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from charter.inference.local.model_check import longest_in_row
from charter.inference.local.prefix_tree import Segment, Wanted
from charter.inference.local.tree_model import segment_arguments
from charter.worker.training import ranks


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

    @property
    def sequences(self) -> Sequence[Wanted]:
        """The sequences by themselves, in the order of ``states``."""

    @property
    def kept(self) -> Tensor | None:
        """Which states of these, one behind the other, are wanted; int64 [wanted]. None = all."""


def longest_packed(model: PreTrainedModel) -> int:
    """Most tokens of each of several sequences that a model may read in one row; 0 if it may not."""

    def arguments(tree: Any) -> dict[str, Any]:
        ids, depths = (torch.tensor([values], device=model.device) for values in (tree.ids, tree.depths))
        return segment_arguments(ids, depths, tree.segments)

    return longest_in_row(model, arguments)


class ReadsPacked(Protocol):
    """A model that reads packed sequences up to some length."""

    # Most tokens of each; longer ones go through it alone.
    longest_packed: int


def budget_on_ranks(models: Sequence[ReadsPacked], longest: int, tokens: int) -> int:
    """``tokens`` of a micro-batch, or 0 where sequences go through a model one by one: on every rank as many must.

    That stays so for these models. ``longest`` is the length of the longest sequence on any rank.
    """
    if ranks.size() == 1 or longest <= min(one.longest_packed for one in models):
        return tokens
    for one in models:
        one.longest_packed = 0
    return 0


def packed_hidden(model: Any, batch: Packed, precision: torch.dtype, longest: int) -> Tensor:
    """Final hidden states, float32 [wanted, width]; matrix products are done in ``precision``.

    Sequences are packed if none has more tokens than ``longest``, else each goes through the model alone.
    """

    def in_row(arguments: dict[str, Any]) -> Tensor:
        # Not by brackets: their gradient adds up in no fixed order where sequences share a place.
        states: Tensor = model(**arguments).last_hidden_state[0].index_select(0, batch.states)
        return states

    def alone(ids: Tensor, wanted: int) -> Tensor:
        states: Tensor = model(input_ids=ids, use_cache=False).last_hidden_state[0, -wanted:]
        return states

    return _read(batch, precision, longest, in_row, alone)


def packed_logits(model: Any, batch: Packed, precision: torch.dtype, longest: int) -> Tensor:
    """Logits as the model itself gives them, float32 [wanted, vocabulary]; otherwise as ``packed_hidden``."""

    def in_row(arguments: dict[str, Any]) -> Tensor:
        logits: Tensor = model(**arguments, logits_to_keep=batch.states).logits[0]
        return logits

    def alone(ids: Tensor, wanted: int) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=wanted).logits[0, -wanted:]
        return logits

    return _read(batch, precision, longest, in_row, alone)


def _read(
    batch: Packed,
    precision: torch.dtype,
    longest: int,
    in_row: Callable[[dict[str, Any]], Tensor],
    alone: Callable[[Tensor, int], Tensor],
) -> Tensor:
    device = batch.input_ids.device
    # No weight is used twice: rounded ones need not be kept, and would be those of all layers where they are sharded.
    with torch.autocast(device.type, precision, enabled=precision != torch.float32, cache_enabled=False):
        if max(len(one.ids) for one in batch.sequences) <= longest:
            return in_row(segment_arguments(batch.input_ids, batch.positions, batch.segments)).float()
        rows = [torch.tensor([one.ids], device=device) for one in batch.sequences]
        wanted = [len(one.ids) - one.first for one in batch.sequences]
        found = torch.cat([alone(ids, count) for ids, count in zip(rows, wanted, strict=True)]).float()
        return found if batch.kept is None else found.index_select(0, batch.kept)
