"""What a person says about a pair, and the comparison that is stored of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from charter.feedback.pairs import LEFT, TIE, Pair
from charter.outcomes import outcome_of
from charter.v1 import judge_pb2, types_pb2

METHOD = "feedback"

# Thumbs by the names that the page has for them.
RATINGS = {"up": types_pb2.RATING_UP, "down": types_pb2.RATING_DOWN, "": types_pb2.RATING_UNSPECIFIED}


class LabelError(ValueError):
    """A label cannot be stored, and never will be; the message says why."""


class Label(BaseModel):
    """A decision as the page sends it. ``id`` is the page's; sent again it stores nothing twice."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=8, max_length=100)]
    pair: Annotated[str, Field(min_length=1, max_length=100)]
    choice: Literal["left", "right", "tie"]
    left_rating: Literal["up", "down", ""] = ""
    right_rating: Literal["up", "down", ""] = ""
    reason: Annotated[str, Field(max_length=20_000)] = ""
    # The principle that was judged by; empty for none.
    principle: Annotated[str, Field(max_length=200)] = ""


def comparison_of(
    label: Label, pair: Pair, labeller: str, constitution: judge_pb2.Constitution | None
) -> types_pb2.Comparison:
    """The comparison to store: A is the answer that was shown left, so that the order shown is part of the record.

    Raises ``LabelError`` for a principle that the constitution does not have, and for a preference between identical
    answers.
    """
    if pair.identical and label.choice != TIE:
        raise LabelError("both answers are the same text: only a tie is possible")
    left, right = pair.shown(labeller)
    comparison = types_pb2.Comparison(
        prompt=pair.comparison.prompt,
        answer_a=left,
        answer_b=right,
        source=types_pb2.LABEL_SOURCE_HUMAN,
        labeller=labeller,
        method=METHOD,
        run_id=pair.comparison.run_id,
        split=pair.comparison.split,
        dimension=pair.comparison.dimension,
        rationale=label.reason,
    )
    comparison.answer_a.rating = RATINGS[label.left_rating]
    comparison.answer_b.rating = RATINGS[label.right_rating]
    comparison.probability_a = 0.5 if label.choice == TIE else float(label.choice == LEFT)
    comparison.outcome = outcome_of(comparison.probability_a)
    if label.principle:
        _name_principle(comparison, label.principle, constitution)
    return comparison


def _name_principle(
    comparison: types_pb2.Comparison, principle_id: str, constitution: judge_pb2.Constitution | None
) -> None:
    known = {one.id: one for one in constitution.principles} if constitution else {}
    if constitution is None or principle_id not in known:
        raise LabelError(f"the constitution has no principle {principle_id!r}")
    comparison.constitution_digest = constitution.digest
    comparison.judgements.add(
        principle_id=principle_id,
        dimension=known[principle_id].dimension,
        outcome=comparison.outcome,
        probability_a=comparison.probability_a,
        # The other order was not shown.
        probability_a_shown_first=comparison.probability_a,
    )
