"""Single requests to vLLM, and the log-probs that are read from what they give."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import torch

from charter.inference import scoring_metrics as metrics

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

# Gets an answer so far.
Grown = Callable[["CompletionOutput"], None]


class Request(Protocol):
    """Runs one request to its end; keyword arguments are vLLM's sampling parameters."""

    async def __call__(self, ids: list[int], grown: Grown | None = None, **parameters: Any) -> "RequestOutput":
        """As ``run_request``."""


async def run_request(
    llm: "AsyncLLM", ids: list[int], grown: Grown | None = None, **parameters: Any
) -> "RequestOutput":
    """Run one request to its end; cancelling this takes it out of vLLM."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind.FINAL_ONLY if grown is None else RequestOutputKind.CUMULATIVE
    sampling = SamplingParams(**{"detokenize": False, "output_kind": kind, **parameters})
    async for output in llm.generate(tokens_input(ids), sampling, request_id=uuid4().hex):
        reason = output.outputs[0].finish_reason
        if reason in ("stop", "length"):
            return output
        if reason is None and grown is not None:
            grown(output.outputs[0])
            continue
        raise RuntimeError(f"vLLM broke off a request: {reason}")
    raise RuntimeError("vLLM ended a request without an output")


async def next_logprobs(request: Request, ids: list[int], choices: Sequence[int]) -> list[float]:
    """Log-probs of each of some tokens coming next."""
    output = counted(await request(ids, max_tokens=1, temperature=0.0, logprob_token_ids=list(choices)))
    (next_token,) = output.outputs[0].logprobs
    return [next_token[choice].logprob for choice in choices]


async def total_logprob(request: Request, ids: list[int], answer: list[int]) -> float:
    """Log-likelihood of an answer's tokens behind a prompt's."""
    # vLLM reads nothing from its prefix cache for these.
    output = counted(await request(ids + answer, max_tokens=1, temperature=0.0, prompt_logprobs=0))
    places = output.prompt_logprobs[len(ids) :]
    return float(sum(place[token].logprob for place, token in zip(places, answer, strict=True)))


async def prompt_logprobs(request: Request, ids: list[int]) -> torch.Tensor:
    """Log-probs of a sequence's tokens behind the first, float32 [tokens - 1]."""
    output = await request(ids, max_tokens=1, temperature=0.0, prompt_logprobs=0)
    places = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    return torch.tensor([place[token].logprob for place, token in places])


def counted(output: "RequestOutput") -> "RequestOutput":
    """Count the tokens of a text to score, and those of them that were not in the prefix cache."""
    given = len(output.prompt_token_ids)
    metrics.GIVEN.inc(given)
    metrics.COMPUTED.inc(given - (output.num_cached_tokens or 0))
    return output
