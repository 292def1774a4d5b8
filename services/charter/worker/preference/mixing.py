"""How labels of the judge, of people and from files are mixed, by dimension."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from charter.runs.results import MixedLabels
from charter.spec.facts import AI, HUMAN, IMPORTED, label_shares
from charter.v1 import run_pb2
from charter.worker.errors import RunError, SpecError
from charter.worker.preference.fit import Example

_ADVICE = {
    AI: "raise comparisons.pairs, or give prompts of it",
    HUMAN: "label some with `charter feedback`",
    IMPORTED: "add some with `charter preferences import`",
}


def shares(feedback: run_pb2.FeedbackSpec, dimension: str) -> dict[str, float]:
    """Share of each source in a dimension, summing to 1; sources without one are left out.

    Raises ``SpecError`` when no source has a share, or one is not a number of at least 0.
    """
    found = label_shares(feedback, dimension)
    if not found:
        where = f"feedback.by_dimension.{dimension}" if dimension in feedback.by_dimension else "feedback"
        raise SpecError(f"{where} must give at least one of ai, human and imported a share above 0, and none below")
    return found


def with_share(examples: Sequence[Example], feedback: run_pb2.FeedbackSpec) -> list[Example]:
    """The pairs whose source has a share in their dimension."""
    return [example for example in examples if example.source in shares(feedback, example.dimension)]


def mix(
    train: Sequence[Example], held_out: Sequence[Example], feedback: run_pb2.FeedbackSpec
) -> tuple[list[Example], list[Example], list[MixedLabels]]:
    """The pairs whose source has a share in their dimension, weighted, and what went in.

    In each dimension the weights of a source add up to its share of the dimension's pairs; the dimensions keep the
    sizes that they have. Where a source has no labels in a dimension, the others share its part; that is an error for a
    dimension that ``by_dimension`` names, and for people or files that have no labels at all.
    """
    fitted, measured = with_share(train, feedback), with_share(held_out, feedback)
    counts = Counter((example.dimension, example.source) for example in fitted)
    held = Counter((example.dimension, example.source) for example in measured)
    _require(feedback, counts)
    dimensions = Counter(example.dimension for example in fitted)
    weights: dict[tuple[str, str], float] = {}
    for dimension, pairs in dimensions.items():
        there = {source: share for source, share in shares(feedback, dimension).items() if counts[dimension, source]}
        for source, share in there.items():
            weights[dimension, source] = share / sum(there.values()) * pairs / counts[dimension, source]
    report = [
        MixedLabels(
            source=source,
            dimension=dimension,
            train_pairs=counts[dimension, source],
            held_out_pairs=held[dimension, source],
            wanted_share=share,
            share=weights.get((dimension, source), 0.0) * counts[dimension, source] / dimensions[dimension],
        )
        for dimension in sorted(dimensions)
        for source, share in shares(feedback, dimension).items()
    ]
    weighted = [replace(example, weight=weights[example.dimension, example.source]) for example in fitted]
    return weighted, measured, report


def all_alike(train: Sequence[Example], held_out: Sequence[Example]) -> list[MixedLabels]:
    """What went in where nothing is mixed: every label counts once, whoever's it is."""
    counts = Counter((example.dimension, example.source) for example in train)
    held = Counter((example.dimension, example.source) for example in held_out)
    dimensions = Counter(example.dimension for example in train)
    return [
        MixedLabels(
            source=source,
            dimension=dimension,
            train_pairs=count,
            held_out_pairs=held[dimension, source],
            wanted_share=count / dimensions[dimension],
            share=count / dimensions[dimension],
        )
        for (dimension, source), count in sorted(counts.items())
    ]


def _require(feedback: run_pb2.FeedbackSpec, counts: Counter[tuple[str, str]]) -> None:
    for dimension in feedback.by_dimension:
        for source in shares(feedback, dimension):
            if not counts[dimension, source]:
                raise RunError(
                    f"feedback.by_dimension.{dimension} gives {source.lower()} a share, but it has no labels of that "
                    f"dimension to fit: {_ADVICE[source]}"
                )
    # The judge may have nothing to label, where the dimensions of all prompts are named.
    for source in sorted(shares(feedback, "").keys() - {AI}):
        if not any(count for (_, one), count in counts.items() if one == source):
            raise RunError(f"feedback gives {source.lower()} a share, but it has no labels to fit: {_ADVICE[source]}")
