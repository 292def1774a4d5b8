"""Log-probs of tokens from hidden states, without ever holding [tokens, vocabulary] for all tokens."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Logits held at once: 64 MiB of float32.
_LOGITS_AT_ONCE = 16 * 1024 * 1024


class _TokenStatistics(torch.autograd.Function):
    """Log-prob of the target and, on request, entropy of each token's distribution ``softmax(h W^T / T)``.

    The backward pass computes each block of logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        precision: torch.dtype,
        entropies_too: bool,
    ) -> tuple[Tensor, Tensor]:
        """[tokens, width], [vocabulary, width], int64 [tokens] -> two of [tokens]; entropies are [0] unless wanted."""
        hidden, weight = hidden.to(precision), weight.to(precision)
        logprobs = torch.empty(len(targets), device=hidden.device)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.empty(len(targets) if entropies_too else 0, device=hidden.device)
        for rows in _blocks(len(targets), weight.shape[0]):
            logits = _logits(hidden[rows], weight, temperature)
            normalisers[rows] = logits.logsumexp(dim=1)
            logprobs[rows] = logits.gather(1, targets[rows].unsqueeze(1)).squeeze(1) - normalisers[rows]
            if entropies_too:
                logits.sub_(normalisers[rows].unsqueeze(1))
                entropies[rows] = -torch.linalg.vecdot(logits.exp(), logits)
        ctx.save_for_backward(hidden, weight, targets, normalisers, entropies)
        ctx.temperature = temperature
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        """Block by block, with p the softmax and H its entropy; gradients are float32.

        ``d logp / d logits = (one-hot(target) - p) / T`` and ``d H / d logits = -p (log p + H) / T``.
        """
        logprob_gradient, entropy_gradient = gradients
        hidden, weight, targets, normalisers, entropies = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden, dtype=torch.float32)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _blocks(len(targets), weight.shape[0]):
            scale = (logprob_gradient[rows] / ctx.temperature).unsqueeze(1)
            block = _logits(hidden[rows], weight, ctx.temperature).sub_(normalisers[rows].unsqueeze(1))
            if len(entropies):
                surprise = block + entropies[rows].unsqueeze(1)
                surprise.mul_((entropy_gradient[rows] / ctx.temperature).unsqueeze(1)).add_(scale)
                block = block.exp_().mul_(surprise).neg_()
            else:
                block = block.exp_().mul_(-scale)
            block.scatter_add_(1, targets[rows].unsqueeze(1), scale)
            block = block.to(weight.dtype)
            hidden_gradient[rows] = (block @ weight).float()
            if not ctx.needs_input_grad[1]:
                continue
            if weight.dtype == torch.float32:
                weight_gradient.addmm_(block.T, hidden[rows])
            else:
                weight_gradient += block.T @ hidden[rows]
        return hidden_gradient, (weight_gradient if ctx.needs_input_grad[1] else None), None, None, None, None


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, precision: torch.dtype = torch.float32
) -> Tensor:
    """Log-prob in nats of each target token, float32 [tokens], with gradients to ``hidden`` and ``weight``.

    Args:
        hidden: final hidden state that predicts each target, float32 [tokens, width].
        weight: of the language-model head, float32 [vocabulary, width].
        targets: int64 [tokens].
        temperature: logits are divided by it.
        precision: of the matrix products; softmax and everything after it is float32.
    """
    return _statistics(hidden, weight, targets, temperature, precision, False)[0]


def token_logprobs_and_entropies(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, precision: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Log-probs as ``token_logprobs`` and the entropy in nats of each distribution, both with gradients, [tokens]."""
    return _statistics(hidden, weight, targets, temperature, precision, True)


def statistics_of_logits(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies as ``token_logprobs_and_entropies``, from logits [tokens, vocabulary] that are there."""
    logprobs = (logits / temperature).log_softmax(dim=1)
    entropies = -torch.linalg.vecdot(logprobs.exp(), logprobs)
    return logprobs.gather(1, targets.unsqueeze(1)).squeeze(1), entropies


def _statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    precision: torch.dtype,
    entropies_too: bool,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _TokenStatistics.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, temperature, precision, entropies_too
    )
    return found


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _blocks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, _LOGITS_AT_ONCE // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))
