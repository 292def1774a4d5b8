"""The figures of an evaluation, from what is stored: computed again at any time, and nobody is asked for it."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, TypeVar

from charter.atomic_files import write_json
from charter.evaluation.compare.agreement import Agreement, agreements
from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder, StartLikelihood, StoredReply
from charter.evaluation.compare.judged import judged_rows, token_counts
from charter.evaluation.compare.people import People
from charter.evaluation.compare.replies import ReplyFigures, reply_figures
from charter.evaluation.compare.spec import EvaluateSpec, pairs_of
from charter.evaluation.compare.texts import TextFigures, text_figures
from charter.evaluation.compare.trained import remarks
from charter.evaluation.compare.votes import votes_that_count
from charter.evaluation.figures import ratings as rating_figures
from charter.evaluation.figures.length_control import length_controlled
from charter.evaluation.figures.rows import Judgement, between
from charter.evaluation.figures.win_rate import WinRate, win_matrix
from charter.evaluation.statistics import Estimate, NotIdentifiedError
from charter.outcomes import failure_of_judgement
from charter.runs.results import LeftOut
from charter.spec.comparison_checks import ALL, PEOPLE

Stored = TypeVar("Stored", Answer, StartLikelihood, Compared, StoredReply)


@dataclass(frozen=True, slots=True)
class Standing:
    """A model against the start, by one judge in one dimension. None is a figure that cannot be told: ``notes``."""

    judge: str
    dimension: str
    model: str
    win_rate: WinRate | None
    length_controlled: Estimate | None
    # What an answer that is longer by a standard deviation has more in log-odds.
    length_slope: Estimate | None
    # Elo points; the start has 0.
    rating: Estimate | None
    # Probability that it has the highest rating.
    best: float | None
    notes: tuple[str, ...] = ()

    def prompts_needed(self) -> dict[str, int | None]:
        """About how many prompts would tell, by figure; None where the verdict is not open, or there is none."""
        rate = None if self.win_rate is None else self.win_rate.win_rate
        figures = {
            "win_rate": (rate, 0.5),
            "length_controlled": (self.length_controlled, 0.5),
            "rating": (self.rating, 0.0),
        }
        return {name: None if found is None else found.prompts_needed(null) for name, (found, null) in figures.items()}


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the win matrix: how often ``model`` is preferred to ``against``."""

    judge: str
    dimension: str
    model: str
    against: str
    win_rate: WinRate

    def prompts_needed(self) -> dict[str, int | None]:
        """As ``Standing.prompts_needed``."""
        return {"win_rate": self.win_rate.win_rate.prompts_needed(0.5)}


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
    # Of every two judges, and of people with each other.
    agreements: tuple[Agreement, ...]
    # By judge and model, where prompts are harmful or look so.
    refusals: tuple[ReplyFigures, ...]
    # By model.
    texts: dict[str, TextFigures]
    # What was left out of the answers of each model, of their likelihoods, and of the judgements of each judge.
    answers_left_out: dict[str, LeftOut]
    likelihoods_left_out: dict[str, LeftOut]
    judgements_left_out: dict[str, LeftOut]
    # Of the models whose tokens are counted.
    mean_tokens: dict[str, float]
    cut_off: dict[str, int]
    # How many are not asked for yet, of `answers of MODEL` and `judgements of JUDGE`.
    missing: dict[str, int]
    # By judge: what must be said wherever its figures stand.
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def dimensions(self) -> list[str]:
        """Those of the figures, in order."""
        return list(dict.fromkeys(one.dimension for one in self.standings))

    def as_json(self) -> dict[str, Any]:
        """As ``result.json`` has it: verdicts with the prompts that they would need where they are open."""
        found = asdict(self)
        for name in ("standings", "matrix", "agreements"):
            for given, one in zip(found[name], getattr(self, name), strict=True):
                given["prompts_needed"] = one.prompts_needed()
        return found


