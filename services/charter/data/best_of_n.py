"""Files of prompts with right and wrong answers, to measure a preference model: RewardBench 2's form."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.errors import BadRowError
from charter.data.rows import Fields, Row
from charter.data.sources import Source, read
from charter.data.turns import text_of, turns_of


@dataclass(frozen=True, slots=True)
class BestOfN:
    """A prompt with the answers that are right and those that are not."""

    id: str
    subset: str
    prompt: tuple[ChatMessage, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


def best_of_n(source: str | Path, bad: BadRows | None = None) -> Iterator[BestOfN]:
    """The rows of ``source`` (as ``Source.parse``), streaming.

    Columns are those of allenai/reward-bench-2: ``prompt`` (a text, or messages), ``chosen`` and ``rejected`` (a text
    or a list of them), ``subset`` and ``id``, both optional. Raises ``DataError``, as ``conversations.conversations``.
    """
    return read(Source.parse(source), lambda row: [_best_of_n(row)], bad or BadRows())


def _best_of_n(row: Row) -> BestOfN:
    fields = row.fields()
    if missing := [name for name in ("prompt", "chosen", "rejected") if name not in fields]:
        has = ", ".join(fields) or "nothing"
        raise BadRowError(
            "of no known layout",
            f"needs prompt, chosen and rejected, and has no {', '.join(missing)}; it has {has}",
        )
    prompt = fields["prompt"]
    turns = (
        turns_of(prompt, "prompt") if isinstance(prompt, list) else (ChatMessage("user", text_of(prompt, "prompt")),)
    )
    if not any(turn.content.strip() for turn in turns):
        raise BadRowError("with an empty prompt")
    if turns[-1].role != "user":
        raise BadRowError("without a request", "the prompt must end with a turn of the user")
    identity = fields.get("id", row.where.number)
    return BestOfN(
        str(identity), str(fields.get("subset", "")), turns, _answers(fields, "chosen"), _answers(fields, "rejected")
    )


def _answers(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields[name]
    answers = tuple(text_of(one, name) for one in (value if isinstance(value, list) else [value]))
    if not answers:
        raise BadRowError(f"without an answer in {name}")
    if not all(answer.strip() for answer in answers):
        raise BadRowError("with an empty answer")
    return answers
