"""What the starting model says of the items: its log-probs are the reference, asked for once and kept."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from charter.atomic_files import replacing
from charter.worker.context import Run
from charter.worker.offline.items import LabelledItem
from charter.worker.supervised.corpus import Corpus, Item
from charter.worker.supervised.learner import Learner
from charter.worker.training import checkpoint
from charter.worker.training.batches import TrainingSequence

_FILE = "reference.safetensors"
# In the file, whose log-probs they are.
_OF = "sequences"
_PARTS = ("train", "held_out")
# Sequences between two looks at whether the run is to stop.
_AT_ONCE = 1000
_NAMES = {"train": "answers to learn from", "held_out": "answers held out"}


def with_reference(run: Run, corpus: Corpus, folder: Path) -> Corpus:
    """The items with the log-probs of the learner, which is still the starting model.

    They are in a file of ``folder``, which an attempt that goes on from a checkpoint beside it reads, unless the labels
    are others by now. Raises ``Cancelled`` when the run is to stop.
    """
    sequences = {part: [one for item in _items(corpus, part) for one in item.sequences] for part in _PARTS}
    kept = read_kept(folder / _FILE, sequences) if checkpoint.complete(folder) else {}
    if not kept:
        kept = {part: _asked(run, found, part) for part, found in sequences.items()}
        keep(folder / _FILE, sequences, kept)
    values = {part: iter(found.tolist()) for part, found in kept.items()}
    return {
        name: replace(
            one,
            train=tuple(_with(item, values["train"]) for item in one.train),
            held_out=tuple(_with(item, values["held_out"]) for item in one.held_out),
        )
        for name, one in corpus.items()
    }


def keep(file: Path, sequences: Mapping[str, Sequence[TrainingSequence]], logprobs: Mapping[str, Tensor]) -> None:
    """Write the log-probs of sequences, by part and in their order."""
    with replacing(file, durable=True) as temporary:
        save_file(dict(logprobs), temporary, {_OF: _digest(sequences)})


def read_kept(file: Path, sequences: Mapping[str, Sequence[TrainingSequence]]) -> dict[str, Tensor]:
    """What ``keep`` wrote of these very sequences; nothing where it wrote of others, or not at all."""
    if not file.is_file():
        return {}
    with safe_open(file, "pt") as kept:
        if (kept.metadata() or {}).get(_OF) != _digest(sequences):
            return {}
        return {part: kept.get_tensor(part) for part in sequences}


def _digest(sequences: Mapping[str, Sequence[TrainingSequence]]) -> str:
    found = hashlib.sha256()
    for part, every in sequences.items():
        found.update(f"{part} {len(every)}".encode())
        for one in every:
            for numbers in (one.ids, one.states, one.targets):
                found.update(len(numbers).to_bytes(8) + array("q", numbers).tobytes())
    return found.hexdigest()


def _items(corpus: Corpus, part: str) -> Iterator[Item]:
    for one in corpus.values():
        yield from getattr(one, part)


def _with(item: Item, values: Iterator[float]) -> Item:
    assert isinstance(item, LabelledItem)
    return replace(item, reference=tuple(next(values) for _ in item.sequences))


def _asked(run: Run, sequences: Sequence[TrainingSequence], part: str) -> Tensor:
    # What is held out is asked for as it is measured, all at once: before the first step nothing has changed at all.
    size = _AT_ONCE if part == "train" else max(1, len(sequences))
    found: list[float] = []
    for start in range(0, len(sequences), size):
        run.reporter.raise_if_stopped()
        found += run.leader.with_learner(Learner.summed_logprobs, sequences[start : start + size])
        run.reporter.report(0, 0, text=f"the starting model has read {len(found)} of {len(sequences)} {_NAMES[part]}")
    return torch.tensor(found, dtype=torch.double)