def compute(spec: EvaluateSpec, folder: EvaluationFolder) -> Results:
    """The figures of models and judges of ``spec`` on the stored prompts. Raises ``StateFileError``, ``OSError``."""
    prompts, served = folder.read_prompts(), folder.read_served()
    answers, compared = folder.read_answers(), folder.read_judgements()
    models = [model.name for model in spec.models]
    # What an earlier spec asked for, and this one does not, stays stored and counts in nothing.
    wanted = {(prompt.key, sample) for prompt in prompts for sample in range(spec.answers_per_prompt)}
    scored = [one for one in _asked(folder.read_likelihoods().values(), wanted) if one.start == spec.start]
    of_model = {name: [one for one in _asked(answers.values(), wanted) if one.model == name] for name in models}
    rows = {
        judge.name: _by_dimension(list(judged_rows(spec, judge.name, prompts, answers, compared)))
        for judge in spec.judges
    }
    judges = {judge.name: served["judges"].get(judge.name, {}) for judge in spec.judges}
    pairs = set(pairs_of(spec))
    judged = [one for one in _asked(compared.values(), wanted) if (one.model_a, one.model_b) in pairs]
    left_out = {judge.name: _left_out(judge.name, judged) for judge in spec.judges}
    replies = _asked(folder.read_replies().values(), wanted)
    # Two people on the pairs that both saw.
    twice: dict[str, dict[str, list[Judgement]]] = {}
    if votes := votes_that_count(folder.read_votes()):
        people = People(spec, prompts, answers, votes)
        rows[PEOPLE], judges[PEOPLE], left_out[PEOPLE] = _by_dimension(people.rows()), people.about, people.left_out
        twice = {name: _by_dimension(found) for name, found in people.of_two().items()}
    drawn = {"samples": spec.bootstrap_samples, "seed": spec.seed}
    standings: list[Standing] = []
    matrix: list[Cell] = []
    for judge, by_dimension in rows.items():
        for dimension, chosen in by_dimension.items():
            cells = win_matrix(chosen, **drawn)
            matrix += [Cell(judge, dimension, a, b, rate) for (a, b), rate in cells.items()]
            standings += _standings(spec, judge, dimension, chosen, answers, cells)
    answered = {name: [one for one in of_model[name] if not one.failure] for name in models}
    trained = {name: served["models"].get(name, {}).get("trained", []) for name in models}
    return Results(
        name=spec.name,
        start=spec.start,
        models={name: served["models"].get(name, {}) for name in models},
        judges=judges,
        prompts=dict(Counter(prompt.dimension for prompt in prompts)),
        standings=tuple(standings),
        matrix=tuple(matrix),
        agreements=(*agreements(_of_different(rows, answers), **drawn), *agreements(twice, **drawn)),
        refusals=tuple(
            figures
            for judge in spec.judges
            for figures in reply_figures(judge.name, models, {one.key: one for one in prompts}, replies, **drawn)
        ),
        texts=text_figures(answered, scored, served, spec.start, **drawn),
        answers_left_out={name: _failures(found) for name, found in of_model.items()},
        likelihoods_left_out={name: _failures([one for one in scored if one.model == name]) for name in models},
        judgements_left_out=left_out,
        mean_tokens=_mean_tokens(answered),
        cut_off={name: sum(one.cut_off for one in found) for name, found in answered.items()},
        missing=missing_of(spec, wanted, answers, compared),
        remarks={judge: remarks(judge, about, trained) for judge, about in judges.items()},
    )


def missing_of(
    spec: EvaluateSpec,
    wanted: Collection[tuple[str, int]],
    answers: Mapping[tuple[str, str, int], Answer],
    compared: Collection[tuple[str, str, str, str, int]],
) -> dict[str, int]:
    """What an evaluation that was stopped has not got to, by what it is."""
    found = {
        f"answers of {model.name}": sum((model.name, *place) not in answers for place in wanted)
        for model in spec.models
    }
    there = {key for key, one in answers.items() if not one.failure}
    for judge in spec.judges:
        found[f"judgements of {judge.name}"] = sum(
            (judge.name, a, b, *place) not in compared and there >= {(a, *place), (b, *place)}
            for a, b in pairs_of(spec)
            for place in wanted
        )
    return {what: count for what, count in found.items() if count}


def _mean_tokens(answered: dict[str, list[Answer]]) -> dict[str, float]:
    counted = {name: [one.tokens for one in found if one.tokens is not None] for name, found in answered.items()}
    return {name: fmean(found) for name, found in counted.items() if found and len(found) == len(answered[name])}


def write_results(results: Results, folder: EvaluationFolder) -> None:
    """Write ``result.json``."""
    write_json(folder.result, results.as_json())


def _by_dimension(rows: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """With all of them together where there are several."""
    found: dict[str, list[Judgement]] = {}
    for one in rows:
        found.setdefault(one.dimension, []).append(one)
    return {ALL: list(rows), **found} if len(found) > 1 else found


def _of_different(
    rows: Mapping[str, Mapping[str, Sequence[Judgement]]], answers: Mapping[tuple[str, str, int], Answer]
) -> dict[str, dict[str, list[Judgement]]]:
    """By judge and dimension, the judgements of two answers that are not the same text."""
    texts = {key: one.text for key, one in answers.items()}

    def differ(one: Judgement) -> bool:
        return texts.get((one.model_a, one.prompt, one.seed)) != texts.get((one.model_b, one.prompt, one.seed))

    return {
        judge: {dimension: list(filter(differ, found)) for dimension, found in by_dimension.items()}
        for judge, by_dimension in rows.items()
    }


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
    lengths = token_counts(answers)
    for model in spec.models:
        name, notes = model.name, why_no_ratings
        controlled, slope = None, None
        if name != start:
            try:
                found = between(rows, name, start)
                fitted = length_controlled(found, lengths, samples=samples, seed=seed)
                controlled, slope = fitted.rate, fitted.slope
            except NotIdentifiedError as error:
                notes = (*notes, str(error))
        rating = rated.rating(name) if rated is not None and name in rated.names else None
        rate = cells.get((name, start))
        yield Standing(judge, dimension, name, rate, controlled, slope, rating, best.get(name), notes)


def _failures(stored: Sequence[Answer | StartLikelihood]) -> LeftOut:
    return LeftOut.of(len(stored), [one.failure for one in stored if one.failure])


def _asked(stored: Iterable[Stored], wanted: Collection[tuple[str, int]]) -> list[Stored]:
    """Of what is stored, what is of these prompts and samples."""
    return [one for one in stored if (one.prompt, one.sample) in wanted]


def _left_out(judge: str, compared: Iterable[Compared]) -> LeftOut:
    found = [one.judgement for one in compared if one.judge == judge]
    return LeftOut.of(len(found), [kind for one in found if (kind := failure_of_judgement(one))])
