"""Comparisons for tests."""

from datetime import UTC, datetime
from typing import Any

from charter.v1 import types_pb2


def comparison(text: str = "Yes", probability: float | None = 0.8, **fields: Any) -> types_pb2.Comparison:
    """A against "No", by default labelled PREFERRED_A by an AI."""
    defaults: dict[str, Any] = {
        "source": types_pb2.LABEL_SOURCE_AI,
        "outcome": types_pb2.OUTCOME_PREFERRED_A,
        "split": types_pb2.SPLIT_TRAIN,
    }
    return types_pb2.Comparison(
        prompt=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Is water wet?")],
        answer_a=types_pb2.Answer(text=text),
        answer_b=types_pb2.Answer(text="No"),
        probability_a=probability,
        **{**defaults, **fields},
    )


def full_comparison() -> types_pb2.Comparison:
    """Every field set, with all kinds of characters."""
    one = comparison(
        "\x00 NUL, \ue000 and \ue0000 private, 🜁 astral, ‮right-to-left, e\u0301, \r\n, '; DROP TABLE comparisons; --",
        0.1 + 0.2,
        outcome=types_pb2.OUTCOME_PREFERRED_B,
        source=types_pb2.LABEL_SOURCE_HUMAN,
        split=types_pb2.SPLIT_HELD_OUT,
        labeller="Zoë \x00",
        method="choice",
        constitution_digest="abc",
        run_id="run-1",
        dimension="harmless",
        rationale="Because.\x00",
    )
    one.prompt.add(role=types_pb2.ROLE_ASSISTANT, content="\x00")
    one.prompt.add(role=types_pb2.ROLE_SYSTEM, content="")
    one.answer_a.model, one.answer_a.weight_version = "org/model", 2**63 - 1
    one.answer_a.rating, one.answer_b.rating = types_pb2.RATING_DOWN, types_pb2.RATING_UP
    one.answer_b.model, one.answer_b.weight_version = "org/other", 0
    one.answer_a.cut_off, one.answer_b.cut_off = True, False
    one.judgements.add(
        principle_id="kind",
        dimension="harmless",
        outcome=types_pb2.OUTCOME_PREFERRED_B,
        probability_a=0.25,
        probability_a_shown_first=0.5,
        probability_a_shown_second=0.0,
        rationale="r",
        rationale_swapped="s",
        evidence=[-1.25, 0.1 + 0.2],
        prompt_tokens=2**53 - 1,
        completion_tokens=3,
        without_logprobs=True,
    )
    one.judgements.add(
        principle_id="true",
        outcome=types_pb2.OUTCOME_INVALID,
        failure="not an option \x00",
        failure_kind=types_pb2.FAILURE_KIND_UNCLEAR,
    )
    one.create_time.FromDatetime(datetime(2026, 2, 28, 23, 59, 59, 123456, UTC))
    return one
