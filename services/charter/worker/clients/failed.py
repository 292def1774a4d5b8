"""What a service could not do for one item, where the others are fine."""

from dataclasses import dataclass

from google.protobuf.message import Message

from charter.outcomes import failure_name, failure_of_judgement
from charter.rpc.validation import violations
from charter.storage.comparisons import LABELLED
from charter.v1 import judge_pb2, types_pb2

UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an item has no score or label. ``kind`` is a ``FailureKind`` in lower case, ``reason`` is for a person."""

    kind: str
    reason: str


def failed(kind: types_pb2.FailureKind.ValueType, reason: str) -> Failed:
    """A failure that a service tells of; ``other`` where it does not say of what kind."""
    return _failed(failure_name(kind), reason)


def unsendable(item: Message) -> Failed | None:
    """Why an item cannot be asked about: an answer of more characters than the contract takes. None where it can."""
    broken = violations(item)
    if not broken:
        return None
    return failed(types_pb2.FAILURE_KIND_TOO_LONG, f"{broken[0].field} {broken[0].description}")


def failure_of(judgement: judge_pb2.Judgement) -> Failed | None:
    """Why a pair has no label; None where it has one."""
    kind = failure_of_judgement(judgement)
    reason = next((one.failure for one in judgement.principles if one.failure), "")
    return _failed(kind, reason) if kind else None


def stored_failure(comparison: types_pb2.Comparison) -> Failed | None:
    """Why a stored pair has no label; None where it has one."""
    if comparison.outcome in LABELLED:
        return None
    first = next((one for one in comparison.judgements if one.failure), types_pb2.PrincipleJudgement())
    return failed(first.failure_kind, first.failure)


def unjudged(failure: Failed) -> judge_pb2.Judgement:
    """The judgement of a pair that no judge was asked about; ``failure_of`` gives the failure back."""
    kind, outcome = types_pb2.FailureKind.Value(f"FAILURE_KIND_{failure.kind.upper()}"), types_pb2.OUTCOME_INVALID
    found = types_pb2.PrincipleJudgement(outcome=outcome, failure=failure.reason, failure_kind=kind)
    return judge_pb2.Judgement(outcome=outcome, failure_kind=kind, principles=[found])


def _failed(kind: str, reason: str) -> Failed:
    return Failed(kind, reason or "no reason was given")
