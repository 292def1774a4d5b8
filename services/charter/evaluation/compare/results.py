"""The figures of an evaluation, from what is stored: computed again at any time, and nobody is asked for it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from charter.atomic_files import write_json
from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder
from charter.evaluation.compare.spec import EvaluateSpec, pairs_of
from charter.evaluation.compare.trained import remarks
from charter.evaluation.figures import ratings as rating_figures
from charter.evaluation.figures.length_control import length_controlled
from charter.evaluation.figures.rows import Judgement, between
from charter.evaluation.figures.win_rate import WinRate, win_matrix
from charter.evaluation.statistics import Estimate, NotIdentifiedError
from charter.runs.results import LeftOut
from charter.v1 import types_pb2

# Figures over prompts of every dimension.
ALL = "all"


@dataclass(frozen=True, slots=True)
class Standing:
    """A model against the start, by one judge in one dimension. None is a figure that cannot be told: ``notes``."""

    judge: str
    dimension: str
    model: str
    win_rate: WinRate | None
    length_controlled: Estimate | None
    # Elo points; the start has 0.
    rating: Estimate | None
    # Probability that it has the highest rating.
    best: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the win matrix: how often ``model`` is preferred to ``against``."""

    judge: str
    dimension: str
    model: str
    against: str
    win_rate: WinRate


@dataclass(frozen=True, slots=True)
class Results:
    """What `charter evaluate` shows and writes to ``result.json``."""

    name: str
    start: str
    models: dict[str, dict[str, Any]]
    judges: dict[str, dict[str, Any]]
    # Prompts by dimension.
    prompts: dict[str, int]
    standings: tuple[Standing, ...]
    matrix: tuple[Cell, ...]
    # What was left out of the answers of each model, and of the judgements of each judge.
    answers_left_out: dict[str, LeftOut]
    judgements_left_out: dict[str, LeftOut]
    # Of the models whose tokens are counted.
    mean_tokens: dict[str, float]
    cut_off: dict[str, int]
    # By judge: what must be said wherever its figures stand.
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def dimensions(self) -> list[str]:
        """Those of the figures, in order."""
        return list(dict.fromkeys(one.dimension for one in self.standings))

    def as_json(self) -> dict[str, Any]:
        """As ``result.json`` has it: each open verdict with the prompts that it would need."""
        found = asdict(self)
        for given, one in zip(found["standings"], self.standings, strict=True):
            rate = one.win_rate
            given["prompts_needed"] = None if rate is None else rate.win_rate.prompts_needed(0.5)
        return found


def compute(spec: EvaluateSpec, folder: EvaluationFolder) -> Results:
    """The figures of models and judges of ``spec`` on the stored prompts. Raises ``StateFileError``, ``OSError``."""
    prompts, served = folder.read_prompts(), folder.read_served()
    answers, compared = folder.read_answers(), folder.read_judgements()
    models = [model.name for model in spec.models]
    wanted = {prompt.key for prompt in prompts}
    of_model = {
        name: [one for one in answers.values() if one.model == name and one.prompt in wanted] for name in models
    }
    rows = {judge.name: list(_rows(spec, judge.name, prompts, answers, compared)) for judge in spec.judges}
    standings: list[Standing] = []
    matrix: list[Cell] = []
    for judge in spec.judges:
        for dimension, chosen in _by_dimension(rows[judge.name]).items():
            cells = win_matrix(chosen, samples=spec.bootstrap_samples, seed=spec.seed)
            matrix += [Cell(judge.name, dimension, a, b, rate) for (a, b), rate in cells.items()]
            standings += _standings(spec, judge.name, dimension, chosen, answers, cells)
    answered = {name: [one for one in of_model[name] if not one.failure] for name in models}
    trained = {name: served["models"].get(name, {}).get("trained", {}) for name in models}
    return Results(
        name=spec.name,
        start=spec.start,
        models={name: served["models"].get(name, {}) for name in models},
        judges={judge.name: served["judges"].get(judge.name, {}) for judge in spec.judges},
        prompts=dict(Counter(prompt.dimension for prompt in prompts)),
        standings=tuple(standings),
        matrix=tuple(matrix),
        answers_left_out={
            name: LeftOut.of(len(found), [one.failure for one in found if one.failure])
            for name, found in of_model.items()
        },
        judgements_left_out={judge.name: _left_out(judge.name, wanted, compared.values()) for judge in spec.judges},
        mean_tokens=_mean_tokens(answered),
        cut_off={name: sum(one.cut_off for one in found) for name, found in answered.items()},
        remarks={
            judge.name: remarks(judge.name, served["judges"].get(judge.name, {}), trained) for judge in spec.judges
        },
    )


