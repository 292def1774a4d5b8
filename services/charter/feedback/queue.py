"""Which pair a labeller gets next, what was labelled by whom, and how far labellers agree."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from charter.evaluation.figures.agreement import cohen_kappa
from charter.feedback.labels import METHOD
from charter.feedback.pairs import Pair, prefers_first
from charter.hashing import stable_fraction
from charter.storage.comparisons import content_id, enum_name
from charter.v1 import types_pb2

# A pair that was shown and neither labelled nor skipped goes to others after this long.
LEASE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Said:
    """One label: of which pair, by whom, what (as ``prefers_first`` says it), and in which place it won."""

    pair: str
    labeller: str
    what: str
    outcome: str


class Queue:
    """Pairs that wait for labels. Its truth is what the store holds; what it adds is who looks at what just now.

    A share of the pairs, drawn by their content, is given to a second labeller; with ``unlabelled_first`` when every
    other pair has a label or is before somebody.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        second_share: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        unlabelled_first: bool = False,
    ) -> None:
        self._pairs = {pair.id: pair for pair in pairs}
        self._wanted = {
            pair.id: 2 if stable_fraction("second labeller", pair.id) < second_share else 1 for pair in pairs
        }
        self._clock = clock
        self._unlabelled_first = unlabelled_first
        # By the id of the stored comparison.
        self._said: dict[str, _Said] = {}
        # Pair -> labeller -> ids of their comparisons.
        self._labels: dict[str, dict[str, set[str]]] = {}
        # Pair -> labeller -> when the lease ends.
        self._leases: dict[str, dict[str, float]] = {}
        self._skipped: dict[str, set[str]] = {}

    def __len__(self) -> int:
        """Pairs, labelled ones too."""
        return len(self._pairs)

    def get(self, pair_id: str) -> Pair | None:
        """A pair by its id."""
        return self._pairs.get(pair_id)

    def next(self, labeller: str) -> Pair | None:
        """The pair that this labeller has open, or the first that waits for them; None when nothing does."""
        skipped = self._skipped.get(labeller, set())
        fitting = [one for one in self._pairs if labeller not in self._labels.get(one, {}) and one not in skipped]
        chosen = next((one for one in fitting if labeller in self._open(one)), None)
        if chosen is None:
            free = [one for one in fitting if self._free(one)]
            if self._unlabelled_first:
                free.sort(key=lambda one: len(self._taken(one)))
            if not free:
                return None
            chosen = free[0]
        self._lease(chosen, labeller)
        return self._pairs[chosen]

    def skip(self, pair_id: str, labeller: str) -> None:
        """Do not offer a pair to this labeller again, until the page is started anew."""
        self._skipped.setdefault(labeller, set()).add(pair_id)
        self._leases.get(pair_id, {}).pop(labeller, None)

    def add(self, comparison: types_pb2.Comparison) -> None:
        """Take note of a stored label; its ``id`` is set. Other methods, and labels seen before, change nothing."""
        if comparison.method != METHOD or comparison.source != types_pb2.LABEL_SOURCE_HUMAN:
            return
        pair_id = content_id(comparison)
        outcome = enum_name("outcome", comparison.outcome)
        self._said[comparison.id] = _Said(pair_id, comparison.labeller, prefers_first(comparison), outcome)
        self._labels.setdefault(pair_id, {}).setdefault(comparison.labeller, set()).add(comparison.id)
        self._leases.get(pair_id, {}).pop(comparison.labeller, None)

    def undo(self, comparison_id: str, labeller: str) -> None:
        """Forget a label that was taken out of the store; its pair is open for its labeller again."""
        said = self._said.get(comparison_id)
        if said is None or said.labeller != labeller:
            return
        del self._said[comparison_id]
        mine = self._labels[said.pair][labeller]
        mine.discard(comparison_id)
        if not mine:
            del self._labels[said.pair][labeller]
        if said.pair in self._pairs:
            self._lease(said.pair, labeller)

    def progress(self, labeller: str) -> dict[str, int]:
        """Labels that the queue wants, those it has, and those of this labeller (of chats too)."""
        return {
            "pairs": len(self._pairs),
            "wanted": sum(self._wanted.values()),
            "done": sum(min(len(self._labels.get(one, {})), wanted) for one, wanted in self._wanted.items()),
            "mine": sum(said.labeller == labeller for said in self._said.values()),
        }

    def statistics(self) -> dict[str, Any]:
        """Counts by labeller and place, Cohen's kappa of the labellers, agreement with the pairs' own labels."""
        by_pair = {
            pair: {who: self._said[min(ids)].what for who, ids in people.items()}
            for pair, people in self._labels.items()
            if people
        }
        twice = [
            (people[one], people[other])
            for people in by_pair.values()
            for one, other in combinations(sorted(people), 2)
        ]
        own = [
            (what, prefers_first(self._pairs[pair].comparison))
            for pair, people in by_pair.items()
            if pair in self._pairs
            for what in people.values()
        ]
        own = [(person, known) for person, known in own if known and "tie" not in (person, known)]
        return {
            "labels": len(self._said),
            "labellers": [
                {"name": name, "labels": count}
                for name, count in Counter(said.labeller for said in self._said.values()).most_common()
            ],
            "left": sum(said.outcome == "PREFERRED_A" for said in self._said.values()),
            "right": sum(said.outcome == "PREFERRED_B" for said in self._said.values()),
            "ties": sum(said.outcome == "TIE" for said in self._said.values()),
            "second_wanted": sum(wanted == 2 for wanted in self._wanted.values()),
            "labelled_twice": len(twice),
            "agreement": sum(one == other for one, other in twice) / len(twice) if twice else None,
            "kappa": cohen_kappa(twice) if twice else None,
            "known_pairs": len(own),
            "known_agreement": sum(person == known for person, known in own) / len(own) if own else None,
        }

    def _free(self, pair_id: str) -> bool:
        """Whether one more labeller is wanted, those who have it open counted."""
        return len(self._taken(pair_id)) < self._wanted[pair_id]

    def _taken(self, pair_id: str) -> set[str]:
        """Those who have labelled it, or have it open."""
        return self._labels.get(pair_id, {}).keys() | self._open(pair_id)

    def _open(self, pair_id: str) -> set[str]:
        now = self._clock()
        return {who for who, end in self._leases.get(pair_id, {}).items() if end > now}

    def _lease(self, pair_id: str, labeller: str) -> None:
        self._leases.setdefault(pair_id, {})[labeller] = self._clock() + LEASE_SECONDS
