"""What the labels of a run amount to: by principle, and where the principles of one label disagree."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from charter.outcomes import lead, same_position_wins, side
from charter.storage.comparisons import enum_name
from charter.v1 import types_pb2

# Disagreements that are listed one by one, the widest first.
_LISTED = 10


@dataclass
class _Principle:
    """What one principle found."""

    dimension: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    # Distance of P(A is better) from 0.5.
    confidence: list[float] = field(default_factory=list)
    # Whether the same position won in both orders, where both were shown.
    same_position: list[bool] = field(default_factory=list)
    tokens: int = 0


def summary_of(comparisons: Iterable[types_pb2.Comparison]) -> dict[str, Any]:
    """Counts and means over the stored judgements, as JSON. A mean over nothing is null."""
    outcomes: Counter[str] = Counter()
    makers: Counter[tuple[str, str, str, str]] = Counter()
    principles: dict[str, _Principle] = defaultdict(_Principle)
    pairs: dict[tuple[str, str], list[bool]] = defaultdict(list)
    widest: list[dict[str, Any]] = []
    for comparison in comparisons:
        outcomes[enum_name("outcome", comparison.outcome).lower()] += 1
        source = enum_name("source", comparison.source).lower()
        makers[source, comparison.labeller, comparison.method, comparison.constitution_digest] += 1
        for judgement in comparison.judgements:
            _add(principles[judgement.principle_id], judgement)
        sides = {one.principle_id: one.probability_a for one in comparison.judgements if one.HasField("probability_a")}
        for one, other in itertools.combinations(sorted(sides), 2):
            pairs[one, other].append(side(sides[one]) * side(sides[other]) < 0)
        if len(sides) > 1:
            widest = _widest(widest, comparison.id, sides)
    return {
        "comparisons": outcomes.total(),
        "outcomes": dict(outcomes),
        "labellers": [
            {"source": source, "labeller": labeller, "method": method, "constitution_digest": digest, "labels": count}
            for (source, labeller, method, digest), count in makers.most_common()
        ],
        "principles": {name: _principle_json(one) for name, one in sorted(principles.items())},
        "disagreement": [
            {"principles": list(names), "asked_together": len(opposed), "opposed": sum(opposed)}
            for names, opposed in sorted(pairs.items(), key=lambda entry: (-fmean(entry[1]), entry[0]))
        ],
        "widest": widest,
    }


def _add(principle: _Principle, judgement: types_pb2.PrincipleJudgement) -> None:
    principle.dimension = judgement.dimension
    principle.outcomes[enum_name("outcome", judgement.outcome).lower()] += 1
    principle.tokens += judgement.prompt_tokens + judgement.completion_tokens
    if judgement.failure:
        principle.failures[judgement.failure] += 1
    if judgement.HasField("probability_a"):
        principle.confidence.append(abs(lead(judgement.probability_a)))
    if judgement.HasField("probability_a_shown_first") and judgement.HasField("probability_a_shown_second"):
        first, second = judgement.probability_a_shown_first, judgement.probability_a_shown_second
        principle.same_position.append(same_position_wins(first, second))


def _widest(widest: list[dict[str, Any]], comparison_id: str, sides: dict[str, float]) -> list[dict[str, Any]]:
    """The list with this label in its place, if its principles lie on opposite sides."""
    most = max(sides, key=lambda name: sides[name])
    least = min(sides, key=lambda name: sides[name])
    if not side(sides[least]) < 0 < side(sides[most]):
        return widest
    entry = {
        "comparison": comparison_id,
        "for_a": {"principle": most, "probability_a": sides[most]},
        "for_b": {"principle": least, "probability_a": sides[least]},
    }
    return sorted([*widest, entry], key=_width, reverse=True)[:_LISTED]


def _width(entry: dict[str, Any]) -> float:
    return float(entry["for_a"]["probability_a"] - entry["for_b"]["probability_a"])


def _principle_json(one: _Principle) -> dict[str, Any]:
    return {
        "dimension": one.dimension,
        "judgements": one.outcomes.total(),
        "outcomes": dict(one.outcomes),
        "mean_distance_from_half": fmean(one.confidence) if one.confidence else None,
        "position_bias_rate": fmean(one.same_position) if one.same_position else None,
        "tokens_per_judgement": one.tokens / one.outcomes.total(),
        "failures": dict(one.failures.most_common()),
    }
