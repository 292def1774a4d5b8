"""Comparisons of files in every layout, as pairs that measure a judge and as comparisons to store."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError
from charter.data.pairs.annotations import annotated_pair
from charter.data.pairs.chosen_rejected import chosen_rejected_pair, with_chosen_rejected
from charter.data.pairs.pair import Pair
from charter.data.pairs.rated import is_rated, rated_pair, with_neighbours
from charter.data.pairs.side_by_side import answer_columns, side_by_side_pairs
from charter.data.requests import request_turns
from charter.data.rows import Fields, Row, Where
from charter.data.sources import Source, read
from charter.held_out import is_held_out, prompt_key
from charter.outcomes import outcome_of
from charter.rpc.messages import chat_messages, proto_messages
from charter.rpc.validation import violations
from charter.storage.comparisons import COLUMNS, comparison_from_row, enum_name, enum_number, label_problem
from charter.v1 import types_pb2

# Columns that an export of ours has and no other layout; without the first it is one of pairs to be compared.
OURS = {"outcome", "answer_a", "answer_b"}
_UNLABELLED = OURS - {"outcome"}
_UNSAID = {"outcome": "UNAVAILABLE", "source": "HUMAN"}
# Below what one message to the store may hold.
_MOST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PairDefaults:
    """What rows of other layouts than ours do not say about themselves."""

    labeller: str
    dimension: str = ""
    # Share of prompts that are put into the held-out split.
    held_out_fraction: float = 0.0


def pairs_of(fields: Fields, column: str = "", labelled: bool = True) -> list[Pair]:
    """The pairs of a row, whose layout is told by its columns. Raises ``BadRowError``.

    - ours: the columns of ``charter.storage.comparisons.COLUMNS``;
    - exports of Argilla and Label Studio, with two answers that people chose from or ranked;
    - ``chosen`` and ``rejected``, with or without a ``prompt``;
    - a list of answers with ratings: the best against a lower one;
    - two answers in columns of their own, with a choice, a probability, a signed preference, two axes or votes.

    ``column`` names that of the label, of the probability that the chosen one is better, or of the ratings. A row
    without it is a bad one; one of ours takes none. Two answers in columns may have no label where ``labelled`` is
    False.
    """
    if fields.keys() >= OURS:
        return [pair_of(comparison_of_ours(fields, column))]
    if pair := annotated_pair(fields, column):
        return [pair]
    if sides := with_chosen_rejected(fields):
        return [chosen_rejected_pair(sides, column)]
    if is_rated(fields, column):
        return [rated_pair(fields, column)]
    if columns := answer_columns(fields):
        return side_by_side_pairs(fields, columns, column, labelled)
    raise BadRowError(
        "of no known layout",
        "needs chosen and rejected, two answers such as answer_a and answer_b, or a list of rated answers; it has "
        f"{', '.join(fields) or 'nothing'}",
    )


def comparisons(
    source: str | Path, defaults: PairDefaults, bad: BadRows, labelled: bool = True
) -> Iterator[tuple[Where, types_pb2.Comparison]]:
    """The comparisons of ``source`` (as ``Source.parse``) with their places, streaming; the store takes each.

    Those of an export of ours are as they were; all others are ``IMPORTED``, with what ``defaults`` say where the row
    says nothing. Rows may be without a label, ``UNAVAILABLE``, where ``labelled`` is False. Raises ``DataError`` behind
    the last row where bad ones stop, and when a file cannot be read.
    """
    parsed = Source.parse(source)

    def make(row: Row) -> list[tuple[Where, types_pb2.Comparison]]:
        fields = row.fields()
        if fields.keys() >= OURS:
            return [(row.where, _checked(comparison_of_ours(fields, parsed.column)))]
        if not labelled and _UNLABELLED <= fields.keys() <= set(COLUMNS):
            return [(row.where, _checked(_unlabelled(fields, defaults)))]
        found = pairs_of(fields, parsed.column, labelled)
        return [(row.where, _checked(_imported(pair, defaults))) for pair in found]

    return read(parsed, make, bad, lambda rows: with_neighbours(rows, parsed.column))


def pairs(source: str | Path, bad: BadRows, labelled: bool = True) -> Iterator[Pair]:
    """The pairs of ``source`` (as ``Source.parse``), streaming. Raises as ``comparisons``."""
    parsed = Source.parse(source)

    def make(row: Row) -> list[Pair]:
        found = pairs_of(row.fields(), parsed.column, labelled)
        if labelled and any(pair.label is None for pair in found):
            raise BadRowError("without a label", "nobody could say which answer is better")
        return found

    return read(parsed, make, bad, lambda rows: with_neighbours(rows, parsed.column))


def split_of(prompt: tuple[ChatMessage, ...], held_out_fraction: float) -> types_pb2.Split.ValueType:
    """Drawn by the prompt's content, so that a prompt is never in both splits."""
    held_out = is_held_out(prompt_key(prompt), held_out_fraction)
    return types_pb2.SPLIT_HELD_OUT if held_out else types_pb2.SPLIT_TRAIN


