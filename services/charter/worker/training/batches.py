"""Episodes, and the micro-batches that the models read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charter.inference.local.prefix_tree import Segment, Wanted, side_by_side, whole_tree


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


def token_mask(lengths: Tensor, width: int) -> Tensor:
    """True on the first ``lengths[i]`` tokens of row i; int64 [episodes] -> bool [episodes, width]."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Episodes:
    """Sampled and scored answers of one PPO step.

    ``prompts`` and ``answers`` are token ids; an answer ends with EOS where the model ended it (``ended``). Answers to
    the same prompt are neighbours.
    """

    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    # Number of the prompt in its step that each answers, from 0; int64 [episodes].
    groups: Tensor
    # Bool [episodes].
    ended: Tensor
    # Of the step's reward, or of online DPO P(it is the better one of its pair); float32 [episodes].
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
class TrainingSequence:
    """Tokens that a model reads, and those that it is to predict somewhere among them."""

    ids: Sequence[int]
    # Places of ``ids`` behind which something is predicted, ascending.
    states: Sequence[int]
    # The token that is predicted behind each of them: mostly the next that is read.
    targets: Sequence[int]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some sequences as a model reads them: packed, on a CPU what several begin with only once.

    In reinforcement learning they are answers after their prompts, and the answers' tokens are the targets.
    """

    # Int64 [1, tokens].
    input_ids: Tensor
    # Of each token in its sequence, int64 [1, tokens].
    positions: Tensor
    # Which of these tokens see which.
    segments: Sequence[Segment]
    # Places whose hidden state predicts a target, sequence after sequence; int64 [targets].
    states: Tensor
    # Sequence after sequence; int64 [targets].
    targets: Tensor
    # What is read of each sequence, from the first state that is wanted on.
    sequences: Sequence[Wanted]
    # Which states of ``sequences``, one behind the other, are wanted; int64 [targets]. None = all.
    kept: Tensor | None = None


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> MicroBatch:
    """Put prompts with their answers, token ids, one behind the other; the last token of an answer is not read."""
    return pack_sequences(
        [
            TrainingSequence([*prompt, *answer[:-1]], range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer)
            for prompt, answer in pairs
        ],
        device,
    )


def pack_sequences(sequences: Sequence[TrainingSequence], device: torch.device) -> MicroBatch:
    """Put sequences, each with at least one target, one behind the other."""
    read = [Wanted(index, one.ids, one.states[0]) for index, one in enumerate(sequences)]
    # The kernels of GPUs are fast without a mask only, which what is shared would need.
    tree = whole_tree(read) if device.type == "cpu" else side_by_side(read)
    states: list[int] = []
    kept: list[int] = []
    begun = 0
    for index, one in enumerate(sequences):
        first, places = one.states[0], tree.places[index]
        states += [places[state - first] for state in one.states]
        kept += [begun + state - first for state in one.states]
        begun += len(places)
    targets = [token for one in sequences for token in one.targets]
    input_ids, positions = (torch.tensor([values], device=device) for values in (tree.ids, tree.depths))
    places_of_states, wanted = (torch.tensor(values, device=device) for values in (states, targets))
    every = len(kept) == begun
    return MicroBatch(
        input_ids,
        positions,
        tree.segments,
        places_of_states,
        wanted,
        read,
        None if every else torch.tensor(kept, device=device),
    )


def collate(episodes: Episodes, rows: Sequence[int], device: torch.device) -> MicroBatch:
    """The chosen episodes as a micro-batch."""
    return pack([(episodes.prompts[row], episodes.answers[row]) for row in rows], device)


def scatter(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of answer tokens, row after row, put back in their places: [answer tokens] -> [rows, longest answer]."""
    padded = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    padded[mask] = flat
    return padded
