"""Steps of DPO and KTO against loops in plain torch written from the papers, and on two ranks against one."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.worker.offline.items import ComparedAnswers, LabelledItem, RatedAnswer
from charter.worker.offline.kto import kto_loss, reference_point
from charter.worker.supervised.learner import Learner
from charter.worker.training import ranks
from charter.worker.training.batches import TrainingSequence
from charter.worker.training.lora import merged_tensors
from charter.worker.training.models import named_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.labelled import compared, dpo, kto, rated, with_reference
from tests.support.rank_processes import on_ranks

RATE = 1e-3
# Float32 sums in another order, which Adam makes more of.
DIFFER = 1e-5
BETA, UP, DOWN = 0.3, 1.0, 1.5


def plain(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def logprob(model: Any, one: TrainingSequence) -> Tensor:
    """Of the whole answer, by the model's own forward pass."""
    logits = model(torch.tensor([list(one.ids)])).logits[0, list(one.states)]
    found: Tensor = logits.log_softmax(dim=1)[range(len(one.targets)), list(one.targets)].sum()
    return found


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


def dpo_by_the_paper(model: Any, reference: Any, batch: Sequence[ComparedAnswers]) -> Tensor:
    """Equation 7, each pair both ways by its soft label."""
    loss = torch.zeros(())
    for pair in batch:
        a, b = (logprob(model, one) - logprob(reference, one).detach() for one in pair.sequences)
        p = pair.probability_a
        loss = loss - p * torch.log(sigmoid(BETA * a - BETA * b)) - (1 - p) * torch.log(sigmoid(BETA * b - BETA * a))
    return loss / len(batch)


def kto_by_the_paper(model: Any, reference: Any, batch: Sequence[RatedAnswer]) -> Tensor:
    """Equations 7 and 8, and the estimate of the KL below them."""
    with torch.no_grad():
        mismatched = [logprob(model, one.sequences[1]) - logprob(reference, one.sequences[1]) for one in batch]
    z = max(0.0, float(sum(mismatched)) / len(batch))
    loss = torch.zeros(())
    for one in batch:
        r = logprob(model, one.sequences[0]) - logprob(reference, one.sequences[0]).detach()
        weight = UP if one.good else DOWN
        loss = loss + weight - weight * (sigmoid(BETA * (r - z)) if one.good else sigmoid(BETA * (z - r)))
    return loss / len(batch)


BY_THE_PAPER: dict[str, Any] = {"dpo": dpo_by_the_paper, "kto": kto_by_the_paper}


def make(method: str, model: Path, **values: Any) -> Learner[Any]:
    return dpo(model, BETA, **values) if method == "dpo" else kto(model, BETA, UP, DOWN, **values)


def items(method: str, seed: int = 0) -> list[Any]:
    return [*compared(seed)] if method == "dpo" else [*rated(seed)]


