"""Log-probs of given tokens under a causal model, in batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from charter.inference.torch_model import final_logits, left_padded

# Rows times positions whose logits are held at once: 1024 of a 50,000-token vocabulary are 200 MB.
_LOGIT_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """``answer_ids`` after ``prompt_ids``; ``index`` is its place in the call."""

    index: int
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt_ids) + len(self.answer_ids)


@torch.inference_mode()
def next_token_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], choices: Sequence[int], pad_id: int
) -> Tensor:
    """Log-probs, float32 [prompts, choices], of each choice as the next token, over the whole vocabulary."""
    ids, mask = left_padded(prompts, pad_id, model.device)
    logprobs = final_logits(model, ids, mask, keep=1)[:, 0].log_softmax(dim=-1)
    return _finite(logprobs[:, torch.tensor(choices, device=logprobs.device)].cpu())


@torch.inference_mode()
def answer_logprobs(model: PreTrainedModel, answers: Sequence[Answer], pad_id: int) -> list[float]:
    """Sum of the log-probs of each answer's tokens after its prompt, in nats. No answer may be empty."""
    # The last token predicts nothing that is asked for, so it is not run.
    ids, mask = left_padded([[*a.prompt_ids, *a.answer_ids][:-1] for a in answers], pad_id, model.device)
    longest = max(len(answer.answer_ids) for answer in answers)
    logits = final_logits(model, ids, mask, keep=longest)
    targets, counted = left_padded([answer.answer_ids for answer in answers], pad_id, model.device)
    chosen = logits.gather(2, targets.unsqueeze(2)).squeeze(2) - logits.logsumexp(dim=-1)
    totals = _finite((chosen.double() * counted).sum(dim=1))
    return [float(total) for total in totals]


def _finite(logprobs: Tensor) -> Tensor:
    if not torch.isfinite(logprobs).all():
        raise FloatingPointError("the model's logits are not finite: its weights are broken")
    return logprobs


def batches_by_length(answers: Sequence[Answer], max_tokens: int) -> Iterator[list[Answer]]:
    """Group answers of similar length: at most ``max_tokens`` with padding, and bounded logits; at least one each.

    Long ones come first, so that a batch that does not fit in memory fails early.
    """
    batch: list[Answer] = []
    for answer in sorted(answers, key=lambda a: (a.length, len(a.answer_ids)), reverse=True):
        rows = [*batch, answer]
        padded = len(rows) * max(row.length for row in rows)
        positions = len(rows) * max(len(row.answer_ids) for row in rows)
        if batch and (padded > max_tokens or positions > _LOGIT_POSITIONS):
            yield batch
            rows = [answer]
        batch = rows
    if batch:
        yield batch
