import math
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.inference.engine import ContextTooLongError, Finish, Prompt, Sampling, WeightMismatchError
from charter.inference.fake import EOS_ID, FakeEngine, InjectedFaultError

PROMPTS = [Prompt((ChatMessage("user", text),)) for text in ("Hi", "Why?")]


async def test_it_repeats_itself_and_samples_differ() -> None:
    first = [sample async for sample in FakeEngine().generate(PROMPTS, Sampling(100), 2)]
    second = [sample async for sample in FakeEngine().generate(PROMPTS, Sampling(100), 2)]
    assert first == second
    assert len({sample.text for sample in first}) == 4
    other_seed = [sample async for sample in FakeEngine().generate(PROMPTS, Sampling(100, seed=1), 2)]
    assert {s.text for s in other_seed} != {s.text for s in first}


async def test_samples_keep_the_contract() -> None:
    async for sample in FakeEngine().generate(PROMPTS, Sampling(20), 4):
        assert 0 < len(sample.token_ids) == len(sample.logprobs) <= 20
        assert (sample.finish is Finish.EOS) == (sample.token_ids[-1] == EOS_ID)
        assert sample.text.encode() == bytes(token for token in sample.token_ids if token != EOS_ID)


async def test_scores_keep_the_contract() -> None:
    engine = FakeEngine(max_context_tokens=100)
    long = Prompt((ChatMessage("user", "x" * 100),))
    choices = await engine.choice_logprobs([PROMPTS[0], long], ["A", "B"])
    assert not isinstance(choices[0], ContextTooLongError)
    assert sum(math.exp(value) for value in choices[0].logprobs) == pytest.approx(0.9)
    assert isinstance(choices[1], ContextTooLongError)
    answers = await engine.answer_loglikelihoods([(PROMPTS[0], "Yes."), (PROMPTS[0], ""), (long, "Yes.")])
    assert not isinstance(answers[0], ContextTooLongError)
    assert not isinstance(answers[1], ContextTooLongError)
    assert (answers[0].tokens, answers[1].tokens, answers[1].total) == (4, 0, 0.0)
    assert -4 < answers[0].total < 0
    assert isinstance(answers[2], ContextTooLongError)
    with pytest.raises(ContextTooLongError, match="item 1 "):
        await anext(engine.generate([PROMPTS[0], long], Sampling(5)))


async def test_faults_come_where_they_are_asked_for() -> None:
    engine = FakeEngine(fail_every=2)
    await engine.choice_logprobs(PROMPTS, ["A"])
    with pytest.raises(InjectedFaultError, match="call 2"):
        await engine.choice_logprobs(PROMPTS, ["A"])
    await engine.choice_logprobs(PROMPTS, ["A"])


async def test_it_refuses_what_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"nothing")
    with pytest.raises(WeightMismatchError):
        await FakeEngine().load_weights(tmp_path / "file", 1, "d")
