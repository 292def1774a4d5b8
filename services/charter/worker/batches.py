"""Episodes, and the padded micro-batches that the models read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charter.worker.ppo import token_mask


def by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows so that rows times the longest row of a group stay within ``budget`` tokens.

    Rows are taken longest first, so that rows of similar length share a group and little is padded, and the first group
    shows at once whether memory suffices. A row longer than the budget is a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    longest = 0
    for row in order:
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = lengths[row]
    return groups


@dataclass(frozen=True, slots=True)
class Episodes:
    """Sampled and scored answers of one PPO step.

    ``prompts`` and ``answers`` are token ids; an answer ends with EOS where the model ended it (``ended``).
    """

    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    # Bool [episodes].
    ended: Tensor
    # Preference score, float32 [episodes].
    scores: Tensor
    # Float32 [episodes, longest answer], 0 on padding.
    sampler_logprobs: Tensor

    @property
    def mask(self) -> Tensor:
        """True on answer tokens, bool [episodes, longest answer]."""
        lengths = torch.tensor([len(answer) for answer in self.answers])
        return token_mask(lengths, int(lengths.max()))

    @property
    def lengths(self) -> list[int]:
        """Tokens that a model reads for each episode."""
        return [len(prompt) + len(answer) - 1 for prompt, answer in zip(self.prompts, self.answers, strict=True)]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some episodes as a model reads them."""

    rows: list[int]
    # Prompt and answer without the answer's last token, right-padded with 0; int64 [rows, tokens].
    input_ids: Tensor
    # True where the hidden state predicts an answer token; bool [rows, tokens].
    states: Tensor
    # The answers' tokens, row after row; int64 [answer tokens].
    targets: Tensor


def collate(episodes: Episodes, rows: Sequence[int], device: torch.device) -> MicroBatch:
    """Put the chosen episodes side by side."""
    lengths = episodes.lengths
    width = max(lengths[row] for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    states = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        prompt, answer = episodes.prompts[row], episodes.answers[row]
        input_ids[place, : lengths[row]] = torch.tensor([*prompt, *answer[:-1]])
        states[place, len(prompt) - 1 : lengths[row]] = True
    targets = torch.tensor([token for row in rows for token in episodes.answers[row]])
    return MicroBatch(list(rows), input_ids.to(device), states.to(device), targets.to(device))


def scatter(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of answer tokens, row after row, put back in their places: [answer tokens] -> [rows, longest answer]."""
    padded = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    padded[mask] = flat
    return padded
