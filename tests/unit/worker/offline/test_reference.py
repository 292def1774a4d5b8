"""The starting model's log-probs are read again for the very sequences of which they are, and for no others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from charter.worker.offline.reference import keep, read_kept
from charter.worker.training.batches import TrainingSequence

ONE = TrainingSequence([1, 2, 3], range(1, 3), [3, 4])
THERE = {"train": [ONE, replace(ONE, ids=[5, 2, 3])], "held_out": [ONE]}
LOGPROBS = {"train": torch.tensor([-1.0, -2.0], dtype=torch.double), "held_out": torch.tensor([-3.0])}


def test_they_are_kept(tmp_path: Path) -> None:
    assert read_kept(tmp_path / "it", THERE) == {}
    keep(tmp_path / "it", THERE, LOGPROBS)
    found = read_kept(tmp_path / "it", {name: list(every) for name, every in THERE.items()})
    assert found.keys() == LOGPROBS.keys()
    assert all(torch.equal(found[name], values) for name, values in LOGPROBS.items())


@pytest.mark.parametrize(
    "now",
    [
        {"train": THERE["train"][::-1], "held_out": [ONE]},
        {"train": [ONE, ONE], "held_out": [ONE]},
        {"train": [replace(ONE, targets=[3, 5]), THERE["train"][1]], "held_out": [ONE]},
        {"train": [replace(ONE, states=[0, 2]), THERE["train"][1]], "held_out": [ONE]},
        {"train": [ONE], "held_out": [THERE["train"][1], ONE]},
    ],
    ids=["another order", "another prompt", "another answer", "another place", "held out"],
)
def test_those_of_other_labels_are_not_read(tmp_path: Path, now: Mapping[str, Sequence[TrainingSequence]]) -> None:
    """As many as before: a file of labels may be changed between two attempts."""
    keep(tmp_path / "it", THERE, LOGPROBS)
    assert read_kept(tmp_path / "it", now) == {}
