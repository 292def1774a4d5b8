"""The figures of a study, from what is stored: computed again at any time, and nobody is asked for it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from charter.atomic_files import write_json
from charter.evaluation.compare.folder import Answer, EvaluationFolder
from charter.evaluation.compare.judged import judged_rows, token_counts
from charter.evaluation.compare.people import People
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.results import missing_of as unasked
from charter.evaluation.compare.spec import EvaluateSpec
from charter.evaluation.compare.trained import remarks
from charter.evaluation.compare.votes import votes_that_count
from charter.evaluation.figures.rows import Judgement
from charter.evaluation.statistics import NotIdentifiedError
from charter.runs.results import LeftOut
from charter.spec.comparison_checks import PEOPLE
from charter.study.arm_facts import ArmFacts, arm_facts
from charter.study.folder import StudyFolder
from charter.study.fronts import Front, Measured
from charter.study.labels import StudyLabels, read_labelled
from charter.study.points import Point, missing_of, points_of, steps_of
from charter.study.spec import START, StudySpec, axes


@dataclass(frozen=True, slots=True)
class Judged:
    """What one judge, or people, found; None where it cannot be told: ``notes``."""

    judge: str
    # What served it: model, method, constitution.
    about: dict[str, Any]
    as_judged: Front | None
    equally_long: Front | None
    notes: tuple[str, ...]
    # What must be said wherever its figures stand.
    remarks: tuple[str, ...]
    # Of what it was asked, or of the votes.
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class StudyResults:
    """What `charter compare` shows and writes to ``result.json``."""

    name: str
    # Across and up.
    axes: tuple[str, str]
    # Prompts by dimension, those that are measured on.
    prompts: dict[str, int]
    # In the order of the spec; the start is the first.
    arms: tuple[ArmFacts, ...]
    judges: tuple[Judged, ...]
    # None where no arm learns from labels, or they are not through.
    labels: StudyLabels | None
    # Sentences.
    missing: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As ``result.json`` has it."""
        return asdict(self)


def compute(spec: StudySpec, folder: StudyFolder) -> StudyResults:
    """The figures of what is there. Raises ``StateFileError``, ``RunFolderError``, ``OSError``."""
    runs, evaluation = folder.read_runs(), folder.evaluation
    points = points_of(spec, runs, steps_of(folder.read_arms()))
    missing = [f"{arm} with seed {seed}: {why}" for arm, seed, why in missing_of(spec, runs)]
    evaluated, answers, prompts = evaluation.read_spec(), evaluation.read_answers(), evaluation.read_prompts()
    judges: list[Judged] = []
    if evaluated is None:
        missing.append("no policy is measured yet")
    else:
        asked = {(prompt.key, sample) for prompt in prompts for sample in range(evaluated.answers_per_prompt)}
        missing += [
            f"{count} {what}"
            for what, count in unasked(evaluated, asked, answers, evaluation.read_judgements()).items()
        ]
        trained = _trained(evaluation, points)
        for name, about, rows, left_out in _said(evaluated, evaluation, prompts, answers):
            said = tuple(remarks(name, about, trained))
            judges.append(_judged(name, about, said, left_out, _measured(spec, points, rows, answers)))
    return StudyResults(
        name=spec.name,
        axes=axes(spec),
        prompts=dict(Counter(prompt.dimension for prompt in prompts)),
        arms=arm_facts(spec, runs, points, answers),
        judges=tuple(judges),
        labels=read_labelled(folder),
        missing=tuple(missing),
    )


def write_results(results: StudyResults, folder: StudyFolder) -> None:
    """Write ``result.json``."""
    write_json(folder.result, results.as_json())


def _said(
    spec: EvaluateSpec,
    folder: EvaluationFolder,
    prompts: Sequence[EvaluatedPrompt],
    answers: Mapping[tuple[str, str, int], Answer],
) -> Iterator[tuple[str, dict[str, Any], Sequence[Judgement], LeftOut]]:
    """Of each judge, and of people where some have voted: name, what served it, what it said, what was left out."""
    compared, served = folder.read_judgements(), folder.read_served()["judges"]
    for judge in spec.judges:
        rows = list(judged_rows(spec, judge.name, prompts, answers, compared))
        failed = LeftOut.of(len(rows), ["without_a_judgement" for one in rows if one.probability_a is None])
        yield judge.name, served.get(judge.name, {}), rows, failed
    if votes := votes_that_count(folder.read_votes()):
        people = People(spec, prompts, answers, votes)
        yield PEOPLE, people.about, people.rows(), people.left_out


def _trained(folder: EvaluationFolder, points: Sequence[Point]) -> dict[str, list[dict[str, str]]]:
    """By arm, which judges have trained its policies, and by what."""
    served = folder.read_served()["models"]
    found: dict[str, list[dict[str, str]]] = {}
    for point in points:
        found.setdefault(point.arm, []).extend(served.get(point.model, {}).get("trained", []))
    return found


def _measured(
    spec: StudySpec,
    points: Sequence[Point],
    rows: Sequence[Judgement],
    answers: Mapping[tuple[str, str, int], Answer],
) -> Measured:
    across, up = axes(spec)
    return Measured(
        points,
        START,
        ([one for one in rows if one.dimension == across], [one for one in rows if one.dimension == up]),
        token_counts(answers),
        spec.evaluation.bootstrap_samples,
        spec.seed,
    )


def _judged(judge: str, about: dict[str, Any], said: tuple[str, ...], left_out: LeftOut, measured: Measured) -> Judged:
    fronts: list[Front | None] = []
    notes: list[str] = []
    for front in (measured.as_judged, measured.equally_long):
        try:
            fronts.append(front())
        except NotIdentifiedError as error:
            fronts.append(None)
            notes.append(str(error))
    as_judged, equally_long = fronts
    return Judged(judge, about, as_judged, equally_long, tuple(dict.fromkeys(notes)), said, left_out)
