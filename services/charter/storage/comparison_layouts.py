"""The chosen/rejected layout in which comparisons are written for other trainers."""

from charter.storage.comparisons import LABELLED, Row, comparison_to_row
from charter.v1 import types_pb2

# As ``charter.storage.comparisons.COLUMNS``.
PAIR_COLUMNS = {
    "chosen": "messages",
    "rejected": "messages",
    "probability_chosen": "number",
    "source": "text",
    "dimension": "text",
    "split": "text",
}


def pair_row(comparison: types_pb2.Comparison) -> Row | None:
    """A row with the columns of ``PAIR_COLUMNS``; None for a tie and for a comparison without a label."""
    if comparison.outcome not in LABELLED or comparison.outcome == types_pb2.OUTCOME_TIE:
        return None
    row = comparison_to_row(comparison)
    a_is_chosen = comparison.outcome == types_pb2.OUTCOME_PREFERRED_A
    chosen, rejected = ("answer_a", "answer_b") if a_is_chosen else ("answer_b", "answer_a")
    return {
        "chosen": [*row["prompt"], {"role": "assistant", "content": row[chosen]}],
        "rejected": [*row["prompt"], {"role": "assistant", "content": row[rejected]}],
        "probability_chosen": row["probability_a"] if a_is_chosen else 1 - row["probability_a"],
        "source": row["source"],
        "dimension": row["dimension"],
        "split": row["split"],
    }
