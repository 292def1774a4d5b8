"""The judge's methods on models whose tokenizers put a space before a text, as Llama 2's and Mistral's do."""

import math
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.inference.engine import ChoiceLogprobs, Prompt
from charter.inference.local.engine import TransformersEngine
from charter.judge.judging import unsupported_methods, why_unable_to_rate
from charter.judge.methods import choice, contrast, verdict
from charter.judge.pairs import Pair, Question
from charter.judge.rating import RatedAnswer, rate
from charter.spec.constitution import Principle

from tests.support.chat_templates import ALL, GEMMA, LLAMA_2, ZEPHYR, sentencepiece_tokenizer
from tests.support.tiny import make_talkative_model

PRINCIPLE = Principle(
    id="kind",
    dimension="helpful",
    compare="Which response is kinder?",
    critique="What is unkind?",
    revise="Be kind.",
    follow="Be kind.",
    oppose="Be rude.",
)
ASKED = (ChatMessage("user", "Hi"),)
QUESTION = Question(Pair(ASKED, "Good day.", "Go away."), PRINCIPLE)
# What a model writes in these templates: a letter behind "(", a digit behind "Rating: ", and a first word that Llama 2
# parts from the user's turn by a space and Zephyr by a line end.
DIGITS = ("▁", *"0123456789")
WRITES = {LLAMA_2: ("A", "B", "▁Yes", "▁No", *DIGITS), ZEPHYR: ("A", "B", "Yes", "No", *DIGITS)}


@pytest.mark.parametrize("template", WRITES, ids=["llama-2", "zephyr"])
async def test_every_method_reads_the_token_that_the_model_writes(template: str, tmp_path: Path) -> None:
    make_talkative_model(tmp_path, sentencepiece_tokenizer(template), WRITES[template])
    engine = TransformersEngine(str(tmp_path))
    await engine.start()
    for method in (choice, verdict, contrast):
        (finding,) = await method.find(engine, [QUESTION])
        assert not finding.failure
        assert len(finding.evidence) == 2
    (rating,) = await rate(engine, [RatedAnswer(ASKED, "Good day.", PRINCIPLE)])
    assert math.fsum(rating.distribution) == pytest.approx(1.0)
    assert min(rating.distribution) > 0.001
    assert await unsupported_methods(engine) == {}
    assert await why_unable_to_rate(engine) == ""
    for prefix, options in (("The better response is (", "AB"), ("", ("Yes", "No")), ("Rating: ", "123456789")):
        (found,) = await engine.choice_logprobs([Prompt(ASKED, prefix)], options)
        assert isinstance(found, ChoiceLogprobs)
        assert math.fsum(map(math.exp, found.logprobs)) > 0.6 * len(options) / len(WRITES[template])
    await engine.stop()


async def test_what_a_model_cannot_be_asked_is_known_at_the_start(tmp_path: Path) -> None:
    """Letters and digits that are several tokens here; an answer that is never an option."""
    tokenizer = sentencepiece_tokenizer(GEMMA)
    tokenizer.add_tokens(["response is (A", "ting: 1"])
    make_talkative_model(tmp_path, tokenizer, ["x", "y"])
    engine = TransformersEngine(str(tmp_path))
    await engine.start()
    reasons = await unsupported_methods(engine)
    assert reasons.keys() == {"choice", "choice+reasoning", "verdict"}
    assert "choice 'A' is no token of its own" in reasons["choice"]
    assert "behind 'The better response is ('" in reasons["choice"]
    assert "the model gives the options Yes, No a probability of" in reasons["verdict"]
    assert "choice '1' is no token of its own" in await why_unable_to_rate(engine)
    await engine.stop()


@pytest.mark.parametrize("template", ALL.values(), ids=ALL)
async def test_contrast_depends_on_the_principle_whatever_the_template_does_with_system_turns(
    template: str, tmp_path: Path
) -> None:
    make_talkative_model(tmp_path, sentencepiece_tokenizer(template), ["x"])
    engine = TransformersEngine(str(tmp_path))
    await engine.start()
    (finding,) = await contrast.find(engine, [QUESTION])
    assert abs(finding.evidence[0] - finding.evidence[1]) > 1e-6
    await engine.stop()
