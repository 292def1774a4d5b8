"""Every number of a model is that of the model as Transformers loads it, alone and with its own attention.

Short sequences and ones past windows and first contexts, together in one call: trainer, critic, preference model and
engine, of many architectures.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.inference.engine import Sampling
from charter.inference.local.model import LoadedModel, load_model, max_context_tokens
from charter.inference.local.sampling import Row, Way, sample_rows, way_to_sample
from charter.inference.local.scoring import Answer, Scorer
from charter.inference.preference_model import PreferenceModel
from charter.worker.training.batches import pack
from charter.worker.training.lora import LoraLinear, add_lora, merge_lora
from charter.worker.training.models import Critic, LanguageModel, checkpoint_gradients
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.support.architectures import ARCHITECTURES, FIRST_CONTEXT, make_architecture
from tests.support.learners import CPU

# What reads sequences alone, and how rows are written where not in the fastest way.
RECURRENT = {"mamba", "jamba", "lfm2", "qwen3_next", "recurrent_gemma"}
ALONE = {"llama4_text", "gptj", "xglm", "falcon", "bloom", "stablelm", "nemotron"} | RECURRENT
WINDOWED = {"starcoder2", "gemma2", "gemma3", "gpt_oss"}
SLOWER = {"recurrent_gemma": Way.ALONE, "mamba": Way.AGAIN}


def _ids(length: int, seed: int) -> list[int]:
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


# Prompts and answers: two that begin alike, one past the windows, one past the first context.
_SHARED = _ids(12, 0)
TEXTS = [
    (_SHARED + _ids(2, 1), _ids(4, 2)),
    (_SHARED, _ids(9, 3)),
    (_ids(3, 4), _ids(3, 5)),
    (_ids(FIRST_CONTEXT - 5, 6), _ids(12, 7)),
]


@dataclass
class Tried:
    """An architecture, its folder, and the model as it came."""

    name: str
    folder: Path

    @cached_property
    def own(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="eager")
        return model.eval()

    def logprobs(self, prompt: list[int], answer: list[int]) -> Tensor:
        """Of the answer's tokens, [answer]."""
        logits = self.own(torch.tensor([[*prompt, *answer[:-1]]]), use_cache=False).logits[0, len(prompt) - 1 :]
        logprobs: Tensor = logits.log_softmax(dim=-1)[range(len(answer)), answer]
        return logprobs

    def states(self, prompt: list[int], answer: list[int]) -> Tensor:
        """Below the head, from the one that predicts the answer's first token on, [answer + 1, width]."""
        seen: list[Tensor] = []
        head = self.own.get_output_embeddings()
        with head.register_forward_pre_hook(lambda module, given: seen.append(given[0])), torch.no_grad():
            self.own(torch.tensor([[*prompt, *answer]]), use_cache=False)
        return seen[0][0, len(prompt) - 1 :]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tried(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(request.param, make_architecture(request.param, tiny_model, tmp_path_factory.mktemp("architecture")))


def test_logprobs_and_their_gradients(tried: Tried) -> None:
    model = LanguageModel.load(tried.folder, CPU)
    assert (model.longest_packed == 0) == (tried.name in ALONE)
    found = model.logprobs(pack(TEXTS, CPU), 1.0)
    expected = torch.cat([tried.logprobs(*text) for text in TEXTS])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    torch.autograd.backward(found.square().sum())
    torch.autograd.backward(expected.square().sum())
    own = dict(tried.own.named_parameters())
    for name, parameter in model.model.named_parameters():
        assert (parameter.grad is None) == (own[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-3, atol=1e-3)
    # Temperature and entropies, which some heads leave to other code.
    _, entropies, _ = model.logprobs_entropies_and_values(pack(TEXTS[2:3], CPU), 0.5)
    prompt, answer = TEXTS[2]
    logits = tried.own(torch.tensor([[*prompt, *answer[:-1]]]), use_cache=False).logits[0, len(prompt) - 1 :]
    spread = (logits / 0.5).log_softmax(dim=1)
    torch.testing.assert_close(entropies, -(spread.exp() * spread).sum(dim=1))


def test_values_and_scores(tried: Tried) -> None:
    critic = Critic.from_policy(tried.folder, CPU)
    nn.init.normal_(critic.head.weight)
    states = [tried.states(*text) for text in TEXTS]
    with torch.no_grad():
        read = [tried.states(prompt, answer[:-1]) for prompt, answer in TEXTS]
        expected = torch.cat([critic.head(one)[:, 0] for one in read])
        torch.testing.assert_close(critic.values(pack(TEXTS, CPU)), expected, rtol=0, atol=2e-5)
    model = PreferenceModel.from_causal_lm(tried.folder, seed=0).eval()
    with torch.no_grad():
        expected = torch.cat([model.head(one[-1:])[:, 0] for one in states])
        torch.testing.assert_close(model.scores([[*p, *a] for p, a in TEXTS]), expected, rtol=0, atol=1e-5)


def test_generation_and_scoring(tried: Tried) -> None:
    loaded = load_model(str(tried.folder), "cpu", None)
    limit = max_context_tokens(loaded.model.config)
    texts = [one for one in TEXTS if len(one[0]) + len(one[1]) <= limit]
    assert (limit == FIRST_CONTEXT) == (tried.name in ("phi3", "llama:dynamic"))
    scorer = Scorer(loaded, 0, 4096, share=True)
    way = way_to_sample(loaded.model, 0, share=scorer.shares)
    assert way == SLOWER.get(tried.name, Way.BATCHED if tried.name in ALONE | WINDOWED else Way.SHARED)
    _check_scoring(tried, scorer, texts)
    _check_generation(tried, loaded, way, texts)


@torch.no_grad()
def _check_scoring(tried: Tried, scorer: Scorer, texts: list[Any]) -> None:
    totals = scorer.answer_logprobs([Answer(index, *one) for index, one in enumerate(texts)])
    assert totals == pytest.approx([float(tried.logprobs(*one).sum()) for one in texts], abs=1e-4)
    found = scorer.next_token_logprobs([prompt for prompt, _ in texts], [5, 9])
    expected = torch.stack([torch.cat([tried.logprobs(prompt, [one]) for one in (5, 9)]) for prompt, _ in texts])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def _check_generation(tried: Tried, loaded: LoadedModel, way: Way, texts: list[Any]) -> None:
    """Rows of unequal lengths that end one after the other."""
    rows = [_row(prompt, tokens) for (prompt, _), tokens in zip(texts, (5, 1, 3, 4), strict=False)]
    sample_rows(loaded.model, rows, Sampling(5), frozenset(), 0, lambda row: None, lambda row: None, way=way)
    for row, tokens in zip(rows, (5, 1, 3, 4), strict=False):
        assert len(row.token_ids) == tokens
        own = tried.logprobs(list(row.prompt_ids), row.token_ids).tolist()
        assert row.logprobs == pytest.approx(own, abs=2e-5)


def _row(prompt: list[int], tokens: int) -> Row:
    return Row(prompt, lambda: True, torch.Generator().manual_seed(tokens), tokens)


# Architectures that the library loads as causal language models although with this config they are none.
ENCODERS = ("bert", "roformer")
ENCODERS_AND_DECODERS = ("bart", "blenderbot")


@pytest.mark.parametrize("name", [*ENCODERS, *ENCODERS_AND_DECODERS])
def test_what_is_no_causal_language_model_is_refused(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = make_architecture(name, tiny_model, tmp_path)
    with pytest.raises(ValueError, match=r"use a (causal language|decoder-only) model"):
        Critic.from_policy(folder, CPU)
    with pytest.raises(ValueError, match=r"use a (causal language|decoder-only) model"):
        PreferenceModel.from_causal_lm(folder, seed=0)
    if name in ENCODERS:
        with pytest.raises(ValueError, match="lets tokens see those behind them"):
            load_model(str(folder), "cpu", None)
        with pytest.raises(ValueError, match="lets tokens see those behind them"):
            LanguageModel.load(folder, CPU)


def test_a_folder_without_some_of_the_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_architecture("llama", tiny_model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for load in (
        lambda: load_model(str(folder), "cpu", None),
        lambda: LanguageModel.load(folder, CPU),
        lambda: Critic.from_policy(folder, CPU),
        lambda: PreferenceModel.from_causal_lm(folder, seed=0),
    ):
        with pytest.raises(ValueError, match=r"hold nothing for .*layers\.1\.mlp\.up_proj\.weight of .* \(1 tensors"):
            load()


@pytest.mark.parametrize("tried", ["opt", "biogpt", "xglm", "gpt2", "llama"], indirect=True)
def test_gradient_checkpointing_drops_nothing(tried: Tried) -> None:
    """Some layers drop by a function and their own mode, which checkpointing switches."""
    model = LanguageModel.load(tried.folder, CPU)
    checkpoint_gradients(model.model)
    for _ in range(2):
        found = model.logprobs(pack(TEXTS, CPU), 1.0)
        torch.testing.assert_close(found, torch.cat([tried.logprobs(*text) for text in TEXTS]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("tried", ["gpt2", "jamba", "mixtral", "gemma3"], indirect=True)
def test_adapters_are_what_they_are_merged_to(tried: Tried) -> None:
    """Layers that keep their matrix the other way round, and code that reads a layer's weight itself, among them."""
    model = LanguageModel.load(tried.folder, CPU)
    before = dict(model.model.named_parameters())
    add_lora(model.model, 2, seed=0)
    adapters = {name: one for name, one in model.model.named_modules() if isinstance(one, LoraLinear)}
    assert all(f"{name}.weight" in before for name in adapters)
    assert not any("vision" in name or name.endswith("lm_head") for name in adapters)
    batch = pack(TEXTS, CPU)
    own = torch.cat([tried.logprobs(*text) for text in TEXTS])
    torch.testing.assert_close(model.logprobs(batch, 1.0), own, rtol=0, atol=2e-5)
    for adapter in adapters.values():
        nn.init.normal_(adapter.up, std=0.3)
    adapted = model.logprobs(batch, 1.0)
    torch.autograd.backward(adapted.sum())
    assert all(one.up.grad is not None and one.up.grad.abs().max() > 0 for one in adapters.values())
    merge_lora(model.model)
    torch.testing.assert_close(model.logprobs(batch, 1.0), adapted, rtol=0, atol=1e-4)
    assert not torch.allclose(adapted, own, atol=1e-2)
