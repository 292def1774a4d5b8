"""Single items of a stage that cannot be used: left out, counted by kind, and too many of them stop the stage.

An answer may be empty or too long to be rated, a judge may write nothing that can be read. One among thousands must not
end a run, and none becomes a number. The counts are in ``run.json``, in the stage's events and in Prometheus.

The draws of a run do not depend on the attempt, so that a resume would meet the same items again. Therefore a stage
that has stopped here allows twice the share when the run is resumed, and draws anew what ``draws`` is asked about. So
does one whose numbers were not finite: ``drawn_anew_after``.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

from charter.runs.artifacts import has_checkpoint
from charter.runs.results import LeftOut
from charter.worker import metrics
from charter.worker.clients.failed import UNAVAILABLE, Failed
from charter.worker.context import Run
from charter.worker.errors import NotFiniteError, RunError, TooManyFailuresError

logger = logging.getLogger("charter.worker")

# The share is taken of so many of a stage's latest items, or of all where it has fewer: a few failures at its start do
# not stop it, and many good items from before do not hide that everything fails by now.
LATEST = 1000


class Failures:
    """What one stage leaves out.

    Args:
        run: whose spec bounds it.
        stage: its name in ``run.json`` and for a person.
        items: how many it will have in all.
        earlier: what earlier attempts have done of it.
    """

    def __init__(self, run: Run, stage: str, items: int, earlier: LeftOut | None = None) -> None:
        self._run, self._stage = run, stage
        self._least = min(items, LATEST)
        self.so_far = earlier or LeftOut()
        self._latest: deque[LeftOut] = deque()

    def add(self, results: Sequence[object], place: int = 0) -> LeftOut:
        """Count some items, of which those that are ``Failed`` are left out; returns the count of these.

        ``place`` is where in the stage this is, as for ``draws``. Raises ``TooManyFailuresError`` when a larger share
        failed than ``failures.max_share`` allows, ``RunError`` when that is because a model could not be reached.
        """
        failures = [one for one in results if isinstance(one, Failed)]
        now = LeftOut.of(len(results), [one.kind for one in failures])
        self.so_far += now
        self._latest.append(now)
        while sum(one.items for one in self._latest) - self._latest[0].items >= LATEST:
            self._latest.popleft()
        for one in {one.kind: one for one in failures}.values():
            metrics.LEFT_OUT.labels(self._run.id, self._stage, one.kind).inc(now.kinds[one.kind])
            counted = {"stage": self._stage, "kind": one.kind, "items": now.kinds[one.kind], "reason": one.reason}
            logger.warning("left out", extra=counted)
        self._run.artifacts.record.setdefault("left_out", {})[self._stage] = asdict(self.so_far)
        self._run.artifacts.save_record()
        latest = sum(self._latest, LeftOut())
        if failures and latest.failures > self._most(latest.items):
            self._stop(latest, failures, place)
        return now

    def stop_without(self, failures: Sequence[Failed], place: int) -> NoReturn:
        """Raise as ``add`` does: every item of something that needs one failed."""
        found = LeftOut.of(len(failures), [one.kind for one in failures])
        self._stop(found, failures, place, "nothing is left to go on with")

    def _most(self, items: int) -> float:
        """How many of the latest items may fail."""
        stops = _stops(self._run, self._stage)
        share: float = max([self._run.spec.failures.max_share * 2 ** len(stops), *(stop["share"] for stop in stops)])
        return min(1.0, share) * max(items, self._least)

    def _stop(self, found: LeftOut, failures: Sequence[Failed], place: int, why: str = "") -> NoReturn:
        most, base = self._most(found.items), max(found.items, self._least)
        lasting = found.failures - found.kinds.get(UNAVAILABLE, 0)
        if lasting < found.failures and lasting <= (0 if why else most):
            reason = next((one.reason for one in failures if one.kind == UNAVAILABLE), failures[-1].reason)
            raise RunError(f"the judge's model cannot be reached: {reason}. Resume the run when it can")
        _note_stop(self._run, self._stage, place, found.failures / base)
        why = why or f"failures.max_share allows {most / base:.0%} of {base}"
        raise TooManyFailuresError(
            f"{self._stage}: {found.in_words()}, and {why}. The last one: {failures[-1].reason}. Mend the cause, or "
            "resume the run as it is: it then allows twice the share, and draws the answers anew that it stopped at"
        )


@contextmanager
def drawn_anew_after(run: Run, stage: str, place: int, rate: str) -> Iterator[None]:
    """What is done at a place of a stage: a number that is not finite stops the run, and ``draws`` counts it.

    ``stage`` is none of ``Failures``; ``rate`` is the field of the spec that may be too high.
    """
    try:
        yield
    except NotFiniteError as error:
        _note_stop(run, stage, place, 0.0)
        advice = (
            f"lower {rate}: `charter runs resume RUN --spec SPEC`"
            if not has_checkpoint(run.artifacts.folder)
            else f"start a new run with a lower {rate}"
        )
        raise NotFiniteError(
            f"{error}. Resume the run: it draws anew what it stopped at. If it stops here again, {advice}"
        ) from error


def _note_stop(run: Run, stage: str, place: int, share: float) -> None:
    run.artifacts.record.setdefault("stops", []).append({"stage": stage, "place": place, "share": share})
    run.artifacts.save_record()


def draws(run: Run, stage: str, place: int) -> int:
    """How often the stage has stopped at this place: a part of the seed of what is drawn at random there."""
    return sum(stop["place"] == place for stop in _stops(run, stage))


def _stops(run: Run, stage: str) -> list[dict[str, Any]]:
    return [stop for stop in run.artifacts.record.get("stops", []) if stop["stage"] == stage]
