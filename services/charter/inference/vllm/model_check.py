"""Whether vLLM computes what the model is: its log-probs beside those of the model as Transformers loads it.

The model's own are computed on the CPU before vLLM takes the memory, in float32, from weights as rounded as vLLM's.
How far rounding moves them is measured: by the same pass once more, with every layer's output rounded. vLLM's may be
off by a small multiple of that.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer, loading
from charter.inference.engine import Prompt
from charter.inference.local.cpu_memory import free_memory, trim_freed_memory
from charter.inference.local.model import load_whole
from charter.inference.local.tree_model import windows

logger = logging.getLogger("charter.inference")

# Significant bits that are left of a layer's output. Products are summed in float32 whatever the type; in float32
# itself a sum of a thousand terms loses as much as sqrt(1000) roundings of its result, which is 5 bits of 24.
_BITS = {"float32": 19, "float16": 11, "bfloat16": 8}
# Measured differences are 0.2 to 1.3 times what that rounding does (docs/measurements/engines.md).
_MOST_ROUNDINGS = 3.0
# Nats by which log-softmax itself rounds.
_LEAST_ROUNDING = 1e-5
# Tokens over which differences are averaged: what is wrong only far from the beginning must show.
_RUN = 32
_LENGTHS = (_RUN, 2 * _RUN, 5 * _RUN)
# A sequence longer than this is not computed to get past an attention window.
_LONGEST = 1200
# Of the free main memory, most that the model in float32 may take: policy and judge may start at the same time.
_MEMORY_SHARE = 1 / 3

_TEXT = """
A lighthouse keeper wrote to her brother in March that the storm had taken the roof of the shed and three hens. Could he
bring nails, rope and planks when the boat comes on Sunday? She would pay in June, because the harbour owes her money.
He answered that he had never built a roof, but knew a carpenter who might help for a good meal and some sleep.
"""


class OtherNumbersError(RuntimeError):
    """An engine does not compute what its model is; the message says by how much and what to do."""


@dataclass(frozen=True, slots=True)
class OwnNumbers:
    """Token ids of some sequences, and of each the log-probs of its tokens behind the first, [tokens - 1].

    ``rounding`` is by how much each of them moves when the outputs of layers are rounded.
    """

    sequences: list[list[int]]
    logprobs: list[Tensor]
    rounding: list[Tensor]


def own_numbers(model: str, chat: ChatTokenizer, dtype: str, context: int) -> OwnNumbers | str:
    """Load a model on the CPU and compute a few sequences; where that cannot be done, why.

    Args:
        model: folder or hub id.
        chat: its tokenizer.
        dtype: of vLLM's weights, by its name in torch.
        context: most tokens of a sequence.
    """
    with loading(model):
        config = AutoConfig.from_pretrained(model)
    if problem := _why_not(config, dtype):
        return problem
    try:
        return _computed(model, dtype, probes(chat, config, context))
    except Exception as error:  # noqa: BLE001 (whatever a model's code raises: vLLM may serve what it does not)
        return f"Transformers does not compute it ({type(error).__name__}: {error})"


async def require_own(logprobs_of: Callable[[list[int]], Awaitable[Tensor]], own: OwnNumbers) -> None:
    """Raise ``OtherNumbersError`` where an engine's log-probs are not a model's own, one by one or together.

    Args:
        logprobs_of: those of a sequence's tokens behind the first, by the engine.
        own: the model's.
    """
    began = time.monotonic()
    alone = [await logprobs_of(ids) for ids in own.sequences]
    _require_near(alone, own, "alone")
    _require_near(await asyncio.gather(*(logprobs_of(ids) for ids in own.sequences)), own, "together with others")
    seconds = round(time.monotonic() - began, 1)
    logger.info("vLLM computes what the model is", extra={"seconds": seconds})


def probes(chat: ChatTokenizer, config: PreTrainedConfig, context: int) -> list[list[int]]:
    """Beginnings of three conversations; the last goes past the narrowest attention window, if that is not too far."""
    past_window = min(windows(config), default=0) + _RUN
    longest = past_window if _LENGTHS[-1] < past_window <= _LONGEST else _LENGTHS[-1]
    words = _TEXT.split()
    sequences = []
    for seed, length in enumerate((*_LENGTHS[:-1], longest)):
        text = " ".join(random.Random(seed).choices(words, k=length))
        ids = chat.prompt_ids(Prompt((ChatMessage("user", text),)))
        # One more, because nothing is said about the first. vLLM always writes one.
        sequences.append(ids[: min(length + 1, context - 1)])
    return sequences


def _why_not(config: PreTrainedConfig, dtype: str) -> str:
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantised"
    if dtype not in _BITS:
        return f"how the type {dtype} rounds is not known here; {', '.join(_BITS)} are"
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    needed, free = 4 * sum(parameter.numel() for parameter in skeleton.parameters()), free_memory()
    if needed > _MEMORY_SHARE * free:
        return (
            f"in float32 it takes {needed / 2**30:.1f} GiB of main memory, and at most a third of the "
            f"{free / 2**30:.1f} GiB that are free is used for that"
        )
    return ""


@torch.no_grad()
def _computed(model: str, dtype: str, sequences: list[list[int]]) -> OwnNumbers:
    loaded = load_whole(AutoModelForCausalLM, model, dtype=getattr(torch, dtype), attn_implementation="eager")
    loaded = loaded.float().eval()
    logprobs = [_logprobs(loaded, ids) for ids in sequences]
    with _rounded(loaded, _BITS[dtype]):
        rounding = [(_logprobs(loaded, ids) - own).abs() for ids, own in zip(sequences, logprobs, strict=True)]
    del loaded
    trim_freed_memory()
    return OwnNumbers(sequences, logprobs, rounding)


def _logprobs(model: nn.Module, ids: list[int]) -> Tensor:
    row = torch.tensor([ids])
    logits = model(row, use_cache=False).logits[0, :-1]
    logprobs: Tensor = logits.log_softmax(dim=-1).gather(1, row[0, 1:, None])[:, 0]
    return logprobs


@contextmanager
def _rounded(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside the block every layer of a model, and every block of layers, gives numbers of a few significant bits."""
    with ExitStack() as stack:
        for module in model.modules():
            hook = module.register_forward_hook(lambda _module, _given, output: _round(output, bits))
            stack.callback(hook.remove)
        yield