@pytest.mark.parametrize("method", BY_THE_PAPER)
def test_a_step_is_the_papers(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Loss and every gradient at the start and after a step, when the policy has moved; in several micro-batches."""
    monkeypatch.setattr(f"charter.worker.offline.{method}.BACKWARD_TOKENS", 40)
    theirs, reference = plain(tiny_model), plain(tiny_model)
    learner = make(method, tiny_model)
    batch = with_reference(learner, items(method))
    seen: dict[str, Tensor] = {}
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: one.grad.clone() for name, one in learner.actor.model.named_parameters()})
    )
    for _ in range(3):
        theirs.load_state_dict(learner.actor.model.state_dict())
        loss = BY_THE_PAPER[method](theirs, reference, batch)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        numbers = learner.update(batch, 5 * RATE)
        assert numbers["train_loss"] == pytest.approx(loss.item(), abs=DIFFER)
        assert numbers["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(seen[name], parameter.grad, rtol=0, atol=DIFFER, msg=f"gradient of {name}")
        theirs.zero_grad()
    # The KL was no longer 0, or its part in the loss would not have been seen.
    assert method == "dpo" or numbers["kl"] > 0.1


@pytest.mark.parametrize("method", BY_THE_PAPER)
def test_what_is_measured_is_the_papers(tiny_model: Path, method: str) -> None:
    reference = plain(tiny_model)
    learner = make(method, tiny_model)
    batch = with_reference(learner, items(method))
    before = learner.measure(batch)
    # Nothing has moved: every reward is 0 to the last bit, and no answer of a pair leads.
    assert {one.figures["reward_accuracy"] for one in before} == {0.5}
    learner.update(batch, 5 * RATE)
    theirs = plain(tiny_model)
    theirs.load_state_dict(learner.actor.model.state_dict())
    found = learner.measure(batch)
    with torch.no_grad():
        loss = BY_THE_PAPER[method](theirs, reference, batch).item()
        ratios = [[float(logprob(theirs, s) - logprob(reference, s)) for s in one.sequences] for one in batch]
    assert sum(one.loss for one in found) / len(found) == pytest.approx(loss, abs=DIFFER)
    for one, (first, second), item in zip(found, ratios, batch, strict=True):
        if method == "kto":
            name = "reward_desirable" if item.good else "reward_undesirable"
            assert one.figures[name] == pytest.approx(BETA * first, abs=1e-4)
            assert one.figures["kl"] == pytest.approx(second, abs=1e-4)
            continue
        chosen, rejected = (first, second) if item.probability_a > 0.5 else (second, first)
        assert one.figures["reward_chosen"] == pytest.approx(BETA * chosen, abs=1e-4)
        assert one.figures["reward_rejected"] == pytest.approx(BETA * rejected, abs=1e-4)
        assert one.figures["reward_margin"] == pytest.approx(BETA * (chosen - rejected), abs=1e-4)
        assert one.figures["reward_accuracy"] == float(chosen > rejected)
        likelihoods = [logprob(theirs, s).item() for s in item.sequences]
        assert one.figures["ranking_accuracy"] == float((likelihoods[0] > likelihoods[1]) == (item.probability_a > 0.5))


def test_the_reference_point_is_never_negative() -> None:
    assert reference_point([1.0, 2.0, 0.0]) == 1.0
    assert reference_point([-1.0, 0.5]) == 0.0


def test_kto_values_by_hand() -> None:
    """A good answer at z_0 is worth lambda_D / 2, one far above it all of lambda_D; a bad one the other way round."""
    ratios, good = torch.tensor([2.0, 2.0, 50.0, 50.0, 3.0]), torch.tensor([True, False, True, False, True])
    found = kto_loss(ratios, good, 2.0, beta=0.5, desirable_weight=1.2, undesirable_weight=0.8).tolist()
    assert found == pytest.approx([0.6, 0.4, 0.0, 0.8, 1.2 * (1 - 1 / (1 + math.exp(-0.5)))], abs=1e-6)


RANK_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo with lora": ("dpo", {"lora_rank": 2}),
    "kto": ("kto", {}),
}


def go(model: Path, folder: Path) -> None:
    """Steps of each case and a measurement."""
    for case, (method, values) in RANK_CASES.items():
        learner = make(method, model, **values)
        batch: list[LabelledItem] = with_reference(learner, items(method))
        steps = [learner.update(batch[:5], RATE), learner.update(batch[2:], RATE)]
        # Fewer than ranks: one rank computes what must not count.
        steps.append(learner.update(batch[:1], RATE))
        measured = [one._asdict() for one in learner.measure(batch)]
        tensors = ranks.whole(named_tensors(learner.actor.model))
        if ranks.rank() == 0:
            tensors = merged_tensors(learner.actor.model, tensors)
            save_file({name: one.contiguous().clone() for name, one in tensors.items()}, folder / f"{case}.safetensors")
            (folder / f"{case}.json").write_text(json.dumps({"steps": steps, "measured": measured}))


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
    for mine, theirs in zip(two["measured"], one["measured"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["figures"] == pytest.approx(theirs["figures"], abs=1e-3)
    expected = load_file(folders[0] / f"{case}.safetensors")
    for name, tensor in load_file(folders[1] / f"{case}.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=5e-5, msg=f"{name} differs")
