"""Steps on a tiny model against a loop in plain torch over a padded batch, and on two ranks against one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.worker.supervised import learner as learner_module
from charter.worker.supervised.corpus import Item
from charter.worker.supervised.learner import Measured, TokenLearner
from charter.worker.training import ranks
from charter.worker.training.batches import TrainingSequence
from charter.worker.training.lora import add_lora, merged_tensors
from charter.worker.training.models import LanguageModel, named_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.learners import CPU
from tests.support.rank_processes import on_ranks

RATE = 1e-3
# Float32 sums in another order, which Adam makes more of.
DIFFER = 1e-5


def make_learner(
    model: Path, *, lora_rank: int | None = None, longest_packed: int | None = None, **values: Any
) -> TokenLearner:
    def load(device: torch.device) -> LanguageModel:
        actor = LanguageModel.load(model, device)
        if lora_rank is not None:
            add_lora(actor.model, lora_rank, seed=0)
        return actor

    actor = ranks.load_sharded(load, CPU)
    if longest_packed is not None:
        actor.longest_packed = longest_packed
    return TokenLearner(actor, ranks.device(), "supervised", **values)


def sequences(seed: int = 0, count: int = 7) -> list[TrainingSequence]:
    """Of unequal lengths, with the targets in one piece or in two; the last one is another token than what is read."""
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int, most: int) -> int:
        return int(torch.randint(least, most, (), generator=generator))

    made = []
    for number in range(count):
        ids = [draw(3, 200) for _ in range(draw(6, 40))]
        first = draw(1, len(ids) - 3)
        states = [*range(first, first + 2), *range(first + 2 + number % 2, len(ids))]
        targets = [ids[state + 1] if state + 1 < len(ids) else 2 for state in states]
        made.append(TrainingSequence(ids, states, targets))
    # Two that begin alike, and one that is there twice.
    beginning = [5, *range(10, 30)]
    made[1] = TrainingSequence([*beginning, 7, 8], [3, 21, 22], [12, 8, 9])
    made[2] = TrainingSequence([*beginning, 9], [20, 21], [9, 2])
    return [*made, made[0]]


def items(batch: Sequence[TrainingSequence]) -> list[Item]:
    return [Item((one,)) for one in batch]


def losses(measured: Sequence[Measured]) -> list[float]:
    return [one.loss for one in measured]


def plain_loss(model: Any, batch: Sequence[TrainingSequence]) -> Tensor:
    """One padded batch through the model's own forward pass, with labels as the field has them."""
    width = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    labels = torch.full((len(batch), width), -100)
    mask = torch.zeros(len(batch), width, dtype=torch.int64)
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(list(one.ids))
        mask[row, : len(one.ids)] = 1
        labels[row, list(one.states)] = torch.tensor(list(one.targets))
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="mean")


CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "one by one": {"longest_packed": 0},
    "with checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_a_padded_loop(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Loss, every gradient and the weights after two steps; in several micro-batches of unequal numbers of targets."""
    monkeypatch.setattr(learner_module, "BACKWARD_TOKENS", 60)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, eps=1e-8, weight_decay=0.0)
    learner = make_learner(tiny_model, **CASES[case])
    # A model whose packed numbers were wrong would read one by one, without a word here.
    assert bool(learner.actor.longest_packed) == (case != "one by one")
    seen: dict[str, Tensor] = {}
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: one.grad.clone() for name, one in learner.actor.model.named_parameters()})
    )
    for step in range(2):
        batch = sequences(step)
        loss = plain_loss(plain, batch)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        numbers = learner.update(items(batch), RATE)
        assert numbers["train_loss"] == pytest.approx(loss.item(), abs=DIFFER)
        assert numbers["gradient_norm"] == pytest.approx(norm.item(), rel=DIFFER)
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(seen[name], parameter.grad, rtol=0, atol=DIFFER, msg=f"gradient of {name}")
        optimizer.step()
        optimizer.zero_grad()
    expected = dict(plain.named_parameters())
    for name, tensor in named_tensors(learner.actor.model).items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=5 * DIFFER, msg=name)


def test_what_is_measured_is_the_loss_of_each_sequence(tiny_model: Path) -> None:
    learner = make_learner(tiny_model)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    batch = sequences()
    with torch.no_grad():
        expected = [plain_loss(plain, [one]).item() * len(one.targets) for one in batch]
    assert losses(learner.measure(items(batch))) == pytest.approx(expected, abs=1e-4)


def test_it_samples_as_transformers_does(tiny_model: Path) -> None:
    """At a temperature of almost 0 what is most likely, for a model whose gradients are checkpointed too."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    prompt = [5, 60, 70]
    expected = plain.generate(torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, 3:]
    learner = make_learner(tiny_model, gradient_checkpointing=True)
    assert learner.sample(prompt, 6, 1e-4, seed=1) == expected.tolist()


RANK_CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora_rank": 2},
    "one by one": {"longest_packed": 9},
    "checkpointing": {"gradient_checkpointing": True},
}


def go(model: Path, folder: Path) -> None:
    """Two steps of each case, a measurement and a sample."""
    for case, values in RANK_CASES.items():
        learner = make_learner(model, **values)
        steps = [learner.update(items(sequences(step)), RATE) for step in range(2)]
        # Fewer sequences than ranks: one rank computes what must not count.
        steps.append(learner.update(items(sequences(9, count=3)[:1]), RATE))
        nats, sample = losses(learner.measure(items(sequences()))), learner.sample([5, 60, 70], 4, 1e-4, seed=1)
        tensors = ranks.whole(named_tensors(learner.actor.model))
        if ranks.rank() == 0:
            tensors = merged_tensors(learner.actor.model, tensors)
            save_file({name: one.contiguous().clone() for name, one in tensors.items()}, folder / f"{case}.safetensors")
            (folder / f"{case}.json").write_text(json.dumps({"steps": steps, "nats": nats, "sample": sample}))


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    go(tiny_model, one)
    on_ranks(2, go, tiny_model, two)
    return one, two


@pytest.mark.parametrize("case", RANK_CASES)
def test_two_ranks_learn_as_one(folders: tuple[Path, Path], case: str) -> None:
    one, two = (json.loads((folder / f"{case}.json").read_text()) for folder in folders)
    for mine, theirs in zip(two["steps"], one["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=2e-5)
    assert two["nats"] == pytest.approx(one["nats"], abs=1e-3)
    assert two["sample"] == one["sample"]
    expected = load_file(folders[0] / f"{case}.safetensors")
    for name, tensor in load_file(folders[1] / f"{case}.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=5e-5, msg=f"{name} differs")
