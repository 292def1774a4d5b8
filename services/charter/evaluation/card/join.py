"""Joins the twin of a card from what a run has left in its folder: nothing in it is known from anywhere else."""

from collections.abc import Iterable
from pathlib import Path

from google.protobuf import json_format
from huggingface_hub import metadata_load
from yaml import YAMLError

from charter.data.hub import HubSet
from charter.data.sources import Source
from charter.evaluation.card import times
from charter.evaluation.card import twin as card
from charter.evaluation.card.evaluated import read_evaluations
from charter.evaluation.card.published_spec import published_spec
from charter.evaluation.card.training import judge_of, reinforcement_of
from charter.evaluation.figures.win_rate import WinRate, win_rate
from charter.evaluation.report.learned import STAGES, figure_rows
from charter.evaluation.report.model_names import model_name, on_hub
from charter.evaluation.report.verdict import verdict
from charter.evaluation.statistics import Estimate
from charter.runs.folder import RunFolder, RunFolderError
from charter.runs.results import Evaluation, Learned
from charter.spec.data_sources import data_sources
from charter.spec.defaults import fill_defaults
from charter.spec.facts import needs_reinforcement, reads_turns
from charter.spec.models import file_digest, weight_files
from charter.v1 import run_pb2

# The run's own comparison of the aligned policy with the one that it started from.
START, ALL = "start", "all"


def twin_of(run: RunFolder, evaluations: Iterable[Path] = ()) -> card.Twin:
    """The twin of a run's card. ``evaluations`` are folders of `charter evaluate` that have its policy among them.

    Raises ``RunFolderError`` for a folder without a spec, ``StateFileError`` for a damaged evaluation, ``OSError``.
    """
    if run.spec is None:
        raise RunFolderError(f"{run.path} has no spec.json: nothing says which model was aligned")
    spec, info = fill_defaults(run.spec), run.info
    aligned = needs_reinforcement(spec)
    found = verdict(run.evaluation, run.judge_check, run.preference_fit, fake=run.fake)
    published, fill_in = published_spec(run, spec)
    judge = judge_of(run, spec)
    evaluated = read_evaluations(run.path, evaluations)
    own = [] if run.evaluation is None else _own(run.evaluation, spec)
    return card.Twin(
        name=run.name,
        run=info.id if info else "",
        finished=info.finished if info else None,
        fake=run.fake,
        base_model=model_name(spec.policy.model),
        base_on_hub=on_hub(spec.policy.model),
        license=_license(spec.policy.model),
        chats=reads_turns(spec),
        stages=tuple(_stage(name, result) for name, result in run.learned.items()),
        revision=_revision(run),
        reinforcement=reinforcement_of(run, spec),
        verdict=tuple(filter(None, [found.sentence, found.reward])) if aligned else (),
        judge=judge,
        preference_model=_preference_model(run),
        comparisons=(*own, *evaluated.comparisons),
        declines=evaluated.declines,
        remarks=({card.THIS_RUN: [_TAUGHT]} if own and judge is not None and judge.did else {})
        | dict(evaluated.remarks),
        mean_tokens_before=run.evaluation.mean_tokens_before if run.evaluation else None,
        mean_tokens_after=run.evaluation.mean_tokens_after if run.evaluation else None,
        constitution=_constitution(run),
        labels=_labels(run),
        collected=_collected(run.path / "comparisons.parquet"),
        prompts=tuple(
            card.PromptSource(name, one.prompts, one.share, one.dimensions)
            for name, one in (info.prompt_sources.items() if info else ())
        ),
        prompts_held_out=info.counts.get("prompts_held_out") if info else None,
        left_out=_left_out(run),
        datasets=tuple(dict.fromkeys(HubSet.parse(one.place).name for _, one in data_sources(spec) if one.of_hub)),
        read=_read(run, spec),
        weights=tuple(
            card.File(file.name, file.stat().st_size, file_digest(file)) for file in weight_files(run.path / "policy")
        ),
        limits=tuple(_limits(run, spec, found.caveats if aligned else ())),
        versions=info.versions if info else {},
        attempts=times.attempts(info) if info else (),
        phases=times.phases(info) if info else (),
        currency=times.currency(info) if info else "",
        # Protobuf JSON writes 64-bit integers as text.
        spec=json_format.MessageToDict(published, preserving_proto_field_name=True) | {"seed": published.seed},
        fill_in=tuple(fill_in),
    )


