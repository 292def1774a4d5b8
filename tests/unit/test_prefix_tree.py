"""Trees of tokens: they hold every sequence as it is, and a model gives the same numbers by them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from charter.inference import scoring_metrics
from charter.inference.prefix_tree import Wanted, trees_of
from charter.inference.torch_model import load_model
from charter.inference.torch_scoring import Answer, Scorer
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


@given(SEQUENCES, st.data())
def test_a_tree_holds_each_sequence_as_it_is(sequences: list[list[int]], data: st.DataObject) -> None:
    wanted = [Wanted(index, ids, data.draw(st.integers(0, len(ids) - 1))) for index, ids in enumerate(sequences)]
    trees = list(trees_of(wanted))
    assert sorted(index for tree in trees for index in tree.places) == list(range(len(sequences)))
    for tree in trees:
        first_asked = len(tree.ids) - tree.asked
        for index, places in tree.places.items():
            leaf = first_asked + places[-1]
            seen = np.flatnonzero(tree.visible[leaf])
            path = seen[np.argsort(tree.depths[seen])]
            assert tree.ids[path].tolist() == sequences[index]
            assert tree.depths[path].tolist() == list(range(len(path)))
            assert path[wanted[index].first :].tolist() == [first_asked + place for place in places]
            # Every token of the path sees what comes before it on the path, and nothing else.
            for depth, node in enumerate(path):
                assert sorted(np.flatnonzero(tree.visible[node])) == sorted(path[: depth + 1])


def test_what_is_shared_is_in_the_tree_once() -> None:
    (tree,) = trees_of([Wanted(0, [1, 2, 3, 4], 3), Wanted(1, [1, 2, 3, 5], 3), Wanted(2, [1, 2, 3, 4], 2)])
    assert len(tree.ids) == 5
    assert tree.asked == 3


def test_strangers_do_not_share_a_tree() -> None:
    sequences = [Wanted(index, [0, *range(10 * index + 1, 10 * index + 10)], 9) for index in range(3)]
    assert [len(tree.ids) for tree in trees_of(sequences)] == [10, 10, 10]


def test_a_tree_does_not_outgrow_its_bound() -> None:
    sequences = [Wanted(index, [*range(300), 1000 + index, *range(100)], 400) for index in range(40)]
    sizes = [len(tree.ids) for tree in trees_of(sequences)]
    assert max(sizes) <= 1024
    assert sum(sizes) < 40 * 401 / 2


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
    model = load_model(str(tiny_model), "cpu", None)
    shared = Scorer(model, 0, max_batch_tokens, share=True)
    plain = Scorer(model, 0, max_batch_tokens, share=False)
    assert (shared.shares, plain.shares) == (True, False)
    answers = texts(np.random.default_rng(0), model.config.vocab_size)
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


def small(config_class: type, model_class: type, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=1.0, **settings,
    )  # fmt: skip
    model: torch.nn.Module = model_class(config).eval()
    return model


def test_a_model_that_looks_back_only_so_far_is_computed_plainly() -> None:
    window = small(MistralConfig, MistralForCausalLM, sliding_window=4)
    assert not Scorer(window, 0, 4096, share=True).shares  # type: ignore[arg-type]
    everything = small(MistralConfig, MistralForCausalLM, sliding_window=None)
    assert Scorer(everything, 0, 4096, share=True).shares  # type: ignore[arg-type]


def test_a_model_that_counts_positions_by_itself_is_found_out() -> None:
    model = small(LlamaConfig, LlamaForCausalLM)
    forward = model.forward

    def by_place(ids: torch.Tensor, position_ids: torch.Tensor, **arguments: object) -> object:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        return forward(ids, position_ids=places, **arguments)

    model.forward = by_place  # type: ignore[method-assign]
    assert not Scorer(model, 0, 4096, share=True).shares  # type: ignore[arg-type]
