"""Comparisons as rows: the layout of exported files, its JSONL and Parquet forms, and what a valid label is.

A row is a flat dict with the field names of ``charter.v1.Comparison``; each answer is five columns. Outcomes, sources
and splits are the enum's names without prefix (``PREFERRED_A``, ``HUMAN``, ``HELD_OUT``), roles are ``system``,
``user`` and ``assistant``, ``create_time`` is a UTC ``datetime`` with microseconds. Optional values are None.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from charter.outcomes import outcome_of
from charter.rpc.messages import chat_messages
from charter.v1 import judge_pb2, types_pb2

Row = dict[str, Any]

# Versions are uint64 on the wire; SQL and Parquet hold them as int64.
MOST_WEIGHT_VERSION = 2**63 - 1
# The bound that the contract declares.
MOST_TOKENS = 2**53 - 1

# Method of the comparisons of a revision with the answer that was revised.
REVISION_METHOD = "revision"

# Columns of a file with the kind of their values; ``charter.storage.parquet`` gives each kind its type there.
JUDGEMENT_COLUMNS = {
    "principle_id": "text",
    "dimension": "text",
    "outcome": "text",
    "probability_a": "number",
    "probability_a_shown_first": "number",
    "probability_a_shown_second": "number",
    "rationale": "text",
    "rationale_swapped": "text",
    "failure": "text",
    "evidence": "numbers",
    "prompt_tokens": "count",
    "completion_tokens": "count",
    "without_logprobs": "flag",
    "failure_kind": "text",
}
COLUMNS = {
    "id": "text",
    "prompt": "messages",
    "answer_a": "text",
    "answer_a_model": "text",
    "answer_a_weight_version": "count",
    "answer_a_rating": "text",
    "answer_a_cut_off": "flag",
    "answer_b": "text",
    "answer_b_model": "text",
    "answer_b_weight_version": "count",
    "answer_b_rating": "text",
    "answer_b_cut_off": "flag",
    "source": "text",
    "labeller": "text",
    "outcome": "text",
    "probability_a": "number",
    "judgements": "judgements",
    "method": "text",
    "constitution_digest": "text",
    "run_id": "text",
    "split": "text",
    "dimension": "text",
    "rationale": "text",
    "create_time": "time",
}
_JUDGEMENT_FIELDS = tuple(JUDGEMENT_COLUMNS)
_PROBABILITIES = ("probability_a", "probability_a_shown_first", "probability_a_shown_second")
_TOKENS = ("prompt_tokens", "completion_tokens")
_NOT_TEXTS = ("outcome", "failure_kind", "evidence", "without_logprobs", *_PROBABILITIES, *_TOKENS)
_JUDGEMENT_TEXTS = tuple(name for name in _JUDGEMENT_FIELDS if name not in _NOT_TEXTS)

_PREFIXES = {
    "outcome": "OUTCOME_",
    "source": "LABEL_SOURCE_",
    "split": "SPLIT_",
    "rating": "RATING_",
    "failure_kind": "FAILURE_KIND_",
}
_ENUMS: dict[str, Any] = {
    "outcome": types_pb2.Outcome,
    "source": types_pb2.LabelSource,
    "split": types_pb2.Split,
    "rating": types_pb2.Rating,
    "failure_kind": types_pb2.FailureKind,
}
_ROLES = {"system": types_pb2.ROLE_SYSTEM, "user": types_pb2.ROLE_USER, "assistant": types_pb2.ROLE_ASSISTANT}

LABELLED = (types_pb2.OUTCOME_PREFERRED_A, types_pb2.OUTCOME_PREFERRED_B, types_pb2.OUTCOME_TIE)


def method_name(judgement: judge_pb2.Judgement) -> str:
    """The method of a label: choice, verdict, contrast, mix; with ``+reasoning`` when the judge reasoned first."""
    name = judge_pb2.JudgingMethod.Name(judgement.method).removeprefix("JUDGING_METHOD_").lower()
    return f"{name}+reasoning" if judgement.chain_of_thought else name


def enum_name(kind: str, number: int) -> str:
    """Name of an ``outcome``, ``source``, ``split``, ``rating`` or ``failure_kind`` without its prefix."""
    name: str = _ENUMS[kind].Name(number)
    return name.removeprefix(_PREFIXES[kind])


def enum_number(kind: str, name: str) -> int:
    """Inverse of ``enum_name``. Raises ``ValueError`` that lists the names; UNSPECIFIED is none of them."""
    values = _ENUMS[kind].DESCRIPTOR.values_by_name
    names = [value.removeprefix(_PREFIXES[kind]) for value in values if not value.endswith("_UNSPECIFIED")]
    if name not in names:
        raise ValueError(f"{kind} must be one of {', '.join(names)}, not {name!r}")
    number: int = _ENUMS[kind].Value(_PREFIXES[kind] + name)
    return number


def label_problem(comparison: types_pb2.Comparison) -> str | None:
    """Why the soft label contradicts the outcome, or None: ``charter.outcomes`` says which belongs to which."""
    outcome = enum_name("outcome", comparison.outcome)
    if comparison.outcome not in LABELLED:
        return f"probability_a must be unset for {outcome}" if comparison.HasField("probability_a") else None
    if not comparison.HasField("probability_a"):
        return f"probability_a is required for {outcome}"
    probability = comparison.probability_a
    meant = enum_name("outcome", outcome_of(probability))
    if outcome != meant:
        return f"probability_a {probability:.9g} contradicts the outcome {outcome}: it means {meant}"
    return None


def content_id(comparison: types_pb2.Comparison) -> str:
    """Names what is compared: the sha256 in hex of the prompt and of both texts, whichever is A."""
    texts = sorted((comparison.answer_a.text, comparison.answer_b.text))
    content = json.dumps([[(turn.role, turn.content) for turn in comparison.prompt], texts])
    return hashlib.sha256(content.encode()).hexdigest()


def content_digest(row: Row) -> str:
    """sha256 in hex of everything that a row of ``comparison_to_row`` says, except its id and time."""
    # Where these are not said, ids are those from before they could be.
    later = ("answer_a_rating", "answer_b_rating", "answer_a_cut_off", "answer_b_cut_off")
    unsaid = {"id", "create_time", *(name for name in later if row[name] is None)}
    content = {name: value for name, value in row.items() if name not in unsaid}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def comparison_to_row(comparison: types_pb2.Comparison) -> Row:
    """One comparison as a row with the columns of ``SCHEMA``."""
    row: Row = {
        "id": comparison.id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in chat_messages(comparison.prompt)],
        "source": enum_name("source", comparison.source),
        "labeller": comparison.labeller,
        "outcome": enum_name("outcome", comparison.outcome),
        "probability_a": _optional(comparison, "probability_a"),
        "judgements": [_judgement_to_row(judgement) for judgement in comparison.judgements],
        "method": comparison.method,
        "constitution_digest": comparison.constitution_digest,
        "run_id": comparison.run_id,
        "split": enum_name("split", comparison.split),
        "dimension": comparison.dimension,
        "rationale": comparison.rationale,
        "create_time": comparison.create_time.ToDatetime(UTC) if comparison.HasField("create_time") else None,
    }
    for name, answer in (("answer_a", comparison.answer_a), ("answer_b", comparison.answer_b)):
        row[name] = answer.text
        row[f"{name}_model"] = answer.model
        row[f"{name}_weight_version"] = _optional(answer, "weight_version")
        row[f"{name}_rating"] = enum_name("rating", answer.rating) if answer.rating else None
        row[f"{name}_cut_off"] = _optional(answer, "cut_off")
    return row


def comparison_from_row(row: Mapping[str, Any]) -> types_pb2.Comparison:
    """Inverse of ``comparison_to_row``; absent columns are empty, a time may be RFC 3339 text.

    Raises ``ValueError`` that names the column when one is unknown, of the wrong type or not a known name.
    """
    _refuse_unknown(row, COLUMNS)
    comparison = types_pb2.Comparison(
        id=_text(row, "id"),
        prompt=messages_from(row.get("prompt"), "prompt"),
        source=_enum(row, "source"),
        labeller=_text(row, "labeller"),
        outcome=_enum(row, "outcome"),
        probability_a=_number(row, "probability_a"),
        judgements=[
            _judgement_from_row(entry, f"judgements[{index}]")
            for index, entry in enumerate(_list(row.get("judgements"), "judgements"))
        ],
        method=_text(row, "method"),
        constitution_digest=_text(row, "constitution_digest"),
        run_id=_text(row, "run_id"),
        split=_enum(row, "split"),
        dimension=_text(row, "dimension"),
        rationale=_text(row, "rationale"),
        answer_a=_answer(row, "answer_a"),
        answer_b=_answer(row, "answer_b"),
    )
    if (time := row.get("create_time")) is not None:
        comparison.create_time.FromDatetime(_time(time))
    return comparison


def messages_from(value: Any, name: str) -> list[types_pb2.Message]:
    """Turns from ``[{"role", "content"}]``; other keys of a turn are an error. Raises ``ValueError``."""
    turns = []
    for index, turn in enumerate(_list(value, name)):
        if not isinstance(turn, Mapping) or set(turn) != {"role", "content"} or not isinstance(turn["content"], str):
            raise ValueError(f"{name}[{index}] must have the keys role and content, both text")
        if turn["role"] not in _ROLES:
            raise ValueError(f"{name}[{index}].role must be one of {', '.join(_ROLES)}, not {turn['role']!r}")
        turns.append(types_pb2.Message(role=_ROLES[turn["role"]], content=turn["content"]))
    return turns


def row_to_json(row: Row) -> str:
    """One line of JSONL, without its end. Numbers must be finite."""
    if row.get("create_time") is not None:
        row = {**row, "create_time": row["create_time"].isoformat()}
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _judgement_to_row(judgement: types_pb2.PrincipleJudgement) -> Row:
    row: Row = {name: getattr(judgement, name) for name in _JUDGEMENT_FIELDS}
    row["outcome"] = enum_name("outcome", judgement.outcome)
    row["failure_kind"] = enum_name("failure_kind", judgement.failure_kind) if judgement.failure_kind else ""
    row["evidence"] = list(judgement.evidence)
    for name in _PROBABILITIES:
        row[name] = _optional(judgement, name)
    return row


def _judgement_from_row(entry: Any, name: str) -> types_pb2.PrincipleJudgement:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name} must be an object")
    try:
        _refuse_unknown(entry, _JUDGEMENT_FIELDS)
        values: dict[str, Any] = {field: _text(entry, field) for field in _JUDGEMENT_TEXTS}
        values |= {field: _number(entry, field) for field in _PROBABILITIES}
        values |= {field: _count(entry, field) for field in _TOKENS}
        values["without_logprobs"] = _flag(entry, "without_logprobs")
        values["evidence"] = [_as_number(one, "evidence") for one in _list(entry.get("evidence"), "evidence")]
        # A judgement without an outcome is possible on the wire.
        if entry.get("outcome") not in (None, "UNSPECIFIED"):
            values["outcome"] = _enum(entry, "outcome")
        if entry.get("failure_kind") not in (None, ""):
            values["failure_kind"] = _enum(entry, "failure_kind")
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
    return types_pb2.PrincipleJudgement(**values)


def _answer(row: Mapping[str, Any], name: str) -> types_pb2.Answer:
    if not isinstance(row.get(name), str):
        raise ValueError(f"{name} must be text")
    version = row.get(f"{name}_weight_version")
    if version is not None and (type(version) is not int or not 0 <= version <= MOST_WEIGHT_VERSION):
        raise ValueError(f"{name}_weight_version must be an integer from 0 to {MOST_WEIGHT_VERSION}")
    answer = types_pb2.Answer(text=row[name], model=_text(row, f"{name}_model"), weight_version=version)
    if row.get(f"{name}_rating") is not None:
        answer.rating = _enum(row, f"{name}_rating", kind="rating")
    if row.get(f"{name}_cut_off") is not None:
        answer.cut_off = _flag(row, f"{name}_cut_off")
    return answer


def _refuse_unknown(row: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := sorted(set(row) - set(known)):
        raise ValueError(f"{unknown[0]} is not a known field; known are {', '.join(known)}")


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text")
    return value


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return None if value is None else _as_number(value, name)


def _count(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MOST_TOKENS:
        raise ValueError(f"{name} must be an integer from 0 to {MOST_TOKENS}")
    return value


def _flag(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    if not isinstance(value, bool | None):
        raise ValueError(f"{name} must be true or false")
    return bool(value)


def _as_number(value: Any, name: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number")
    return float(value)


def _enum(row: Mapping[str, Any], name: str, kind: str = "") -> Any:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text")
    return enum_number(kind or name, value)


def _list(value: Any, name: str) -> Iterator[Any]:
    if value is None:
        return iter(())
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list")
    return iter(value)


def _time(value: Any) -> datetime:
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"create_time must be a time such as 2026-01-31T12:00:00+00:00, not {value!r}") from None
    if time.tzinfo is None:
        raise ValueError("create_time must name its time zone, for example +00:00")
    return time.astimezone(UTC)


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None
