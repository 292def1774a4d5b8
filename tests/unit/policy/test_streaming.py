"""Texts of answers that grow faster than their client reads them."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from charter.generation.servicer import PolicyServicer
from charter.inference.fake import FakeEngine
from charter.rpc.gate import Gate
from charter.v1 import policy_pb2, types_pb2

HI = policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")])


async def begin(request: policy_pb2.GenerateRequest) -> AsyncIterator[policy_pb2.GenerateResponse]:
    engine, gate = FakeEngine(), Gate()
    await engine.start()
    gate.open()
    context: Any = SimpleNamespace()
    return PolicyServicer(engine, 1, gate).Generate(request, context)


async def test_what_a_slow_client_has_not_read_is_one_text_of_each_answer() -> None:
    sampling = policy_pb2.SamplingParameters(max_new_tokens=50, seed=1, top_logprobs=1)
    request = policy_pb2.GenerateRequest(prompts=[HI, HI], sampling=sampling, stream_text=True)
    whole = await begin(policy_pb2.GenerateRequest(prompts=[HI, HI], sampling=sampling))
    samples = {one.prompt_index: one.sample async for one in whole}
    assert min(len(one.token_ids) for one in samples.values()) > 10

    responses = await begin(request)
    read = [await anext(responses)]
    # The engine writes all of it before anything else is read.
    for _ in range(200):
        await asyncio.sleep(0)
    read += [one async for one in responses]
    assert len(read) <= 2 * 3
    for index, sample in samples.items():
        (*growing, last) = [one for one in read if one.prompt_index == index]
        assert last.sample == sample
        assert sample.text.startswith(growing[-1].text_so_far)
        # No token is lost.
        assert [place for one in growing for place in one.new_places] == list(sample.places)[:-1]
