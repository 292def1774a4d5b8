"""What a model's answers are like: what they say more than the start's, how alike they are, how likely under it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from charter.evaluation.compare.folder import Answer, StartLikelihood
from charter.evaluation.figures import rows
from charter.evaluation.figures.boilerplate import Boilerplate, boilerplate
from charter.evaluation.figures.diversity import Diversity, diversity
from charter.evaluation.figures.likelihood import ScoredAnswer, nats_per_token
from charter.evaluation.figures.self_bleu import self_bleu
from charter.evaluation.statistics import Estimate, NotIdentifiedError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TextFigures:
    """Of the answers of one model to all prompts. None is a figure that cannot be told: ``notes``."""

    # Against the start; None for the start itself.
    boilerplate: Boilerplate | None
    diversity: Diversity | None
    # From 0 to 1.
    self_bleu: Estimate | None
    # Of the answers under the start, whose own have about its entropy.
    nats_per_token: Estimate | None
    notes: tuple[str, ...] = ()


def gives_log_probs(served: Mapping[str, Mapping[str, Any]], model: str) -> bool:
    """Whether what serves a model says how likely texts are that it did not write: an endpoint does not."""
    return served["models"].get(model, {}).get("engine") not in (None, "openai")


def text_figures(
    answered: Mapping[str, Sequence[Answer]],
    scored: Sequence[StartLikelihood],
    served: Mapping[str, Mapping[str, Any]],
    start: str,
    *,
    samples: int,
    seed: int,
) -> dict[str, TextFigures]:
    """By model; ``answered`` has by model the answers that did not fail, ``scored`` all likelihoods under the start."""
    texts = {model: [rows.Answer(one.prompt, one.text) for one in found] for model, found in answered.items()}
    under_start = {
        model: [
            ScoredAnswer(one.prompt, one.nats, one.tokens) for one in scored if one.model == model and not one.failure
        ]
        for model in answered
    }
    figures = {}
    for model, own in texts.items():
        notes: list[str] = []
        figures[model] = TextFigures(
            boilerplate=told(notes, boilerplate, own, texts[start]) if model != start else None,
            diversity=told(notes, diversity, own, samples=samples, seed=seed),
            self_bleu=told(notes, self_bleu, own, seed=seed),
            nats_per_token=told(notes, _under_start, under_start[model], served, start),
            notes=tuple(notes),
        )
    return figures


def told(notes: list[str], figure: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
    """The figure, or None where the data cannot tell it: why is added to the notes."""
    try:
        return figure(*arguments, **options)
    except NotIdentifiedError as error:
        notes.append(str(error))
        return None


def _under_start(scored: Sequence[ScoredAnswer], served: Mapping[str, Mapping[str, Any]], start: str) -> Estimate:
    if not gives_log_probs(served, start):
        raise NotIdentifiedError(f"no perplexity: {start} is served by an endpoint, which gives no log-probs of texts")
    return nats_per_token(scored)
