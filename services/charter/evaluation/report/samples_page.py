"""The page of `charter samples --html`: answers of a run's steps, token by token, in one file."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import median
from typing import Any, NamedTuple

from charter.evaluation.report.pages import fill, packed
from charter.runs.samples import Sample


class Colouring(NamedTuple):
    """A figure of each token that the page may colour by."""

    # Field of ``Sample``.
    name: str
    label: str
    # What a token below and above the middle of the scale is.
    low_words: str
    high_words: str
    # Whether the scale is around 0, or around the median where 0 means nothing.
    around_zero: bool


COLOURINGS = (
    Colouring(
        "log_ratios",
        "log-prob difference to the reference",
        "less likely than under the reference",
        "likelier than under the reference",
        True,
    ),
    Colouring("advantages", "advantage", "made less likely", "made likelier", True),
    Colouring("values", "value", "the critic expects less", "the critic expects more", False),
)
# Ends of the scale: so many of the figures lie within it.
_WITHIN = 0.98


def render_samples_page(samples: Sequence[Sample], name: str, answers_per_prompt: int) -> str:
    """The page of these answers.

    Args:
        samples: in the order of their steps.
        name: of the run.
        answers_per_prompt: of a step; 0 where it is not known.
    """
    scales = [(one, scale) for one in COLOURINGS if (scale := _scale(samples, one)) is not None]
    listed = {
        "colourings": [
            {"name": one.name, "label": one.label, "words": [one.low_words, one.high_words], "scale": scale}
            for one, scale in scales
        ],
        "groups": [_group(list(answers)) for _, answers in groupby(samples, _place)],
        "together": answers_per_prompt,
    }
    values = {
        "name": name,
        "answers": len(samples),
        "steps": len({one.step for one in samples}),
        "drawn": sum(one.random for one in samples),
        "without_tokens": sum(not one.pieces for one in samples),
        "listed": packed(listed),
    }
    return fill(
        "samples_page.html",
        values,
        {},
        styles=("listing.css", "samples_page.css"),
        scripts=("listing.js", "samples_tokens.js", "samples_page.js"),
    )


def _place(sample: Sample) -> tuple[int, object]:
    """What the answers to one prompt of a step have in common; runs of earlier versions do not say it."""
    return sample.step, sample.id if sample.group is None else sample.group


def _group(answers: Sequence[Sample]) -> dict[str, Any]:
    first = answers[0]
    return {
        "step": first.step,
        "dimension": first.dimension,
        "turns": [[turn["role"], turn["content"]] for turn in first.prompt],
        "answers": [_answer(one) for one in answers],
    }


def _answer(one: Sample) -> dict[str, Any]:
    figures = {found.name: getattr(one, found.name) for found in COLOURINGS}
    return {
        "id": one.id,
        "text": one.answer,
        "pieces": one.pieces,
        "figures": {name: values for name, values in figures.items() if values},
        "score": one.score,
        "tokens": one.tokens,
        "end": "failed" if one.failure else "eos" if one.ended else "cut",
        "failure": one.failure,
        "random": one.random,
        "extreme": one.extreme,
        "version": one.weight_version,
    }


def _scale(samples: Iterable[Sample], colouring: Colouring) -> list[float] | None:
    """Low end, middle and high end of the colours, as far apart on both sides; None where there is no such figure."""
    figures = [value for one in samples for value in getattr(one, colouring.name)]
    if not figures:
        return None
    middle = 0.0 if colouring.around_zero else median(figures)
    distances = sorted(abs(value - middle) for value in figures)
    # All alike: any width does.
    width = distances[round(_WITHIN * (len(distances) - 1))] or 1.0
    return [middle - width, middle, middle + width]