def _mean_tokens(answered: dict[str, list[Answer]]) -> dict[str, float]:
    counted = {name: [one.tokens for one in found if one.tokens is not None] for name, found in answered.items()}
    return {name: fmean(found) for name, found in counted.items() if found and len(found) == len(answered[name])}


def write_results(results: Results, folder: EvaluationFolder) -> None:
    """Write ``result.json``."""
    write_json(folder.result, results.as_json())


def _rows(
    spec: EvaluateSpec,
    judge: str,
    prompts: Sequence[TaskPrompt],
    answers: dict[tuple[str, str, int], Answer],
    compared: dict[tuple[str, str, str, str, int], Compared],
) -> Iterable[Judgement]:
    """What was to be judged; a pair with an answer that failed counts as one whose judgement did."""
    for a, b in pairs_of(spec):
        for prompt in prompts:
            for sample in range(spec.answers_per_prompt):
                both = [answers.get((model, prompt.key, sample)) for model in (a, b)]
                one = compared.get((judge, a, b, prompt.key, sample))
                if one is None and all(answer is not None and not answer.failure for answer in both):
                    # Not asked yet.
                    continue
                probability = None if one is None else one.probability_a
                yield Judgement(prompt.key, prompt.dimension, judge, a, b, sample, probability)


def _by_dimension(rows: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """With all of them together where there are several."""
    found: dict[str, list[Judgement]] = {}
    for one in rows:
        found.setdefault(one.dimension, []).append(one)
    return {ALL: list(rows), **found} if len(found) > 1 else found


def _standings(
    spec: EvaluateSpec,
    judge: str,
    dimension: str,
    rows: Sequence[Judgement],
    answers: dict[tuple[str, str, int], Answer],
    cells: dict[tuple[str, str], WinRate],
) -> Iterable[Standing]:
    samples, seed, start = spec.bootstrap_samples, spec.seed, spec.start
    why_no_ratings: tuple[str, ...] = ()
    try:
        rated = rating_figures.ratings(rows, start, samples=samples, seed=seed)
    except NotIdentifiedError as error:
        rated, why_no_ratings = None, (str(error),)
    best = rated.best() if rated is not None else {}
    lengths = {(one.prompt, one.model, one.sample): one.tokens for one in answers.values() if one.tokens is not None}
    for model in spec.models:
        name, notes = model.name, why_no_ratings
        controlled = None
        if name != start:
            try:
                found = between(rows, name, start)
                controlled = length_controlled(found, lengths, samples=samples, seed=seed).rate
            except NotIdentifiedError as error:
                notes = (*notes, str(error))
        rating = rated.rating(name) if rated is not None and name in rated.names else None
        yield Standing(judge, dimension, name, cells.get((name, start)), controlled, rating, best.get(name), notes)


def _left_out(judge: str, prompts: set[str], compared: Iterable[Compared]) -> LeftOut:
    found = [one.judgement for one in compared if one.judge == judge and one.prompt in prompts]
    kinds = [
        types_pb2.FailureKind.Name(one.failure_kind).removeprefix("FAILURE_KIND_").lower()
        for one in found
        if not one.HasField("probability_a")
    ]
    return LeftOut.of(len(found), kinds)
