"""Which principles a label is judged by."""

import math

import grpc

from charter.hashing import stable_number
from charter.rpc.errors import StatusError
from charter.spec.constitution import Constitution, Principle
from charter.v1 import judge_pb2

INSTRUCTION_ID = "instruction"


def principles_for(
    item_id: str, dimension: str, options: judge_pb2.JudgingOptions, constitution: Constitution
) -> tuple[Principle, ...]:
    """The principles of one item: the instruction, the named one, or a draw from the constitution.

    ``dimension`` is the item's own and comes before that of the options. Raises ``StatusError``: NOT_FOUND for an
    unknown principle or dimension, INVALID_ARGUMENT when there are fewer principles than the ensemble needs.
    """
    if options.instruction:
        return (from_instruction(options.instruction),)
    if options.principle_id:
        try:
            return (constitution.principle(options.principle_id),)
        except KeyError:
            known = ", ".join(principle.id for principle in constitution.principles)
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"no principle {options.principle_id!r} in {constitution.name}: {known}"
            ) from None
    wanted = dimension or options.dimension
    candidates = constitution.of_dimension(wanted)
    if not candidates:
        known = ", ".join(sorted({principle.dimension for principle in constitution.principles}))
        raise StatusError(
            grpc.StatusCode.NOT_FOUND, f"no principle of dimension {wanted!r} in {constitution.name}: it has {known}"
        )
    count = options.ensemble_size if options.HasField("ensemble_size") else 1
    if count > len(candidates):
        of = f" of dimension {wanted!r}" if wanted else ""
        raise StatusError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"ensemble_size is {count}, but {constitution.name} has {len(candidates)} principles{of}",
        )
    return draw(candidates, count, options.seed, item_id)


def draw(principles: tuple[Principle, ...], count: int, seed: int, item_id: str) -> tuple[Principle, ...]:
    """Draw without replacement, with chances by weight; the same (seed, item) always draws the same.

    Each principle gets the key ``log(u) / weight`` with its own uniform u, and the largest keys win (Efraimidis and
    Spirakis 2006, algorithm A): what one item draws depends on nothing but its own id and the seed.
    """

    def key(principle: Principle) -> float:
        return math.log(_uniform(str(seed), item_id, principle.id)) / principle.weight

    return tuple(sorted(principles, key=key, reverse=True)[:count])


def from_instruction(instruction: str) -> Principle:
    """A principle made of one plain instruction. Its opposite is to answer without it."""
    return Principle(
        id=INSTRUCTION_ID,
        dimension="",
        compare=f"The responses are judged by this instruction: {instruction}\nWhich response is better by it?",
        critique=f"Say where the response falls short of this instruction: {instruction}",
        revise=f"Rewrite the response so that it keeps to this instruction: {instruction}",
        follow=instruction,
        oppose="You are an assistant.",
    )


def _uniform(*parts: str) -> float:
    """A number above 0 and at most 1, of which there is a logarithm."""
    return (stable_number(*parts) + 0.5) / 2**64
