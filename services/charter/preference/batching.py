"""Which waiting answers are scored together."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Size(NamedTuple):
    """Of an answer that waits: the conversation that it answers, and its tokens with and without that."""

    conversation: Hashable
    tokens: int
    alone: int


def choose_batch(waiting: Sequence[Size], token_budget: int) -> list[int]:
    """Indices of the answers to score next, of those that wait, which are in order of arrival.

    The oldest is always chosen, so that none waits for ever, and joined by the others to the same conversation, which
    is computed once for all; then the oldest of the others with its own, and so on, while the tokens to compute stay
    within ``token_budget``. An answer longer than the budget goes alone.
    """
    conversations: dict[Hashable, list[int]] = {}
    for index, one in enumerate(waiting):
        conversations.setdefault(one.conversation, []).append(index)
    chosen: list[int] = []
    tokens = 0
    for answers in conversations.values():
        for place, index in enumerate(answers):
            tokens += waiting[index].alone if place else waiting[index].tokens
            if chosen and tokens > token_budget:
                return chosen
            chosen.append(index)
    return chosen