def _round(output: object, bits: int) -> object:
    if isinstance(output, tuple):
        return tuple(_round(one, bits) for one in output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    fraction, exponent = torch.frexp(output)
    return torch.ldexp((fraction * 2**bits).round(), exponent - bits)


def _require_near(found: Sequence[Tensor], own: OwnNumbers, how: str) -> None:
    usual = float(torch.cat(own.rounding).mean())
    for logprobs, expected, rounding in zip(found, own.logprobs, own.rounding, strict=True):
        runs = zip(*(torch.split(one, _RUN) for one in (logprobs, expected, rounding)), strict=True)
        for place, (run, expected_run, rounding_run) in enumerate(runs):
            apart = float((run - expected_run).abs().mean())
            allowed = _MOST_ROUNDINGS * max(usual, float(rounding_run.mean()), _LEAST_ROUNDING)
            # Written so that NaN does not pass.
            if not apart <= allowed:
                raise OtherNumbersError(
                    f"vLLM does not compute what the model is: its log-probs of {len(run)} tokens from token "
                    f"{place * _RUN + 1} on, in a sequence of {len(expected) + 1} {how}, are off those of Transformers "
                    f"by {apart:.2g} nats on average, and rounding explains {allowed:.2g}. Use engine transformers, or "
                    "a version of vLLM that knows the model; take back settings that change the model, such as a "
                    "longer context. The setting compared=false serves it as it is"
                )