_TAUGHT = "Measured by what it was trained on: the judge of this comparison also taught the model."


def _own(evaluation: Evaluation, spec: run_pb2.RunSpec) -> list[card.Comparison]:
    """All prompts together, and each dimension by itself where there are several."""
    parts: dict[str, list[float | None]] = {}
    for row in evaluation.rows:
        parts.setdefault(row.dimension, []).append(row.probability_after)
    whole = card.Comparison(
        evaluation=card.THIS_RUN,
        against=START,
        judge=model_name(spec.judge.model),
        judge_model=model_name(spec.judge.model),
        dimension=ALL,
        prompts=evaluation.wins + evaluation.ties + evaluation.losses,
        wins=evaluation.wins,
        ties=evaluation.ties,
        losses=evaluation.losses,
        failures=sum(evaluation.failures.values()),
        win_rate=card.Interval(evaluation.win_rate, evaluation.win_rate_low, evaluation.win_rate_high),
    )
    rates = {
        name: win_rate(probabilities, samples=spec.evaluation.bootstrap_samples, seed=spec.seed)
        for name, probabilities in (parts.items() if len(parts) > 1 else ())
        if set(probabilities) != {None}
    }
    return [whole, *(_part(whole, name, rate) for name, rate in rates.items())]


def _part(whole: card.Comparison, dimension: str, rate: WinRate) -> card.Comparison:
    return card.Comparison(
        evaluation=whole.evaluation,
        against=whole.against,
        judge=whole.judge,
        judge_model=whole.judge_model,
        dimension=dimension,
        prompts=rate.win_rate.prompts,
        wins=rate.wins,
        ties=rate.ties,
        losses=rate.losses,
        failures=rate.failures,
        win_rate=_estimate(rate.win_rate),
    )


def _estimate(found: Estimate) -> card.Interval:
    return card.Interval(found.value, found.low, found.high)


def _stage(name: str, result: Learned) -> card.Stage:
    first = result.measured[0] if result.measured else None
    kept = next((one for one in result.measured if one.step == result.kept_step), None)
    before, after = (first.figures if first else {}), (kept.figures if kept else {})
    return card.Stage(
        name=name,
        steps=result.steps,
        done=result.done,
        kept_step=result.kept_step,
        unit=STAGES[name].unit,
        loss_before=first.loss if first else None,
        loss_after=kept.loss if kept else None,
        figures=tuple(
            card.Figure(
                row.name,
                row.words,
                row.written,
                before[row.name].mean,
                card.Interval(after[row.name].mean, after[row.name].low, after[row.name].high),
            )
            for row in figure_rows(before, after)
        ),
        sources=tuple(
            card.LearnedFrom(
                name=_without_folder(source),
                learned=one.train,
                held_out=one.held_out,
                tokens=one.tokens,
                share=one.share,
                left_out=one.left_out.kinds,
                labels=one.labels,
                verdicts=one.verdicts,
                sha256=one.digest,
            )
            for source, one in result.sources.items()
        ),
    )


def _revision(run: RunFolder) -> card.Revision | None:
    found = run.revisions
    if found is None:
        return None
    gate = card.Interval(found.gate.mean_probability, found.gate.low, found.gate.high)
    return card.Revision(gate, found.gate.compared, found.skipped, found.outcomes)


