"""How a model is asked for a prompt: by examples, or by being let write the user's turn.

Everything that a try shows is drawn from (seed, number of the try), so that it is the same whenever it is made.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from charter.data.prompts import TaskPrompt
from charter.hashing import stable_number
from charter.v1 import policy_pb2, types_pb2

# Examples as turns of a chat, examples in a text that a base model goes on with, and the user's turn (Xu et al. 2024,
# "Magpie", arXiv 2406.08464).
FEW_SHOT, PLAIN, MAGPIE = "few_shot", "plain", "magpie"
METHODS = (FEW_SHOT, PLAIN, MAGPIE)

_SYSTEM = (
    "You write requests that people send to an assistant. Each of your messages is one request, in the words of the "
    "person who sends it, and nothing else."
)
_HEADER = "### Request"
_HEADERS = re.compile(rf"^[^\S\n]*{_HEADER}\b.*$", re.MULTILINE)
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the tries go through in turn, and what they draw from."""

    method: str
    seed: int
    dimensions: Sequence[str]
    topics: Sequence[str]
    examples: int
    seeds: Sequence[TaskPrompt]


@dataclass(frozen=True, slots=True)
class Try:
    """One time that the model is asked."""

    number: int
    method: str
    seed: int
    dimension: str
    topic: str
    examples: tuple[TaskPrompt, ...]

    def as_request(self) -> policy_pb2.GenerationPrompt:
        """As the policy is asked, with random numbers of its own."""
        if self.method == PLAIN:
            return policy_pb2.GenerationPrompt(text=_text(self), seed=self.seed)
        turns = _turns(self) if self.method == FEW_SHOT else _about(self)
        return policy_pb2.GenerationPrompt(
            messages=[types_pb2.Message(role=role, content=content) for role, content in turns],
            as_user=self.method == MAGPIE,
            seed=self.seed,
        )

    def read(self, text: str, *, ended: bool) -> list[tuple[str, bool]]:
        """The prompts in what the model wrote, and of each whether it is cut off; ``ended`` is whether it ended it."""
        # A base model goes on with the list.
        parts = _HEADERS.split(text) if self.method == PLAIN else [text]
        cut_off = [False] * (len(parts) - 1) + [not ended]
        return [(_unquoted(part), cut) for part, cut in zip(parts, cut_off, strict=True)]


def try_of(wanted: Wanted, number: int) -> Try:
    """A try by its number, from 0: each dimension with each topic in turn."""
    cells = [(dimension, topic) for dimension in wanted.dimensions for topic in wanted.topics]
    dimension, topic = cells[number % len(cells)]
    pool = [one for one in wanted.seeds if one.dimension == dimension or not one.dimension]
    draw = random.Random(stable_number("examples of prompts", str(wanted.seed), str(number)))
    shown = () if wanted.method == MAGPIE else tuple(draw.sample(pool, min(wanted.examples, len(pool))))
    seed = stable_number("a prompt", str(wanted.seed), str(number)) >> 1
    return Try(number, wanted.method, seed, dimension, topic, shown)


def _turns(asked: Try) -> list[tuple["types_pb2.Role.ValueType", str]]:
    turns = [(types_pb2.ROLE_SYSTEM, _SYSTEM)]
    for one in asked.examples:
        turns += [(types_pb2.ROLE_USER, "Write a request."), (types_pb2.ROLE_ASSISTANT, one.text)]
    last = f"Write a request about {asked.topic}." if asked.topic else "Write a request."
    return [*turns, (types_pb2.ROLE_USER, last)]


def _about(asked: Try) -> list[tuple["types_pb2.Role.ValueType", str]]:
    about = f"You are a helpful assistant. The user asks about {asked.topic}."
    return [(types_pb2.ROLE_SYSTEM, about)] if asked.topic else []


def _text(asked: Try) -> str:
    about = f" about {asked.topic}" if asked.topic else ""
    numbered = [f"{_HEADER} {place}\n{one.text}" for place, one in enumerate(asked.examples, start=1)]
    begun = f"{_HEADER} {len(numbered) + 1}\n"
    return "\n\n".join([f"Requests{about} that people sent to an assistant, one after the other.", *numbered, begun])


def _unquoted(text: str) -> str:
    text = text.strip()
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text.startswith(first) and text.endswith(last) and first not in inner:
            return inner.strip()
    return text
