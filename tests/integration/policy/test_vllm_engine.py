"""vLLM with the real model, against plain Hugging Face forward passes in float32.

Tolerance: vLLM's kernels and PyTorch's sum in different orders; measured differences of a token's log-prob are
below 2e-4 nats in float32. TOLERANCE leaves a margin of ten; the perturbed weights move log-probs by more than 0.1.
"""

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from charter.chat import ChatMessage
from charter.inference import scoring_metrics
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import (
    AnswerLogLikelihood,
    ChoiceLogprobs,
    ContextTooLongError,
    Finish,
    GeneratedSample,
    Prompt,
    RefusedRequestError,
    Sampling,
    WeightMismatchError,
    WeightsNotTakenError,
)
from charter.inference.vllm.engine import VllmEngine
from charter.inference.vllm.model_check import OtherNumbersError, OwnNumbers, own_numbers, require_own
from charter.worker.training.batches import pack
from charter.worker.training.models import LanguageModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

TOLERANCE = 2e-3

pytestmark = [
    pytest.mark.real_model,
    # One engine for the module: vLLM takes 40 s to start on a quiet machine of two cores, minutes on a busy one.
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]


def prompt(text: str) -> Prompt:
    return Prompt((ChatMessage("user", text),))


SHORT = prompt("What is the capital of France?")
# Longer than a block of vLLM's prefix cache (128 tokens on CPU), so that stale entries would be found.
LONG = prompt("Summarise this: " + "the quick brown fox jumps over the lazy dog, and nobody minds. " * 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(real_model: Path) -> AsyncGenerator[VllmEngine, None]:
    engine = VllmEngine(str(real_model), dtype="float32", kv_cache_gib=0.5, max_context_tokens=2048, sleep_mode=True)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def chat(real_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(str(real_model))


@pytest.fixture(scope="module")
def original(real_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def new_weights(real_model: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor * (1 + 0.05 * torch.randn(tensor.shape, generator=generator))
        for name, tensor in load_file(real_model / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def trained(real_model: Path, new_weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """What the trainer would hold."""
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    assert model.load_state_dict(new_weights, strict=False).unexpected_keys == []
    model.tie_weights()
    return model


def table(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs [len(ids), vocabulary] of what follows each token."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0].double()
    return (logits / temperature).log_softmax(-1)


def answer_logprobs(model: PreTrainedModel, sample: GeneratedSample, temperature: float = 1.0) -> list[float]:
    start = len(sample.prompt_token_ids)
    rows = table(model, [*sample.prompt_token_ids, *sample.token_ids], temperature)
    return [float(rows[start + place - 1, token]) for place, token in enumerate(sample.token_ids)]


async def collect(engine: VllmEngine, prompts: list[Prompt], sampling: Sampling, n: int = 1) -> list[GeneratedSample]:
    return [sample async for sample in engine.generate(prompts, sampling, n)]


async def likelihood(engine: VllmEngine, asked: Prompt, answer: str) -> AnswerLogLikelihood:
    (result,) = await engine.answer_loglikelihoods([(asked, answer)])
    assert isinstance(result, AnswerLogLikelihood)
    return result


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_logprobs_of_samples_are_exact(
    engine: VllmEngine, original: PreTrainedModel, chat: ChatTokenizer, temperature: float
) -> None:
    samples = await collect(engine, [SHORT, LONG], Sampling(24, temperature=temperature), n=2)
    assert sorted((s.prompt_index, s.sample_index) for s in samples) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for sample in samples:
        assert list(sample.prompt_token_ids) == chat.prompt_ids([SHORT, LONG][sample.prompt_index])
        assert sample.logprobs == pytest.approx(answer_logprobs(original, sample, temperature or 1.0), abs=TOLERANCE)
        assert (sample.finish is Finish.EOS) == (sample.token_ids[-1] == chat.eos_id)
        assert [(s.start, s.end, s.version) for s in sample.version_spans] == [(0, len(sample.token_ids), 0)]


async def test_samples_are_as_likely_as_the_model_says(engine: VllmEngine, original: PreTrainedModel) -> None:
    """The first tokens of many samples against their exact distribution: mean surprise equals entropy."""
    samples = await collect(engine, [SHORT], Sampling(1, temperature=1.0, seed=1), n=400)
    logprobs = table(original, list(samples[0].prompt_token_ids))[-1]
    entropy = float(-(logprobs.exp() * logprobs).sum())
    surprises = torch.tensor([-sample.logprobs[0] for sample in samples])
    assert float(surprises.mean()) == pytest.approx(entropy, abs=4 * float(surprises.std()) / 20)


async def test_a_seed_repeats_a_sample(engine: VllmEngine) -> None:
    first, second = [await collect(engine, [SHORT], Sampling(12, seed=4)) for _ in range(2)]
    assert first[0].token_ids == second[0].token_ids
    other = await collect(engine, [SHORT], Sampling(12, seed=5))
    assert other[0].token_ids != first[0].token_ids


async def test_choices_and_answers_are_exact(
    engine: VllmEngine, original: PreTrainedModel, chat: ChatTokenizer
) -> None:
    asked = Prompt(SHORT.messages, assistant_prefix="The capital of France is")
    (choices,) = await engine.choice_logprobs([asked], [" Paris", " London"])
    assert isinstance(choices, ChoiceLogprobs)
    row = table(original, chat.prompt_ids(asked))[-1]
    expected = [float(row[chat.choice_id(choice)]) for choice in (" Paris", " London")]
    assert choices.logprobs == pytest.approx(expected, abs=TOLERANCE)

    for asked in (SHORT, LONG):
        ids, answer = chat.prompt_ids(asked), chat.answer_ids("It is Paris, of course.")
        rows = table(original, ids + answer)
        total = sum(float(rows[len(ids) + place - 1, token]) for place, token in enumerate(answer))
        result = await likelihood(engine, asked, "It is Paris, of course.")
        assert result.total == pytest.approx(total, abs=TOLERANCE)
        assert (result.tokens, result.prompt_tokens) == (len(answer), len(ids))
    assert await likelihood(engine, SHORT, "") == AnswerLogLikelihood(0.0, 0, len(chat.prompt_ids(SHORT)))


async def test_what_the_prefix_cache_holds_is_counted(engine: VllmEngine) -> None:
    await engine.choice_logprobs([LONG], ["A", "B"])
    given, computed = scoring_metrics.GIVEN._value.get(), scoring_metrics.COMPUTED._value.get()
    (found,) = await engine.choice_logprobs([LONG], ["A", "B"])
    assert isinstance(found, ChoiceLogprobs)
    assert scoring_metrics.GIVEN._value.get() - given == found.prompt_tokens
    # Whole blocks of 128 tokens.
    assert found.prompt_tokens - 128 >= scoring_metrics.COMPUTED._value.get() - computed > 0


async def test_what_does_not_fit_or_would_not_be_exact_is_refused(engine: VllmEngine) -> None:
    too_long = prompt("word " * 3000)
    with pytest.raises(ContextTooLongError, match="item 1 needs"):
        await collect(engine, [SHORT, too_long], Sampling(4))
    choices = await engine.choice_logprobs([SHORT, too_long], ["A"])
    assert isinstance(choices[0], ChoiceLogprobs)
    assert isinstance(choices[1], ContextTooLongError)
    (result,) = await engine.answer_loglikelihoods([(too_long, "Yes.")])
    assert isinstance(result, ContextTooLongError)
    for sampling in (Sampling(4, top_p=0.9), Sampling(4, temperature=0.001)):
        with pytest.raises(RefusedRequestError, match="engine vllm"):
            await collect(engine, [SHORT], sampling)


async def test_weights_that_do_not_fit_change_nothing(
    engine: VllmEngine, new_weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    before = await likelihood(engine, SHORT, "Paris.")
    wrong = {**new_weights, "model.norm.weight": torch.ones(3)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightMismatchError, match=r"wrong shapes: model.norm.weight is \[3\], the model's is \[576\]"):
        await engine.load_weights(tmp_path / "wrong.safetensors", 9, "d")
    assert await likelihood(engine, SHORT, "Paris.") == before
    assert engine.info().weight_version == 0


async def test_weights_that_cannot_be_prepared_change_nothing(
    engine: VllmEngine,
    trained: PreTrainedModel,
    new_weights: dict[str, torch.Tensor],
    real_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is gone when vLLM's process comes to read it. What is being written goes on; the next update works."""
    before = await likelihood(engine, LONG, "Paris.")
    path = tmp_path / "new.safetensors"
    save_file(new_weights, path)
    under_way = asyncio.create_task(collect(engine, [SHORT], Sampling(40, seed=3)))
    await collect(engine, [SHORT], Sampling(1))
    checked = engine._checked

    def checked_then_gone(path: Path) -> str:
        file = checked(path)
        path.unlink()
        return file

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_checked", checked_then_gone)
        with pytest.raises(WeightsNotTakenError, match=r"did not prepare the weights: .*new\.safetensors"):
            await engine.load_weights(path, 3, "c" * 64)
    assert [[span.version for span in sample.version_spans] for sample in await under_way] == [[0]]
    assert await likelihood(engine, LONG, "Paris.") == before
    assert engine.info().weight_version == 0

    save_file(new_weights, path)
    await engine.load_weights(path, 4, "d" * 64)
    (sample,) = await collect(engine, [SHORT], Sampling(8))
    assert sample.logprobs == pytest.approx(answer_logprobs(trained, sample), abs=TOLERANCE)
    await engine.load_weights(real_model / "model.safetensors", 0, "")
    assert (await likelihood(engine, LONG, "Paris.")).total == pytest.approx(before.total, abs=1e-6)


async def test_a_weight_update_under_way_is_served_exactly(
    engine: VllmEngine,
    original: PreTrainedModel,
    trained: PreTrainedModel,
    new_weights: dict[str, torch.Tensor],
    real_model: Path,
    tmp_path: Path,
) -> None:
    """Update while samples are being written, then compare with the trainer's model; then go back."""
    old = [await likelihood(engine, asked, "It is Paris, of course.") for asked in (SHORT, LONG)]
    save_file(new_weights, tmp_path / "new.safetensors")
    # The update starts when another call's only token is there, and so in the middle of these.
    long_samples = engine.generate([SHORT, LONG], Sampling(100, temperature=0.8, seed=2), 2)
    first_token = collect(engine, [SHORT], Sampling(1))
    under_way = asyncio.create_task(_drain(long_samples))
    await first_token
    await engine.load_weights(tmp_path / "new.safetensors", 5, "e" * 64)
    assert (engine.info().weight_version, engine.info().weight_digest) == (5, "e" * 64)

    mixed = 0
    for sample in await under_way:
        by_version = {
            0: answer_logprobs(original, sample, 0.8),
            5: answer_logprobs(trained, sample, 0.8),
        }
        assert sample.version_spans[0].start == 0
        assert sample.version_spans[-1].end == len(sample.token_ids)
        for span in sample.version_spans:
            expected = by_version[span.version][span.start : span.end]
            assert sample.logprobs[span.start : span.end] == pytest.approx(expected, abs=TOLERANCE)
        mixed += len(sample.version_spans) > 1
    assert mixed > 0, "no sample was under way during the update"

    for sample in await collect(engine, [SHORT, LONG], Sampling(24), n=2):
        assert [span.version for span in sample.version_spans] == [5]
        assert sample.logprobs == pytest.approx(answer_logprobs(trained, sample), abs=TOLERANCE)
    new = [await likelihood(engine, asked, "It is Paris, of course.") for asked in (SHORT, LONG)]
    assert all(abs(after.total - before.total) > 0.1 for before, after in zip(old, new, strict=True))

    await engine.load_weights(real_model / "model.safetensors", 6, "f" * 64)
    again = [await likelihood(engine, asked, "It is Paris, of course.") for asked in (SHORT, LONG)]
    assert [result.total for result in again] == pytest.approx([result.total for result in old], abs=1e-6)


async def test_biases_and_a_head_of_its_own_are_replaced_too(real_model: Path, tmp_path: Path) -> None:
    """A small model with random weights: the real one has neither. At the start it is compared with itself."""
    ends = ChatTokenizer.load(str(real_model)).eos_id
    config = Qwen2Config(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, bos_token_id=ends, eos_token_id=ends, pad_token_id=ends,
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(real_model / name, tmp_path / name)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        models.append(model)
        save_file(model.state_dict(), tmp_path / f"{seed}.safetensors")
    models[0].save_pretrained(tmp_path)

    engine = VllmEngine(str(tmp_path), dtype="float32", kv_cache_gib=0.1, max_context_tokens=256)
    await engine.start()
    try:
        assert engine.info().not_compared == ""
        await _refuses_the_numbers_of_others(engine, tmp_path, models[0], tmp_path / "others")
        for version, which in enumerate((0, 1, 0)):
            if version > 0:
                await engine.load_weights(tmp_path / f"{which + 1}.safetensors", version, "d")
            (sample,) = await collect(engine, [SHORT], Sampling(16, temperature=1.0, seed=version))
            assert [span.version for span in sample.version_spans] == [version]
            assert sample.logprobs == pytest.approx(answer_logprobs(models[which], sample), abs=TOLERANCE)
    finally:
        await engine.stop()


async def _refuses_the_numbers_of_others(
    engine: VllmEngine, folder: Path, model: PreTrainedModel, others: Path
) -> None:
    """What vLLM serves is a little off these: other positions, a norm, a bias."""
    shutil.copytree(folder, others, ignore=shutil.ignore_patterns("[12].safetensors"))
    changes: list[Callable[[Any], Any]] = [
        lambda other: other.config.rope_parameters.update(rope_theta=1000.0),
        lambda other: other.model.layers[1].input_layernorm.weight.data.mul_(1.05),
        lambda other: other.model.layers[0].self_attn.q_proj.bias.data.mul_(0.9),
    ]
    for change in changes:
        other: Any = deepcopy(model)
        change(other)
        other.save_pretrained(others)
        own = own_numbers(str(others), ChatTokenizer.load(str(others)), "float32", 256)
        assert isinstance(own, OwnNumbers)
        with pytest.raises(OtherNumbersError, match="does not compute what the model is: its log-probs of 32 tokens"):
            await require_own(engine.prompt_logprobs, own)


async def test_weights_loaded_asleep_are_served_once_it_is_awake(
    engine: VllmEngine, trained: PreTrainedModel, new_weights: dict[str, torch.Tensor], real_model: Path, tmp_path: Path
) -> None:
    """On a CPU no memory is freed; the order of vLLM's parts and its scheduling are those of a GPU."""
    before = await likelihood(engine, LONG, "It is Paris.")
    await engine.sleep()
    # vLLM keeps what comes until the last part of it is awake. Services refuse calls in the meantime.
    waiting = asyncio.create_task(likelihood(engine, LONG, "It is Paris."))
    save_file(new_weights, tmp_path / "new.safetensors")
    await engine.load_weights(tmp_path / "new.safetensors", 8, "a" * 64)
    assert not waiting.done()
    await engine.wake()
    (sample,) = await collect(engine, [LONG], Sampling(8, temperature=1.0, seed=1))
    assert [span.version for span in sample.version_spans] == [8]
    assert sample.logprobs == pytest.approx(answer_logprobs(trained, sample), abs=TOLERANCE)
    assert abs((await waiting).total - before.total) > 0.1

    await engine.load_weights(real_model / "model.safetensors", 9, "b" * 64)
    await engine.sleep()
    await engine.wake()
    assert (await likelihood(engine, LONG, "It is Paris.")).total == pytest.approx(before.total, abs=1e-6)


async def _drain(samples: AsyncGenerator[GeneratedSample, None]) -> list[GeneratedSample]:
    return [sample async for sample in samples]


async def test_trainer_and_vllm_agree(engine: VllmEngine, real_model: Path) -> None:
    """The trainer's own log-probs, not a plain forward pass: PPO's importance ratio is made of them, in float32."""
    learner = LanguageModel.load(real_model, torch.device("cpu"))
    differences = []
    for sample in await collect(engine, [SHORT, LONG], Sampling(24, temperature=0.8, seed=6), n=2):
        with torch.no_grad():
            ours = learner.logprobs(pack([(sample.prompt_token_ids, sample.token_ids)], torch.device("cpu")), 0.8)
        differences.append(ours - torch.tensor(sample.logprobs))
    difference = torch.cat(differences)
    assert difference.abs().max() < TOLERANCE
    assert difference.abs().mean() < TOLERANCE / 4
    assert difference.exp().mean().item() == pytest.approx(1.0, abs=TOLERANCE / 4)


async def test_a_cancelled_call_leaves_vllm(engine: VllmEngine) -> None:
    samples = engine.generate([SHORT], Sampling(1500), 8)
    waiting = asyncio.ensure_future(anext(samples))
    await collect(engine, [SHORT], Sampling(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    while engine._llm.get_num_unfinished_requests() > 0:  # noqa: ASYNC110 (vLLM signals no end of an abort)
        await asyncio.sleep(0)
    assert len(await collect(engine, [SHORT], Sampling(2))) == 1
