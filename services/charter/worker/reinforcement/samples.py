"""Which answers of a step ``samples.jsonl`` keeps, and what of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from charter.rpc import tracing
from charter.runs.samples import Sample
from charter.worker.clients.failed import Failed
from charter.worker.context import Run
from charter.worker.reinforcement.sampling.rollouts import Scored
from charter.worker.reinforcement.step import TokenFigures
from charter.worker.seeds import stable_fraction

# Answers kept at either end of a step's scores.
EXTREMES = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that is kept, and why."""

    # Its place among the step's answers.
    number: int
    # Its place among the step's episodes; None where it has no score.
    row: int | None
    extreme: bool
    random: bool


def choose(scored: Scored, *, share: float, seed: int, step: int) -> list[Kept]:
    """The answers that are kept of a step, in their order.

    These are the ``EXTREMES`` lowest and highest scores, and every answer, scored or left out, to a ``share`` of the
    prompts: one prompt at least, unless ``share`` is 0. Seed and step alone say which prompts.
    """
    scores = {number: score for number, score in enumerate(scored.scores) if not isinstance(score, Failed)}
    ordered = sorted(scores, key=lambda number: scores[number])
    extreme = {*ordered[:EXTREMES], *ordered[-EXTREMES:]}
    groups = sorted(set(scored.groups), key=lambda group: stable_fraction(seed, "samples", step, group))
    drawn = set(groups[: max(1, round(share * len(groups))) if share else 0])
    rows = {number: row for row, number in enumerate(scores)}
    return [
        Kept(number, rows.get(number), number in extreme, group in drawn)
        for number, group in enumerate(scored.groups)
        if number in extreme or group in drawn
    ]


def samples_of(
    run: Run, step: int, scored: Scored, kept: Sequence[Kept], figures: Sequence[TokenFigures], preference_version: int
) -> list[Sample]:
    """Answers as ``samples.jsonl`` keeps them; ``step`` counts from 1.

    ``figures`` are those of the kept answers that have a score, in their order.
    """
    assert run.tokenizer is not None
    of_tokens = iter(figures)
    samples = []
    for one in kept:
        prompt, answer, score = scored.prompts[one.number], scored.answers[one.number], scored.scores[one.number]
        left_out = isinstance(score, Failed)
        tokens = TokenFigures() if left_out else next(of_tokens)
        samples.append(
            Sample(
                id=f"{step}.{one.number}",
                prompt=[{"role": turn.role, "content": turn.content} for turn in prompt.messages],
                dimension=prompt.dimension,
                answer=answer.text,
                tokens=len(answer.token_ids),
                ended=answer.ended,
                score=None if isinstance(score, Failed) else score,
                weight_version=answer.versions[-1] if answer.versions else 0,
                preference_version=preference_version if run.needs_preference_model and not left_out else 0,
                trace_id=tracing.log_fields().get("trace_id", ""),
                group=scored.groups[one.number],
                extreme=one.extreme,
                random=one.random,
                failure=f"{score.kind}: {score.reason}" if isinstance(score, Failed) else "",
                pieces=run.tokenizer.pieces(answer.token_ids),
                log_ratios=_rounded(tokens.log_ratios),
                advantages=_rounded(tokens.advantages),
                values=_rounded(tokens.values),
            )
        )
    return samples


def _rounded(figures: Sequence[float]) -> list[float]:
    """To four significant digits: a long run keeps many."""
    return [float(f"{one:.4g}") for one in figures]
