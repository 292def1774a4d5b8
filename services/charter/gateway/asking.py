"""Answers from a policy: whole, or piece by piece as they are written."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from charter.gateway.errors import RequestError
from charter.gateway.policies import Policy
from charter.v1 import policy_pb2


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one answer; ``sample`` is set with its last piece."""

    index: int
    text: str
    places: Sequence[policy_pb2.TokenPlace]
    sample: policy_pb2.Sample | None


async def samples(policy: Policy, request: policy_pb2.GenerateRequest) -> list[policy_pb2.Sample]:
    """The answers to all prompts, those to one beside each other. Raises ``ServiceError``, ``RequestError``."""
    found: dict[int, policy_pb2.Sample] = {}
    async with aclosing(policy.generate(request)) as responses:
        async for one in responses:
            found[_index(request, one)] = one.sample
    _require_all(request, len(found))
    return [found[index] for index in range(len(found))]


async def pieces(policy: Policy, request: policy_pb2.GenerateRequest) -> AsyncGenerator[Piece, None]:
    """The answers as they grow. Raises as ``samples``."""
    growing: dict[int, _Growing] = {}
    async with aclosing(policy.generate(request)) as responses:
        async for one in responses:
            index = _index(request, one)
            piece = growing.setdefault(index, _Growing(index)).piece(one)
            if piece.text or piece.places or piece.sample is not None:
                yield piece
    _require_all(request, sum(one.ended for one in growing.values()))


class _Growing:
    """One answer: turns its texts so far into pieces that add up to it."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._text = ""
        self._places = 0
        self.ended = False

    def piece(self, response: policy_pb2.GenerateResponse) -> Piece:
        if not response.HasField("sample"):
            self._places += len(response.new_places)
            # A character that is half written stands there as replacement characters.
            text = response.text_so_far.rstrip("\ufffd")
            new = text.removeprefix(self._text) if text.startswith(self._text) else ""
            self._text += new
            return Piece(self._index, new, response.new_places, None)
        self.ended = True
        sample = response.sample
        if not sample.text.startswith(self._text):
            words = "the tokenizer has changed text that was sent already: ask without stream"
            raise RequestError(500, words, None, "text_changed")
        return Piece(self._index, sample.text.removeprefix(self._text), sample.places[self._places :], sample)


def _index(request: policy_pb2.GenerateRequest, response: policy_pb2.GenerateResponse) -> int:
    return response.prompt_index * request.samples_per_prompt + response.sample_index


def _require_all(request: policy_pb2.GenerateRequest, ended: int) -> None:
    wanted = len(request.prompts) * request.samples_per_prompt
    if ended != wanted:
        raise RequestError(
            500, f"the policy wrote {ended} of {wanted} answers; its log says why", None, "policy_failed"
        )
