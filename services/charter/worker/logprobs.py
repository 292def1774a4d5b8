"""Log-probs of tokens from hidden states, without ever holding [tokens, vocabulary] for all tokens."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Logits held at once: 64 MiB of float32.
_LOGITS_AT_ONCE = 16 * 1024 * 1024


class _TokenLogprobs(torch.autograd.Function):
    """``log softmax(h W^T / T)[target]``. The backward pass computes each block of logits again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """[tokens, width], [vocabulary, width], int64 [tokens] -> [tokens]."""
        logprobs = torch.empty(len(targets), device=hidden.device)
        normalisers = torch.empty_like(logprobs)
        for rows in _blocks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], weight, temperature)
            normalisers[rows] = logits.logsumexp(dim=1)
            logprobs[rows] = logits.gather(1, targets[rows].unsqueeze(1)).squeeze(1) - normalisers[rows]
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.temperature = temperature
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """``d logp / d logits = (one-hot(target) - softmax) / T``, block by block."""
        (gradient,) = gradients
        hidden, weight, targets, normalisers = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        for rows in _blocks(len(targets), weight.shape[0]):
            scale = (gradient[rows] / ctx.temperature).unsqueeze(1)
            block = _logits(hidden[rows], weight, ctx.temperature)
            block.sub_(normalisers[rows].unsqueeze(1)).exp_().mul_(-scale)
            block.scatter_add_(1, targets[rows].unsqueeze(1), scale)
            block = block.to(weight.dtype)
            hidden_gradient[rows] = block @ weight
            weight_gradient.addmm_(block.T, hidden[rows])
        return hidden_gradient, weight_gradient, None, None


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-prob in nats of each target token, float32 [tokens], with gradients to ``hidden`` and ``weight``.

    Args:
        hidden: final hidden state that predicts each target, [tokens, width].
        weight: of the language-model head, [vocabulary, width].
        targets: int64 [tokens].
        temperature: logits are divided by it.
    """
    logprobs: Tensor = _TokenLogprobs.apply(hidden, weight, targets, temperature)  # type: ignore[no-untyped-call]
    return logprobs


@torch.no_grad()
def token_entropies(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of each next-token distribution, float32 [tokens]; arguments as ``token_logprobs``."""
    entropies = torch.empty(hidden.shape[0], device=hidden.device)
    for rows in _blocks(hidden.shape[0], weight.shape[0]):
        logprobs = _logits(hidden[rows], weight, temperature).log_softmax(dim=1)
        entropies[rows] = -(logprobs.exp() * logprobs).sum(dim=1)
    return entropies


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _blocks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, _LOGITS_AT_ONCE // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))
