"""A cache with room holds what the library's holds, and a new token copies none of those before it."""

import torch
from charter.inference.local.roomy_cache import roomy_cache
from transformers import DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

CONFIG = LlamaConfig(num_hidden_layers=2)


def states(rows: int, tokens: int, size: int) -> torch.Tensor:
    return torch.randn(rows, 3, tokens, size)


def test_it_holds_what_the_library_s_cache_holds() -> None:
    torch.manual_seed(0)
    caches = (roomy_cache(CONFIG), DynamicCache(config=CONFIG))
    rows = 5
    for step in range(200):
        for number in range(2):
            keys, values = states(rows, 1 if step else 7, 8), states(rows, 1 if step else 7, 4)
            (keys, values), (own_keys, own_values) = [cache.update(keys, values, number) for cache in caches]
            assert torch.equal(keys, own_keys)
            assert torch.equal(values, own_values)
        if step in (50, 51, 120):
            rows -= 1
            for cache in caches:
                cache.batch_select_indices(torch.arange(rows, 0, -1))
        if step == 130:
            for cache in caches:
                cache.reorder_cache(torch.tensor([1, 0]))
        if step == 140:
            for cache in caches:
                cache.crop(-20)
        if step == 150:
            for cache in caches:
                cache.reset()
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 49


def test_a_new_token_stays_behind_the_others_in_place() -> None:
    cache = roomy_cache(CONFIG)
    places = set()
    for _ in range(60):
        keys, values = cache.update(states(2, 1, 8), states(2, 1, 8), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1


def test_a_sliding_window_stays_the_library_s() -> None:
    config = LlamaConfig(num_hidden_layers=2, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    sliding, full = roomy_cache(config).layers
    assert isinstance(sliding, DynamicSlidingWindowLayer)
    assert not isinstance(full, DynamicSlidingWindowLayer)
