"""Blockwise log-probs, their gradients and entropies against torch's own log_softmax."""

import pytest
import torch
from charter.worker.training import logprobs

TOKENS, WIDTH, VOCABULARY = 23, 12, 37


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five tokens, the last one shorter."""
    monkeypatch.setattr(logprobs, "_LOGITS_AT_ONCE", 5 * VOCABULARY)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_values_and_gradients_are_those_of_log_softmax(temperature: float) -> None:
    hidden, weight, targets = inputs()
    upstream = torch.randn(TOKENS, generator=torch.Generator().manual_seed(4))
    expected = torch.log_softmax(hidden @ weight.T / temperature, dim=1)[torch.arange(TOKENS), targets]
    expected_gradients = torch.autograd.grad(expected, (hidden, weight), upstream)
    got = logprobs.token_logprobs(hidden, weight, targets, temperature)
    gradients = torch.autograd.grad(got, (hidden, weight), upstream)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_and_their_gradients(temperature: float) -> None:
    """Both outputs at once, each with its own upstream gradient."""
    hidden, weight, targets = inputs()
    upstream = torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(5))
    found = (hidden @ weight.T / temperature).log_softmax(dim=1)
    expected = (found[torch.arange(TOKENS), targets], -(found.exp() * found).sum(dim=1))
    expected_gradients = torch.autograd.grad(expected, (hidden, weight), tuple(upstream))
    got = logprobs.token_logprobs_and_entropies(hidden, weight, targets, temperature)
    gradients = torch.autograd.grad(got, (hidden, weight), tuple(upstream))
    for one, other in zip((*got, *gradients), (*expected, *expected_gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_target_gives_no_logprob() -> None:
    hidden, weight, targets = inputs()
    assert logprobs.token_logprobs(hidden[:0], weight, targets[:0], 1.0).shape == (0,)


def test_bfloat16_is_for_the_matrix_products_alone() -> None:
    """Results and gradients are float32 and those of the rounded inputs; the softmax is not rounded."""
    hidden, weight, targets = inputs()
    got = logprobs.token_logprobs(hidden, weight, targets, 0.7, torch.bfloat16)
    rounded = hidden.detach().bfloat16().float(), weight.detach().bfloat16().float()
    logits = (rounded[0] @ rounded[1].T).bfloat16().float() / 0.7
    torch.testing.assert_close(got, logits.log_softmax(dim=1)[torch.arange(TOKENS), targets], rtol=0, atol=0.05)
    upstream = torch.randn(TOKENS, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad(got, (hidden, weight), upstream)
    plain = torch.autograd.grad(logprobs.token_logprobs(hidden, weight, targets, 0.7), (hidden, weight), upstream)
    for one, other in zip(gradients, plain, strict=True):
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
