import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import (
    AnswerLogLikelihood,
    ChoiceLogprobs,
    ContextTooLongError,
    Finish,
    GeneratedSample,
    Prompt,
    Sampling,
    WeightMismatchError,
)
from charter.inference.local.engine import TransformersEngine
from charter.inference.local.sampling import draw
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoModelForCausalLM

from tests.support.chat_templates import LLAMA_2, sentencepiece_tokenizer
from tests.support.tiny import make_talkative_model

PROMPTS = [Prompt((ChatMessage("user", text),)) for text in ("Hi", "What is the capital of France?", "Why?" * 9)]


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(str(tiny_model))
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model)
    return model.eval()


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(str(tiny_model))


def token_logprobs(model: torch.nn.Module, ids: list[int], start: int, temperature: float = 1.0) -> list[float]:
    """Log-probs of ids[start:], one sequence, no padding, no cache, no batching."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double() / temperature
    table = torch.log(torch.softmax(logits, -1))
    return [float(table[place - 1, ids[place]]) for place in range(start, len(ids))]


async def collect(
    engine: TransformersEngine, sampling: Sampling, prompts: list[Prompt] = PROMPTS, n: int = 1
) -> dict[tuple[int, int], GeneratedSample]:
    return {(s.prompt_index, s.sample_index): s async for s in engine.generate(prompts, sampling, n)}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_logprobs_are_exact(
    engine: TransformersEngine, reference: torch.nn.Module, chat: ChatTokenizer, temperature: float
) -> None:
    samples = await collect(engine, Sampling(40, temperature=temperature), n=3)
    assert sorted(samples) == [(p, s) for p in range(3) for s in range(3)]
    for (prompt_index, _), sample in samples.items():
        assert list(sample.prompt_token_ids) == chat.prompt_ids(PROMPTS[prompt_index])
        ids = [*sample.prompt_token_ids, *sample.token_ids]
        expected = token_logprobs(reference, ids, len(sample.prompt_token_ids), temperature or 1.0)
        assert sample.logprobs == pytest.approx(expected, abs=2e-5)
        assert [(span.start, span.end, span.version) for span in sample.version_spans] == [
            (0, len(sample.token_ids), 0)
        ]


async def test_greedy_takes_the_most_likely_token(engine: TransformersEngine, reference: torch.nn.Module) -> None:
    sample = (await collect(engine, Sampling(12, temperature=0), PROMPTS[1:2]))[0, 0]
    ids = torch.tensor([sample.prompt_token_ids])
    expected = reference.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]  # type: ignore[operator]
    assert list(sample.token_ids) == expected.tolist()


async def test_answers_end_at_eos_or_at_the_limit(engine: TransformersEngine, chat: ChatTokenizer) -> None:
    samples = list((await collect(engine, Sampling(200, temperature=1.0, seed=3), n=8)).values())
    ended = [sample for sample in samples if sample.finish is Finish.EOS]
    assert ended
    for sample in ended:
        assert sample.token_ids[-1] == chat.eos_id
        assert chat.eos_id not in sample.token_ids[:-1]
        assert sample.text == chat.decode(sample.token_ids[:-1])
    for sample in (await collect(engine, Sampling(2, seed=1), n=8)).values():
        assert (sample.finish is Finish.LENGTH) == (sample.token_ids[-1] != chat.eos_id)
        assert len(sample.token_ids) == 2 or sample.finish is Finish.EOS


async def test_a_seeded_call_repeats_itself_whatever_else_runs(engine: TransformersEngine) -> None:
    seeded = Sampling(20, seed=7)
    alone = await collect(engine, seeded, n=2)
    crowded, _ = await asyncio.gather(collect(engine, seeded, n=2), collect(engine, Sampling(20), n=4))
    assert alone == crowded
    assert await collect(engine, Sampling(20, seed=8), n=2) != alone


async def test_a_seeded_prompt_draws_the_same_in_any_company(engine: TransformersEngine) -> None:
    """Where it stands in a call and what else is in it does not matter: another replica may be asked again."""
    first, second = (replace(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS[:2]))
    together = [sample async for sample in engine.generate([first, second], Sampling(20), 2)]
    alone = [sample async for sample in engine.generate([second], Sampling(20), 2)]
    assert {(s.sample_index, s.token_ids) for s in alone} == {
        (s.sample_index, s.token_ids) for s in together if s.prompt_index == 1
    }
    assert len({s.token_ids for s in alone}) == 2
    again = [sample async for sample in engine.generate([replace(second, seed=9)], Sampling(20), 2)]
    assert {s.token_ids for s in again} != {s.token_ids for s in alone}


async def test_small_batches_give_every_sample(tiny_model: Path) -> None:
    engine = TransformersEngine(str(tiny_model), max_batch_tokens=100)
    await engine.start()
    samples = await asyncio.gather(*(collect(engine, Sampling(10), n=3) for _ in range(4)))
    assert all(len(part) == 9 for part in samples)
    await engine.stop()


async def test_waiting_calls_share_a_batch(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = engine._sample_batch

    def counted(batch: list) -> None:  # type: ignore[type-arg]
        sizes.append(len(batch))
        original(batch)

    monkeypatch.setattr(engine, "_sample_batch", counted)
    await asyncio.gather(*(collect(engine, Sampling(5)) for _ in range(4)))
    assert sum(sizes) == 12
    assert len(sizes) < 4


async def test_a_prompt_that_does_not_fit_is_named_and_nothing_is_sampled(engine: TransformersEngine) -> None:
    long = Prompt((ChatMessage("user", "x" * 600),))
    with pytest.raises(ContextTooLongError, match="item 1 needs") as caught:
        await collect(engine, Sampling(5), [PROMPTS[0], long])
    assert caught.value.index == 1
    assert not engine._waiting


async def test_a_cancelled_call_gives_up_its_place(engine: TransformersEngine) -> None:
    async with aclosing(engine.generate(PROMPTS, Sampling(400, seed=1), 8)) as stream:
        async for _ in stream:
            break
    assert not engine._waiting
    assert len(await collect(engine, Sampling(3))) == 3


async def test_calls_under_way_fail_when_the_engine_stops(tiny_model: Path) -> None:
    engine = TransformersEngine(str(tiny_model), max_batch_tokens=400)
    await engine.start()
    stream = engine.generate(PROMPTS, Sampling(300), 50)
    await anext(stream)
    await engine.stop()
    with pytest.raises(RuntimeError, match="stopping"):
        async for _ in stream:
            pass


async def test_choice_logprobs_are_exact(
    engine: TransformersEngine, reference: torch.nn.Module, chat: ChatTokenizer
) -> None:
    long = Prompt((ChatMessage("user", "x" * 600),))
    results = await engine.choice_logprobs([*PROMPTS, long], ["A", "B"])
    assert isinstance(results[3], ContextTooLongError)
    assert results[3].index == 3
    for prompt, result in zip(PROMPTS, results[:3], strict=True):
        assert isinstance(result, ChoiceLogprobs)
        ids = chat.prompt_ids(prompt)
        expected = [token_logprobs(reference, [*ids, chat.choice_id(c)], len(ids))[0] for c in "AB"]
        assert result.logprobs == pytest.approx(expected, abs=2e-5)
        assert result.prompt_tokens == len(ids)
    with pytest.raises(ValueError, match="exactly one"):
        await engine.choice_logprobs(PROMPTS, ["yes", "no"])


@pytest.mark.parametrize("max_batch_tokens", [60, 16384])
async def test_answer_loglikelihoods_are_exact(
    tiny_model: Path, reference: torch.nn.Module, chat: ChatTokenizer, max_batch_tokens: int
) -> None:
    engine = TransformersEngine(str(tiny_model), max_batch_tokens=max_batch_tokens)
    await engine.start()
    items = [(prompt, answer) for prompt in PROMPTS for answer in ("Yes.", "", "I do not know. " * 3)]
    items.append((PROMPTS[0], "y" * 600))
    results = await engine.answer_loglikelihoods(items)
    assert isinstance(results[-1], ContextTooLongError)
    for (prompt, answer), result in zip(items[:-1], results[:-1], strict=True):
        assert isinstance(result, AnswerLogLikelihood)
        ids, answer_ids = chat.prompt_ids(prompt), chat.answer_ids(answer)
        expected = sum(token_logprobs(reference, ids + answer_ids, len(ids)))
        assert result.total == pytest.approx(expected, abs=1e-4)
        assert (result.tokens, result.prompt_tokens) == (len(answer_ids), len(ids))
    await engine.stop()


async def test_new_weights_are_served_at_once(
    engine: TransformersEngine, tiny_model: Path, tmp_path: Path, chat: ChatTokenizer
) -> None:
    torch.manual_seed(5)
    weights = {name: t + 0.05 * torch.randn_like(t) for name, t in load_file(tiny_model / "model.safetensors").items()}
    save_file(weights, tmp_path / "new.safetensors")
    before = await engine.answer_loglikelihoods([(PROMPTS[0], "Yes.")])
    await engine.load_weights(tmp_path / "new.safetensors", 4, "d" * 64)
    after = await engine.answer_loglikelihoods([(PROMPTS[0], "Yes.")])
    assert (engine.info().weight_version, engine.info().weight_digest) == (4, "d" * 64)

    changed = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    changed.load_state_dict(weights, strict=False)
    ids = chat.prompt_ids(PROMPTS[0])
    expected = sum(token_logprobs(changed, ids + chat.answer_ids("Yes."), len(ids)))
    assert isinstance(after[0], AnswerLogLikelihood)
    assert isinstance(before[0], AnswerLogLikelihood)
    assert after[0].total == pytest.approx(expected, abs=1e-4)
    assert abs(after[0].total - before[0].total) > 0.1
    sample = (await collect(engine, Sampling(3), PROMPTS[:1]))[0, 0]
    assert sample.version_spans[0].version == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "missing tensors: model.norm.weight"),
        ({"model.extra.weight": torch.zeros(2)}, "unknown tensors: model.extra.weight"),
        ({"model.norm.weight": torch.zeros(5)}, r"wrong shapes: model.norm.weight is \[5\], the model's is \[32\]"),
        ({"model.norm.weight": torch.zeros(32, dtype=torch.int64)}, r"not floating point: model.norm.weight"),
    ],
)
async def test_weights_that_do_not_fit_change_nothing(
    engine: TransformersEngine, tiny_model: Path, tmp_path: Path, change: dict, message: str
) -> None:
    weights = {name: tensor + 1.0 for name, tensor in load_file(tiny_model / "model.safetensors").items()} | change
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path / "bad.safetensors")
    before = await engine.answer_loglikelihoods([(PROMPTS[0], "Yes.")])
    with pytest.raises(WeightMismatchError, match=message):
        await engine.load_weights(tmp_path / "bad.safetensors", 1, "d")
    assert await engine.answer_loglikelihoods([(PROMPTS[0], "Yes.")]) == before
    assert engine.info().weight_version == 0


async def test_a_file_that_is_not_safetensors_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(WeightMismatchError, match="not a safetensors file"):
        await engine.load_weights(tmp_path / "bad.safetensors", 1, "d")


async def test_broken_weights_raise_instead_of_sampling_noise(
    engine: TransformersEngine, tiny_model: Path, tmp_path: Path
) -> None:
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    await engine.load_weights(tmp_path / "nan.safetensors", 1, "d")
    with pytest.raises(FloatingPointError, match="not finite"):
        await collect(engine, Sampling(3))
    with pytest.raises(FloatingPointError, match="not finite"):
        await engine.choice_logprobs(PROMPTS, ["A"])


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_follow_the_distribution(top_p: float) -> None:
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.1])
    rows = 20_000
    logits = probabilities.log().expand(rows, -1) * 2.0  # temperature 2 undoes the factor
    sampling = Sampling(1, temperature=2.0, top_p=top_p)
    tokens, logprobs = draw(logits, sampling, [torch.Generator().manual_seed(0)] * rows)
    assert logprobs == pytest.approx(probabilities[tokens].log(), abs=1e-6)
    # The nucleus of 0.6 is the two most likely tokens: 0.4 alone is less than 0.6.
    expected = torch.tensor([0.4, 0, 0.3, 0.2, 0.1] if top_p == 1 else [4 / 7, 0, 3 / 7, 0, 0]).double()
    counts = torch.bincount(tokens, minlength=5).double()
    assert int(counts[expected == 0].sum()) == 0
    seen = expected > 0
    assert stats.chisquare(counts[seen].numpy(), (expected[seen] / expected[seen].sum() * rows).numpy()).pvalue > 1e-3


async def test_on_a_cpu_sleep_and_wake_leave_the_model_as_it_is(engine: TransformersEngine) -> None:
    before = await collect(engine, Sampling(8, temperature=0.0))
    await engine.sleep()
    await engine.wake()
    after = await collect(engine, Sampling(8, temperature=0.0))
    assert {key: one.token_ids for key, one in after.items()} == {key: one.token_ids for key, one in before.items()}


async def test_special_tokens_inside_an_answer_are_in_its_text_as_it_grows_and_at_its_end(tmp_path: Path) -> None:
    """What is scored and shown is what the policy wrote."""
    engine = TransformersEngine(str(make_talkative_model(tmp_path, sentencepiece_tokenizer(LLAMA_2), ["<s>", "x"])))
    await engine.start()
    grown: list[str] = []
    samples = [
        sample
        async for sample in engine.generate(
            PROMPTS[:1], Sampling(12, seed=3), 4, on_text=lambda _prompt, _sample, text, _new: grown.append(text)
        )
    ]
    chat = ChatTokenizer.load(str(tmp_path))
    start = chat.tokenizer.bos_token_id
    assert sum(sample.token_ids.count(start) for sample in samples) > 0
    for sample in samples:
        assert sample.text.count("<s>") == sample.token_ids.count(start)
    assert any("<s>" in text for text in grown)
    await engine.stop()
