"""Which waiting answers are scored together."""

from collections.abc import Sequence

# Most tokens computed for one that is read: a batch is padded to its longest answer.
MOST_PADDED = 1.25


def choose_batch(lengths: Sequence[int], token_budget: int) -> list[int]:
    """Indices of the answers to score next, of those that wait.

    ``lengths`` are their tokens, in order of arrival. The oldest is always chosen, so that none waits for ever. It is
    joined by answers of like length, nearest first, while the padded batch (answers times longest) stays within
    ``token_budget`` and within ``MOST_PADDED`` times its real tokens. An answer longer than the budget goes alone.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    first = last = by_length.index(0)
    tokens = lengths[0]
    while True:
        candidates = []
        if first > 0:
            candidates.append((lengths[by_length[last]], first - 1))
        if last + 1 < len(by_length):
            candidates.append((lengths[by_length[last + 1]], last + 1))
        # Of the next shorter and the next longer answer, the one that leads to less padding.
        fitting = []
        for longest, place in candidates:
            padded = longest * (last - first + 2)
            real = tokens + lengths[by_length[place]]
            if padded <= token_budget and padded <= MOST_PADDED * real:
                fitting.append((padded - real, place))
        if not fitting:
            return by_length[first : last + 1]
        _, place = min(fitting)
        tokens += lengths[by_length[place]]
        first, last = min(first, place), max(last, place)
