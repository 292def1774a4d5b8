"""Constraints that the contracts declare."""

import math

from charter.rpc.validation import MOST_VIOLATIONS, violations
from charter.v1 import judge_pb2, policy_pb2, preference_pb2, run_pb2, types_pb2, weights_pb2
from google.protobuf.message import Message


def fields(message: Message) -> dict[str, str]:
    return {v.field: v.description for v in violations(message)}


def valid_generate() -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(
        prompts=[policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")])],
        sampling=policy_pb2.SamplingParameters(max_new_tokens=4),
    )


def test_a_valid_request_has_no_violations() -> None:
    assert fields(valid_generate()) == {}


def test_an_empty_request_names_every_missing_field() -> None:
    assert fields(policy_pb2.GenerateRequest()) == {
        "prompts": "needs at least 1 items, has 0",
        "sampling": "is required",
    }


def test_a_nested_field_is_named_by_its_path() -> None:
    request = valid_generate()
    request.prompts.add().messages.add(content="no role")
    assert fields(request) == {"prompts[1].messages[0].role": "is required"}


def test_an_optional_number_is_checked_only_when_it_is_set() -> None:
    request = valid_generate()
    assert not request.sampling.HasField("top_p")
    request.sampling.top_p = 0.0
    assert fields(request) == {"sampling.top_p": "must be greater than 0, is 0"}
    request.sampling.top_p = 1.0
    assert fields(request) == {}


def test_nan_and_infinity_break_a_bounded_number() -> None:
    for number in (math.nan, math.inf, -math.inf):
        request = valid_generate()
        request.sampling.temperature = number
        assert list(fields(request)) == ["sampling.temperature"]


def test_a_text_that_is_too_long_is_refused_at_its_limit() -> None:
    item = preference_pb2.ScoreItem(id="x" * 200)
    item.prompt.add(role=types_pb2.ROLE_USER, content="p")
    assert fields(item) == {}
    item.id += "x"
    assert fields(item) == {"id": "holds at most 200 characters, has 201"}


def test_an_unknown_enum_number_is_refused() -> None:
    options = judge_pb2.JudgingOptions()
    options.MergeFromString(b"\x08\x63")
    assert fields(options) == {"method": "99 is not a value of JudgingMethod"}


def test_a_pattern_must_match_the_whole_text() -> None:
    header = weights_pb2.WeightHeader(version=1, size=8, sha256="ab" * 32 + "\n")
    assert list(fields(header)) == ["sha256"]


def test_required_parts_of_a_spec_are_named() -> None:
    assert set(fields(run_pb2.RunSpec(name="Bad Name"))) == {"name", "policy"}


def test_the_list_of_violations_is_bounded() -> None:
    request = judge_pb2.CompareRequest(items=[judge_pb2.ComparisonItem() for _ in range(100)])
    assert len(violations(request)) == MOST_VIOLATIONS
