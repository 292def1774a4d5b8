"""Transformers in the served type stands for vLLM; vLLM itself: tests/integration/policy/test_vllm_engine.py."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.inference.chat_template import ChatTokenizer
from charter.inference.local import cpu_memory
from charter.inference.vllm.model_check import OtherNumbersError, OwnNumbers, own_numbers, require_own
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.support.tiny import CONTEXT_TOKENS

WINDOW = 200


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases and, in one of two layers, a window that is longer than the usual sequences."""
    folder = tmp_path_factory.mktemp("qwen2")
    ChatTokenizer.load(str(tiny_model)).tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT_TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        use_sliding_window=True, sliding_window=WINDOW, layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def own(request: pytest.FixtureRequest, folder: Path) -> tuple[str, OwnNumbers]:
    found = own_numbers(str(folder), ChatTokenizer.load(str(folder)), request.param, CONTEXT_TOKENS)
    assert isinstance(found, OwnNumbers)
    return request.param, found


def served(folder: Path, dtype: str, change: Callable[[Any], None]) -> Callable[[list[int]], Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    async def logprobs_of(ids: list[int]) -> Tensor:
        with torch.no_grad():
            table: Tensor = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(dim=-1)
        return table[range(len(ids) - 1), ids[1:]]

    with torch.no_grad():
        change(model)
    return logprobs_of


def nothing(model: Any) -> None:
    """It is right as it is."""


def one_norm(model: Any) -> None:
    model.model.layers[1].post_attention_layernorm.weight.fill_(1.0)


def no_bias(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.bias.zero_()


def no_window(model: Any) -> None:
    model.config.layer_types = ["full_attention", "full_attention"]
    model.model.layers[1].self_attn.sliding_window = None


def other_positions(model: Any) -> None:
    model.model.rotary_emb.inv_freq /= 2


def other_scale(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 1.2


def not_a_number(model: Any) -> None:
    model.model.norm.weight[0] = float("nan")


async def test_a_right_engine_passes(folder: Path, own: tuple[str, OwnNumbers]) -> None:
    dtype, numbers = own
    assert [len(ids) for ids in numbers.sequences] == [33, 65, WINDOW + 33]
    await require_own(served(folder, dtype, nothing), numbers)


@pytest.mark.parametrize(
    "change", [one_norm, no_bias, no_window, other_positions, other_scale, not_a_number], ids=lambda one: one.__name__
)
async def test_a_wrong_engine_is_refused(
    folder: Path, own: tuple[str, OwnNumbers], change: Callable[[Any], None]
) -> None:
    dtype, numbers = own
    with pytest.raises(OtherNumbersError, match=r"vLLM does not compute what the model is: .* alone, are off those of"):
        await require_own(served(folder, dtype, change), numbers)


async def test_what_is_wrong_only_together_is_refused(folder: Path, own: tuple[str, OwnNumbers]) -> None:
    dtype, numbers = own
    right, wrong = served(folder, dtype, nothing), served(folder, dtype, one_norm)
    under_way = 0

    async def logprobs_of(ids: list[int]) -> Tensor:
        nonlocal under_way
        under_way += 1
        await asyncio.sleep(0)
        found: Tensor = await (wrong if under_way > 1 else right)(ids)
        under_way -= 1
        return found

    with pytest.raises(OtherNumbersError, match="together with others, are off"):
        await require_own(logprobs_of, numbers)


def test_a_short_context_is_kept_to(folder: Path) -> None:
    own = own_numbers(str(folder), ChatTokenizer.load(str(folder)), "float32", 48)
    assert isinstance(own, OwnNumbers)
    assert [len(ids) for ids in own.sequences] == [33, 47, 47]


def test_what_cannot_be_compared_says_why(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatTokenizer.load(str(folder))

    def why_not(folder: Path, dtype: str = "float32") -> str:
        found = own_numbers(str(folder), chat, dtype, CONTEXT_TOKENS)
        assert isinstance(found, str)
        return found

    assert "how the type float8_e4m3fn rounds" in why_not(folder, "float8_e4m3fn")
    config = AutoConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    assert "Transformers does not compute it (OSError: " in why_not(tmp_path)
    config.quantization_config = {"quant_method": "awq"}
    config.save_pretrained(tmp_path)
    assert why_not(tmp_path) == "its weights are quantised"
    for name, count in (("limit", 1_000_000), ("used", 400_000)):
        (tmp_path / name).write_text(f"{count}\n")
    monkeypatch.setattr(cpu_memory, "_CGROUPS", ((tmp_path / "limit", tmp_path / "used"),))
    assert cpu_memory.free_memory() == 600_000
    assert "0.0 GiB that are free" in why_not(folder)
    (tmp_path / "limit").write_text("max\n")
    assert cpu_memory.free_memory() > 1_000_000
