"""Trees of tokens: they hold every sequence as it is, and a model gives the same numbers by them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from charter.inference import scoring_metrics
from charter.inference.local import attention
from charter.inference.local.model import load_model
from charter.inference.local.model_check import UNLIMITED, longest_in_row
from charter.inference.local.prefix_tree import Wanted, tree_tokens, trees_of
from charter.inference.local.scoring import Answer, Scorer
from charter.inference.local.tree_model import tree_arguments, visible
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

MOST = 10**9
# Two beginnings of many tokens, so that sequences share enough to meet.
ENDINGS = st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 2), max_size=12)), min_size=1, max_size=12)


@given(ENDINGS, st.data())
def test_a_tree_holds_each_sequence_as_it_is(endings: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    sequences = [[*range(7, 7 + shared), *rest] or [1] for shared, rest in endings]
    wanted = [Wanted(index, ids, data.draw(st.integers(0, len(ids) - 1))) for index, ids in enumerate(sequences)]
    most_tokens = data.draw(st.sampled_from([10, 40, MOST]))
    trees = list(trees_of(wanted, most_tokens, MOST))
    assert sorted(index for tree in trees for index in tree.places) == list(range(len(sequences)))
    for tree in trees:
        assert len(tree.ids) == tree_tokens([sequences[index] for index in tree.places])
        assert len(tree.ids) <= most_tokens or len(tree.places) == 1
        ids, depths, sees = np.array(tree.ids), np.array(tree.depths), visible(tree).numpy()
        for index, places in tree.places.items():
            seen = np.flatnonzero(sees[places[-1]])
            path = seen[np.argsort(depths[seen])]
            assert ids[path].tolist() == sequences[index]
            assert depths[path].tolist() == list(range(len(path)))
            assert path[wanted[index].first :].tolist() == places
            # Every token of the path sees what comes before it on the path, and nothing else.
            for depth, node in enumerate(path):
                assert sorted(np.flatnonzero(sees[node])) == sorted(path[: depth + 1])


def test_what_is_shared_is_in_the_tree_once() -> None:
    start = list(range(10))
    (tree,) = trees_of([Wanted(0, [*start, 20], 10), Wanted(1, [*start, 21], 10), Wanted(2, start, 9)], MOST, MOST)
    assert len(tree.ids) == 12
    assert sorted(place for places in tree.places.values() for place in places) == [9, 10, 11]


def test_strangers_share_a_row_and_no_tokens() -> None:
    sequences = [Wanted(index, [0, *range(10 * index + 1, 10 * index + 10)], 9) for index in range(3)]
    (tree,) = trees_of(sequences, MOST, MOST)
    assert len(tree.ids) == 30
    assert [len(one.before) for one in tree.segments] == [0, 0, 0]


def test_trees_stay_within_their_bounds() -> None:
    sequences = [Wanted(index, [*range(300), 1000 + index, *range(100)], 390) for index in range(40)]
    sizes = [len(tree.ids) for tree in trees_of(sequences, 1024, MOST)]
    assert max(sizes) <= 1024
    assert sum(sizes) < 40 * 401 / 2
    asked = [sum(map(len, tree.places.values())) for tree in trees_of(sequences, MOST, 100)]
    assert max(asked) <= 100


@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_a_tree_against_numpy(masked: bool) -> None:
    """Both forms, the one for CPUs and the mask for GPUs: softmax over what each token sees, and their gradients."""
    sequences = [[*range(12), 20, 21, 22], [*range(12), 30], [*range(9), 40, 41], [50, 51, 52, 53]]
    (tree,) = trees_of([Wanted(index, ids, 0) for index, ids in enumerate(sequences)], MOST, MOST)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(tree.ids), 8, generator=generator) for heads in (4, 2, 2))
    for one in (query, key, value):
        one.requires_grad_()
    mask = visible(tree)[None, None] if masked else None
    found, _ = attention._attention(
        torch.nn.Module(), query, key, value, mask, scaling=0.3, segments=None if masked else tree.segments
    )
    sees, by_hand = visible(tree).numpy(), np.zeros((len(tree.ids), 4, 8))
    for head in range(4):
        scores = 0.3 * query[0, head].detach().numpy() @ key[0, head // 2].detach().numpy().T
        weights = np.exp(scores) * sees
        by_hand[:, head] = weights / weights.sum(axis=1, keepdims=True) @ value[0, head // 2].detach().numpy()
    assert np.allclose(found[0].detach().numpy(), by_hand, atol=1e-5)
    gradients = torch.autograd.grad(found.square().sum(), (query, key, value))
    whole = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible(tree), scale=0.3, enable_gqa=True
    )
    for one, other in zip(gradients, torch.autograd.grad(whole.square().sum(), (query, key, value)), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def texts(draw: np.random.Generator, vocabulary: int) -> list[Answer]:
    """Two answers to each of four prompts, which share a beginning; some are equal or one begins the other."""
    system = draw.integers(5, vocabulary, 20).tolist()
    answers = []
    for _ in range(4):
        prompt = [*system, *draw.integers(5, vocabulary, int(draw.integers(3, 30))).tolist()]
        one = draw.integers(5, vocabulary, int(draw.integers(2, 25))).tolist()
        other = draw.integers(5, vocabulary, int(draw.integers(1, 25))).tolist()
        answers += [Answer(0, prompt, text) for text in (one, other, one, one[:1], [*one, *other])]
    return answers


@pytest.mark.parametrize("max_batch_tokens", [100, 16384])
def test_shared_and_plain_computation_agree(tiny_model: Path, max_batch_tokens: int) -> None:
    loaded = load_model(str(tiny_model), "cpu", None)
    shared = Scorer(loaded, 0, max_batch_tokens, share=True)
    plain = Scorer(loaded, 0, max_batch_tokens, share=False)
    assert (shared.shares, plain.shares) == (True, False)
    answers = texts(np.random.default_rng(0), loaded.model.config.vocab_size)
    before = scoring_metrics.GIVEN._value.get(), scoring_metrics.COMPUTED._value.get()
    assert shared.answer_logprobs(answers) == pytest.approx(plain.answer_logprobs(answers), abs=1e-4)
    given_tokens, computed = (
        now - then
        for now, then in zip(
            (scoring_metrics.GIVEN._value.get(), scoring_metrics.COMPUTED._value.get()), before, strict=True
        )
    )
    # The plain way computes half of what was given to both; the shared one much less.
    assert computed < 0.85 * given_tokens
    prompts = [[*one.prompt_ids, *one.answer_ids] for one in answers]
    expected = plain.next_token_logprobs(prompts, [1, 7, 40])
    assert torch.allclose(shared.next_token_logprobs(prompts, [1, 7, 40]), expected, atol=1e-4)


@pytest.mark.real_model
def test_they_agree_for_the_real_model(real_model: Path) -> None:
    model = load_model(str(real_model), "cpu", None)
    shared, plain = (Scorer(model, 0, 16384, share=share) for share in (True, False))
    assert shared.shares
    answers = texts(np.random.default_rng(1), 40_000)[:10]
    assert shared.answer_logprobs(answers) == pytest.approx(plain.answer_logprobs(answers), abs=1e-3)


def small(config_class: type, model_class: type, **settings: object) -> Any:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=1.0, **settings,
    )  # fmt: skip
    return model_class(config).eval()


def longest(model: Any) -> int:
    return longest_in_row(model, lambda tree: tree_arguments(tree, model.device, model.config))


@pytest.mark.parametrize("window", [4, 40, None])
def test_a_model_that_looks_back_only_so_far_does_so_in_a_tree(window: int | None) -> None:
    assert longest(small(MistralConfig, MistralForCausalLM, sliding_window=window)) == UNLIMITED


def test_sequences_longer_than_a_window_that_attention_is_not_told_of_go_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in models that have windows in their masks only; the window is wider than what is tried."""
    whole = attention.Rule
    monkeypatch.setattr(attention, "Rule", lambda scaling, softcap, sinks, window: whole(scaling, softcap, sinks))
    assert longest(small(MistralConfig, MistralForCausalLM, sliding_window=40)) == 40


@pytest.mark.parametrize("ignored", ["position_ids", "segments"])
def test_a_model_that_goes_by_its_own_rules_is_found_out(ignored: str) -> None:
    model = small(LlamaConfig, LlamaForCausalLM)
    assert longest(model) == UNLIMITED
    backbone: Any = model.model
    forward = backbone.forward
    backbone.forward = lambda *given, **arguments: forward(*given, **(arguments | {ignored: None}))
    assert longest(model) == 0
