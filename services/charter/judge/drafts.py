"""What is criticised and rewritten."""

from dataclasses import dataclass

from charter.chat import ChatMessage
from charter.spec.constitution import Principle


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer to criticise, or with a ``critique`` to rewrite, under one principle."""

    prompt: tuple[ChatMessage, ...]
    answer: str
    principle: Principle
    critique: str = ""
    # Of what the model writes about it, whatever else is in the call.
    seed: int | None = None

    def examples(self) -> "list[Draft]":
        """Those of the principle, in its order: a small model sees by them who speaks, and that it writes no more."""
        return [
            Draft((ChatMessage("user", one.prompt),), one.answer, self.principle, one.critique)
            for one in self.principle.revisions
        ]
