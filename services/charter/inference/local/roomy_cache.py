"""A cache of keys and values with room for the tokens to come, so that a new one does not copy all before it."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

# Tokens to come before everything is copied again.
_ROOM = 64


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers with a sliding window are the library's own."""
    cache = DynamicCache(config=config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    """Keys and values, [rows, groups, tokens, size], are the beginnings of larger tensors."""

    keys: Tensor
    values: Tensor
    _keys_room: Tensor | None = None
    _values_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values with the new ones behind."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self._keys_room = _appended(self.keys, key_states, self._keys_room)
        self.values, self._values_room = _appended(self.values, value_states, self._values_room)
        return self.keys, self.values


def _appended(states: Tensor, new: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    """``states`` with ``new`` behind, and the larger tensor that begins with them."""
    length = states.shape[-2] if states.numel() else 0
    grown = length + new.shape[-2]
    # What selects or reorders rows makes tensors without room.
    if room is None or room.data_ptr() != states.data_ptr() or room.shape[-2] < grown:
        room = new.new_empty(*new.shape[:-2], grown + _ROOM, new.shape[-1])
        if length:
            room[..., :length, :] = states
    room[..., length:grown, :] = new
    return room[..., :grown, :], room