def _preference_model(run: RunFolder) -> card.PreferenceModel | None:
    fit = run.preference_fit
    if fit is None:
        return None
    found = fit.held_out
    accuracy = card.Interval(found.accuracy, found.accuracy_low, found.accuracy_high)
    return card.PreferenceModel(fit.members, found.pairs, accuracy, fit.left_out)


def _labels(run: RunFolder) -> tuple[card.Labels, ...]:
    mix = run.preference_fit.mix if run.preference_fit else ()
    return tuple(
        card.Labels(one.source, one.dimension, one.train_pairs, one.held_out_pairs, one.share)
        for one in mix
        if one.train_pairs or one.held_out_pairs
    )


def _collected(file: Path) -> tuple[card.Collected, ...]:
    """Of the comparisons that the run made, those with a label and those without."""
    if not file.is_file():
        return ()
    # Here, not at the top: pyarrow takes longer to import than the rest.
    from charter.storage.parquet import count_rows

    counts = count_rows(file, ("source", "dimension", "outcome"))
    return tuple(
        card.Collected(source, dimension, outcome, count)
        for (source, dimension, outcome), count in sorted(counts.items())
    )


def _constitution(run: RunFolder) -> card.Constitution | None:
    if run.constitution is None:
        return None
    return card.Constitution(
        name=run.constitution.name,
        version=run.constitution.version,
        sha256=run.info.constitution_digest if run.info else "",
        principles=tuple(
            card.Principle(one.id, one.dimension, " ".join(one.compare.split())) for one in run.constitution.principles
        ),
    )


def _left_out(run: RunFolder) -> tuple[card.LeftOut, ...]:
    found = run.info.left_out if run.info else {}
    return tuple(
        card.LeftOut(_stage_and_source(where), one.items, one.kinds) for where, one in found.items() if one.kinds
    )


def _stage_and_source(where: str) -> str:
    """Of ``supervised: FILE`` the file by its name alone."""
    stage, colon, source = where.partition(": ")
    return f"{stage}{colon}{_without_folder(source)}" if colon else stage


def _without_folder(source: str) -> str:
    return str(Source.parse(source).without_folder())


def _read(run: RunFolder, spec: run_pb2.RunSpec) -> tuple[card.Read, ...]:
    """What the attempts have read; of a run of before that was noted, the models alone."""
    legs = run.info.legs if run.info else ()
    if not any(leg.inputs for leg in legs):
        return (card.Read("policy.model", model_name(spec.policy.model)),)
    fields = dict.fromkeys(field for leg in legs for field in leg.inputs)
    found = []
    for field in fields:
        inputs = [leg.inputs[field] for leg in legs if field in leg.inputs]
        name = inputs[-1].name
        found.append(
            card.Read(
                field,
                model_name(name) if field.endswith(".model") else name,
                tuple(dict.fromkeys(one.sha256 for one in inputs if one.sha256)),
                tuple(dict.fromkeys(one.revision for one in inputs if one.revision)),
            )
        )
    return tuple(found)


def _limits(run: RunFolder, spec: run_pb2.RunSpec, caveats: Iterable[str]) -> Iterable[str]:
    yield from caveats
    if run.evaluation is not None:
        yield (
            "The run's own win rate is what one judge model prefers: no person has rated these answers. It holds for "
            f"prompts like the held-out ones and for answers of up to {spec.sampling.max_new_tokens} tokens."
        )
    yield "Nobody has checked the model for safety."
    yield f"The licence and the limits of {model_name(spec.policy.model)} apply."


def _license(model: str) -> str | None:
    """License that the model card in a base model's folder states; None where nothing that can be read states one."""
    readme = Path(model) / "README.md"
    try:
        metadata = metadata_load(readme) if readme.is_file() else None
    except (ValueError, YAMLError):
        # Another's front matter ends no run that has come this far.
        return None
    stated = metadata.get("license") if metadata else None
    return stated if isinstance(stated, str) else None
