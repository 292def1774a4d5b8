"""Episodes, and the micro-batches that the models read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charter.worker.formulas import token_mask


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows so that the tokens of a group stay within ``budget``: longest first, each where there is room first.

    A row longer than the budget is a group of its own.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = next((place for place, free in enumerate(room) if free >= lengths[row]), None)
        if place is None:
            groups.append([row])
            room.append(budget - lengths[row])
        else:
            groups[place].append(row)
            room[place] -= lengths[row]
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
    # Versions between the weights that wrote each token and those that learn from it, int64 [episodes, longest answer].
    ages: Tensor

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
    """Some episodes as a model reads them: packed, one behind the other."""

    rows: list[int]
    # Prompt and answer without the answer's last token, of every episode; int64 [1, tokens].
    input_ids: Tensor
    # Tokens of each episode.
    lengths: list[int]
    # Places whose hidden state predicts an answer token; int64 [answer tokens].
    states: Tensor
    # The answers' tokens, episode after episode; int64 [answer tokens].
    targets: Tensor


def single(prompt: Sequence[int], answer: Sequence[int], device: torch.device) -> MicroBatch:
    """One answer after its prompt, both token ids."""
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=device)
    states = torch.arange(len(prompt) - 1, ids.shape[1], device=device)
    return MicroBatch([0], ids, [ids.shape[1]], states, torch.tensor(answer, device=device))


def collate(episodes: Episodes, rows: Sequence[int], device: torch.device) -> MicroBatch:
    """Put the chosen episodes one behind the other."""
    tokens: list[int] = []
    states: list[int] = []
    targets: list[int] = []
    for row in rows:
        prompt, answer = episodes.prompts[row], episodes.answers[row]
        tokens += [*prompt, *answer[:-1]]
        states += range(len(tokens) - len(answer), len(tokens))
        targets += answer
    lengths = [episodes.lengths[row] for row in rows]
    input_ids, places, wanted = (torch.tensor(values, device=device) for values in (tokens, states, targets))
    return MicroBatch(list(rows), input_ids.unsqueeze(0), lengths, places, wanted)


def scatter(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of answer tokens, row after row, put back in their places: [answer tokens] -> [rows, longest answer]."""
    padded = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    padded[mask] = flat
    return padded
