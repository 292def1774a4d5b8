"""The push of a label against automatic differentiation, and against what a fitted model has learned."""

from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.evaluation.influence import features, pushes
from charter.inference.preference_model import PreferenceModel, encode, soft_label_loss


def test_a_push_is_what_one_gradient_step_on_the_pair_does_to_the_score() -> None:
    """One step of size 1 of a linear head from zero, by autograd; scores less that of the average answer."""
    generator = torch.Generator().manual_seed(3)
    answer, a, b = (torch.randn(*shape, generator=generator).double() for shape in ((6,), (5, 6), (5, 6)))
    labels = torch.tensor([1.0, 0.0, 0.5, 0.9, 0.3]).double()
    found = pushes(answer, a, b, labels)
    average = torch.cat([a, b]).mean(dim=0)
    for pair in range(5):
        head = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        soft_label_loss((a[pair] @ head - b[pair] @ head)[None], labels[pair][None]).backward()  # type: ignore[no-untyped-call]
        assert head.grad is not None
        stepped = head.detach() - head.grad
        assert found[pair].item() == pytest.approx(float(answer @ stepped - average @ stepped))
    assert found[2] == 0.0


def test_features_are_those_of_each_text_alone(tiny_model: Path) -> None:
    """Whatever stands beside it in a batch, and cut at its beginning where it is too long."""
    model = PreferenceModel.from_causal_lm(tiny_model, seed=1).eval()
    prompt = [ChatMessage("user", "Is water wet?")]
    texts = [(prompt, "word " * count) for count in (3, 1, 40, 7, 0, 2, 5, 4, 9, 300)]
    found = features(model, texts)
    for (messages, answer), got in zip(texts, found, strict=True):
        ids = encode(model.tokenizer, messages, answer)[-model.max_context_tokens :]
        with torch.no_grad():
            expected = model.features([ids])[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_the_label_of_the_same_answer_pushes_most(tiny_model: Path) -> None:
    """An answer that a label refused is pushed down by that label more than by any of another answer."""
    model = PreferenceModel.from_causal_lm(tiny_model, seed=1).eval()
    prompt = [ChatMessage("user", "Is water wet?")]
    refused = ["xyzzy plugh", "1234567890 42", "(((((((((", "Yes, of course!"]
    for place, bad in enumerate(refused):
        read = features(model, [(prompt, bad), *((prompt, text) for one in refused for text in ("It is.", one))])
        push = pushes(read[0], read[1::2], read[2::2], torch.ones(len(refused)))
        assert push.argmin() == place
        assert push[place] < 0
