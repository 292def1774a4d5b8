"""How long a study takes and has taken, against the hours that it may."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from rich.markup import escape

from charter.cli.services import home
from charter.cli.study.words import duration
from charter.evaluation.compare.prompts import choose_prompts
from charter.study.estimate import seconds_a_prompt, seconds_by_arm
from charter.study.evaluation import evaluation_of
from charter.study.folder import StudyFolder
from charter.study.points import all_points, steps_of
from charter.study.runs import all_runs, runs_left
from charter.study.spec import CheckedStudy, labellers
from charter.v1 import run_pb2


class Times:
    """Estimates, from what was measured so far; of what was never measured nothing is said."""

    def __init__(self, study: CheckedStudy, folder: StudyFolder) -> None:
        self._study, self._folder = study, folder
        self._spec = study.spec

    def plan(self) -> Iterator[str]:
        """What there is to do, and how long it takes, as lines with rich's markup."""
        spec, runs = self._spec, all_runs(self._spec)
        models = len(all_points(spec, steps_of(self._study.arms))) + 1
        judges = len(spec.evaluation.judges)
        yield (
            f"[bold]{escape(spec.name)}[/]: {_count(len(spec.arms), 'arm')} with {_count(len(spec.seeds), 'seed')}, "
            f"{_count(len(runs), 'run')}; then {models} models answer {self._prompts} prompts each, and "
            f"{_count(judges, 'judge')} compare{'s' * (judges == 1)} them."
        )
        if asked := labellers(spec):
            yield f"Pairs are labelled once by each of {escape(', '.join(asked))}."
        known, unknown, seconds = self._left()
        bound = f" {spec.hours:g} h are allowed." if spec.HasField("hours") else ""
        if not known:
            yield f"How long that takes nobody knows before the first run.{bound}"
            return
        without = f", without the {unknown} runs of arms that never ran before" if unknown else ""
        yield f"About {duration(seconds)} by what such runs took before{without}, and without the labels.{bound}"
        if spec.HasField("hours") and seconds > spec.hours * 3600:
            yield "[yellow]That is more than is allowed: runs that would not end in time do not begin.[/]"

    def left(self) -> str:
        """What is left to do, in words; empty where nothing is known of it."""
        known, unknown, seconds = self._left()
        without = f", and {_count(unknown, 'run')} of arms that never ran before" if unknown else ""
        return f"about {duration(seconds)}{without}" if known else ""

    def why_not(self, arm: str) -> str:
        """Why a run of an arm does not begin any more: it would not end in time. Empty where it may."""
        if not self._spec.HasField("hours"):
            return ""
        left = self._spec.hours * 3600 - self._folder.seconds_worked()
        # What follows the runs takes its time, too.
        seconds = self._by_arm().get(arm, 0.0) + self._measuring(1 + len(self._folder.read_runs()))
        if left > 0 and seconds <= left:
            return ""
        takes = f", and it takes about {duration(seconds)} with its measurement" if seconds else ""
        return f"{duration(max(left, 0.0))} of the {self._spec.hours:g} h are left{takes}"

    @cached_property
    def _prompts(self) -> int:
        return len(choose_prompts(evaluation_of(self._spec, run_pb2.RunSpec(), [], {})))

    def _by_arm(self) -> dict[str, float]:
        return seconds_by_arm(self._study.arms, self._folder.read_runs(), home() / "runs")

    def _left(self) -> tuple[int, int, float]:
        """Of the runs that are not done: how many of them are known, and are not; and seconds until all is done."""
        runs, by_arm = self._folder.read_runs(), self._by_arm()
        waiting = [arm for arm, _ in runs_left(self._spec, runs)]
        known = [by_arm[arm] for arm in waiting if arm in by_arm]
        side_by_side = max(1, len(self._spec.slots))
        seconds = sum(known) / side_by_side + self._measuring(len(all_runs(self._spec)))
        return len(known) + (len(waiting) == 0), len(waiting) - len(known), seconds

    def _measuring(self, runs: int) -> float:
        """Seconds that the measurement of so many runs takes, by what the comparison at the end of a run took."""
        folders = [Path(run.artifacts) for run in self._folder.read_runs().values() if run.succeeded]
        a_prompt = seconds_a_prompt(folders)
        if a_prompt is None:
            return 0.0
        share = runs / len(all_runs(self._spec))
        models = 1 + share * len(all_points(self._spec, steps_of(self._study.arms)))
        asked = self._prompts * self._spec.evaluation.answers_per_prompt * len(self._spec.evaluation.judges)
        return models * asked * a_prompt


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
