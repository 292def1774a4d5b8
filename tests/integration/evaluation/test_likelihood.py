"""Likelihoods of answers under a model, through a real policy service, against the model itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.policy.server import PolicyConfig, build
from charter.worker.clients.failed import Failed
from charter.worker.errors import RunError
from charter.worker.evaluation.likelihood import Likelihood, Said, likelihoods
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.harness import running

PROMPTS = [TaskPrompt(f"p{place}", (ChatMessage("user", f"How are you, {place}?"),), "") for place in range(3)]
TEXTS = ("Fine, thank you.", "ugh", "")


@pytest.fixture(scope="module")
def address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    staging = tmp_path_factory.mktemp("policy")
    with running(build(PolicyConfig(str(tiny_model), staging, "transformers", {}))) as addresses:
        yield addresses.main


def direct(model: Path, prompt: TaskPrompt, text: str) -> tuple[float, int]:
    """Nats and tokens without the service."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [{"role": one.role, "content": one.content} for one in prompt.messages]
    before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids + answer])).logits[0]
    logprobs = logits.log_softmax(dim=-1)[len(ids) - 1 : -1].gather(1, torch.tensor(answer).view(-1, 1).long())
    return -float(logprobs.sum()), len(answer)


def test_nats_are_those_of_the_model(address: str, tiny_model: Path) -> None:
    items = [Said(f"m{place}", prompt, 0, text) for prompt in PROMPTS for place, text in enumerate(TEXTS)]
    found = dict(likelihoods(address, items, 0))
    assert list(found) == items
    for item, one in found.items():
        assert isinstance(one, Likelihood)
        nats, tokens = direct(tiny_model, item.prompt, item.text)
        assert one.tokens == tokens
        assert one.nats == pytest.approx(nats, abs=1e-3)


def test_an_answer_that_does_not_fit_costs_one(address: str) -> None:
    items = [Said("a", PROMPTS[0], 0, "Fine."), Said("b", PROMPTS[0], 0, "very long " * 5000)]
    (_, fits), (_, too_long) = likelihoods(address, items, 0)
    assert isinstance(fits, Likelihood)
    assert isinstance(too_long, Failed)
    assert too_long.kind == "too_long"


def test_other_weights_are_refused(address: str) -> None:
    with pytest.raises(RunError, match="something sends weights to it"):
        list(likelihoods(address, [Said("a", PROMPTS[0], 0, "Fine.")], 3))