def comparison_of_ours(fields: Fields, column: str = "") -> types_pb2.Comparison:
    """A row of an export of ours. Raises ``BadRowError``, for a ``column`` of the label too: its columns are known."""
    if column:
        raise BadRowError(
            "with a label of its own", f"is an export of comparisons, whose label is known: leave out #{column}"
        )
    try:
        comparison = comparison_from_row(fields)
    except ValueError as error:
        raise BadRowError("not an exported comparison", str(error)) from error
    if problem := label_problem(comparison):
        raise BadRowError("with a label that contradicts itself", problem)
    return comparison


def pair_of(comparison: types_pb2.Comparison) -> Pair:
    """What a comparison says of its answers."""
    return Pair(
        chat_messages(comparison.prompt),
        comparison.answer_a.text,
        comparison.answer_b.text,
        comparison.probability_a if comparison.HasField("probability_a") else None,
        dimension=comparison.dimension,
        source=enum_name("source", comparison.source).lower(),
        split=enum_name("split", comparison.split),
    )


def _unlabelled(fields: Fields, defaults: PairDefaults) -> types_pb2.Comparison:
    prompt = request_turns(fields) or ()
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    drawn = enum_name("split", split_of(prompt, defaults.held_out_fraction))
    return comparison_of_ours(_UNSAID | {"split": drawn} | fields | {"prompt": turns})


def _checked(comparison: types_pb2.Comparison) -> types_pb2.Comparison:
    """Raises ``BadRowError`` for what the store refuses."""
    if found := violations(comparison):
        problem = "; ".join(f"{one.field} {one.description}" for one in found)
        raise BadRowError("that the store refuses", problem)
    if comparison.ByteSize() > _MOST_BYTES:
        size = f"holds {comparison.ByteSize()} bytes, at most {_MOST_BYTES} are possible"
        raise BadRowError("that the store refuses", size)
    return comparison


def _imported(pair: Pair, defaults: PairDefaults) -> types_pb2.Comparison:
    comparison = types_pb2.Comparison(
        prompt=proto_messages(pair.prompt),
        answer_a=types_pb2.Answer(text=pair.answer_a),
        answer_b=types_pb2.Answer(text=pair.answer_b),
        source=types_pb2.LABEL_SOURCE_IMPORTED,
        labeller=defaults.labeller,
        dimension=pair.dimension or defaults.dimension,
        outcome=types_pb2.OUTCOME_UNAVAILABLE,
        split=split_of(pair.prompt, defaults.held_out_fraction),
    )
    if pair.split in ("TRAIN", "HELD_OUT"):
        comparison.split = types_pb2.Split.ValueType(enum_number("split", pair.split))
    if pair.label is not None:
        comparison.probability_a = pair.label
        comparison.outcome = outcome_of(pair.label)
    return comparison
