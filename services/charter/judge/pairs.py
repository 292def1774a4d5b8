"""What the judging methods are asked, and what they find."""

import re
from dataclasses import dataclass, field, replace

from charter.chat import ChatMessage
from charter.inference.engine import ContextTooLongError
from charter.spec.constitution import Principle
from charter.v1 import types_pb2

# Where a further line begins as one of the judge's questions does, whatever is read as a line end.
_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LABELS = r"\([AB]\)|(?:System|User|Assistant):|The assistant was told:|Critique of the last response:"


def marked_lines(labels: str) -> re.Pattern[str]:
    """Matches, with no width, before a further line that begins with one of ``labels``, a regular expression."""
    return re.compile(rf"(?<=[{_ENDS}])(?=[^\S{_ENDS}]*(?:{labels}))", re.IGNORECASE)


_LIKE_OURS = marked_lines(_LABELS)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one conversation, which ends with the user's turn."""

    prompt: tuple[ChatMessage, ...]
    answer_a: str
    answer_b: str

    def swapped(self) -> "Pair":
        """The same pair with A and B exchanged."""
        return replace(self, answer_a=self.answer_b, answer_b=self.answer_a)


@dataclass(frozen=True, slots=True)
class Question:
    """One pair under one principle."""

    pair: Pair
    principle: Principle


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a result has cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


def total(*usages: Usage) -> Usage:
    """The sum of what several calls have cost."""
    return Usage(sum(usage.prompt_tokens for usage in usages), sum(usage.completion_tokens for usage in usages))


@dataclass(frozen=True, slots=True)
class Finding:
    """What a method found for one question, before calibration, or why it found nothing.

    ``evidence`` is in nats. From ``choice``: the log-odds of A when A was shown first and when A was shown second.
    From ``verdict`` and ``contrast``: A's lead over B under the principle, and under its opposite. From ``mix``: that
    of all three, in this order. It is empty when ``failure`` says why there is none, and for identical answers.
    ``kind`` is that of the failure, ``mass`` the probability of the options where that was too little. ``written`` is
    true when the model gave no log-probs and was read by the options that it wrote.
    """

    evidence: tuple[float, ...] = ()
    failure: str = ""
    kind: types_pb2.FailureKind.ValueType = types_pb2.FAILURE_KIND_UNSPECIFIED
    rationale: str = ""
    rationale_swapped: str = ""
    usage: Usage = field(default_factory=Usage)
    written: bool = False
    mass: float = 1.0


def transcript(messages: tuple[ChatMessage, ...]) -> str:
    """The conversation as text that a model reads about, rather than takes part in."""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    return "\n\n".join(f"{names[turn.role]}: {quoted(turn.content)}" for turn in messages)


def quoted(text: str) -> str:
    """A text to be judged, without lines that would be read as parts of the question about it.

    A further line that begins like one of the question's own (``(B)``, ``User:``) gets ``> `` before it.
    """
    return _LIKE_OURS.sub("> ", text)


def too_long(error: ContextTooLongError) -> str:
    """The failure of a question that does not fit the model's context."""
    if not (error.tokens and error.limit):
        return "does not fit the model's context"
    return f"needs {error.tokens} tokens, the model's context holds {error.limit}"
