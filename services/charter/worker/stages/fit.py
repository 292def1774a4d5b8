"""Fits the preference model to the labels that the spec mixes, measures it on held-out ones, and has it served."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from charter.data.bad_rows import BadRows
from charter.data.pairs.read import PairDefaults, comparisons
from charter.inference.preference_model import Aggregation, PreferenceModel
from charter.runs.results import Calibration, FitStep, MixedLabels, PreferenceFit, write_result
from charter.spec.facts import AI, HUMAN, IMPORTED, label_sources, needs_preference_model
from charter.v1 import run_pb2, types_pb2
from charter.worker.clients.gpu_turn import gpu_turn
from charter.worker.clients.served import preference_serves, serve_preference_model
from charter.worker.context import PREFERENCE_VERSION, Run
from charter.worker.failures import drawn_anew_after, draws
from charter.worker.offline.stored import taken_from_store
from charter.worker.preference.examples import Divided, Labels, Reader, divide, divide_labels, read_labels
from charter.worker.preference.fit import Example, Measured
from charter.worker.preference.fit_best import Best, calibration, fit_best
from charter.worker.preference.mixing import all_alike, mix
from charter.worker.seeds import derive_seed
from charter.worker.stages.label import held_out_keys
from charter.worker.training import ranks
from charter.worker.training.lora import add_lora, merge_lora
from charter.worker.training.starting import preference_base

# The stage of ``drawn_anew_after``; its places are the refreshes before a fit.
FITTING = "fitting"

_AGGREGATIONS = {
    run_pb2.PREFERENCE_AGGREGATION_UNSPECIFIED: Aggregation.MEAN,
    run_pb2.PREFERENCE_AGGREGATION_MEAN: Aggregation.MEAN,
    run_pb2.PREFERENCE_AGGREGATION_WORST: Aggregation.WORST,
    run_pb2.PREFERENCE_AGGREGATION_MEAN_MINUS_UNCERTAINTY: Aggregation.MEAN_MINUS_UNCERTAINTY,
}


class PreferenceFitting:
    """Writes ``preference_model/`` and ``preference_fit.json``."""

    phase = run_pb2.PHASE_FITTING_PREFERENCE_MODEL

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether a preference model scores the answers."""
        return needs_preference_model(spec)

    def done(self, run: Run) -> bool:
        """Whether it is whole."""
        return run.artifacts.preference_fit().exists()

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when there are too few labels to fit to."""
        fit_preference_model(run)


def fit_preference_model(run: Run, refreshes: int = 0, policy_version: int | None = None) -> None:
    """Fit to the pairs of the policy up to ``policy_version``; None = of the one that RL starts from.

    Writes ``preference_model/`` and ``preference_fit.json``, after a refresh with its number. Fitting draws random
    numbers, and PPO's do not depend on whether this attempt has to do it.
    """
    with torch.random.fork_rng():
        with gpu_turn(run):
            fitted = _fit(run, refreshes, run.start.version if policy_version is None else policy_version)
        serve_preference_model(run, fitted, PREFERENCE_VERSION + refreshes)
    serve_fitted(run, refreshes)


def serve_fitted(run: Run, refreshes: int) -> None:
    """See that the preference service serves the fit after so many refreshes, and does again when it has forgotten."""
    folder, version = run.artifacts.preference_model(refreshes), PREFERENCE_VERSION + refreshes

    def send() -> None:
        serve_preference_model(run, PreferenceModel.load(folder), version)

    # Loading draws random numbers.
    with torch.random.fork_rng():
        if not preference_serves(run, version):
            send()
    run.services.preference.when_without_weights(send)


@dataclass(frozen=True, slots=True)
class _Learned:
    """What a fit, and before it the warm start if there is one, learns from and is measured on."""

    examples: Divided
    warm_start: Divided | None
    mix: Sequence[MixedLabels]
    left_out: dict[str, int]


def _of_feedback(run: Run, reader: Reader, policy_version: int) -> _Learned:
    """The labels that ``feedback`` mixes."""
    evaluated = _evaluated(run)
    labels = read_labels(reader, _labels(run, policy_version), evaluated, run.start.version)
    imported = _imported(run, reader, evaluated)
    examples, warm_start = divide_labels(
        labels, imported, run.spec.feedback, held_out_keys(run), run.spec.comparisons.held_out_fraction
    )
    left_out = dict(labels.left_out)
    left_out["IDENTICAL"] = left_out.get("IDENTICAL", 0) + run.artifacts.record["counts"]["pairs_identical"]
    train, held_out, mixed = mix(*examples, run.spec.feedback)
    return _Learned((train, held_out), warm_start, mixed, left_out)


def _of_store(run: Run, reader: Reader) -> _Learned:
    """The labels that ``comparisons.stored`` chooses, as they are now. Raises as ``taken_from_store``."""
    file = run.artifacts.stored("comparisons")
    chosen = {f"comparisons.stored[{index}]": one for index, one in enumerate(run.spec.comparisons.stored)}
    taken_from_store(run, chosen, file, lambda _: True)
    found = (one for _, one in comparisons(file, PairDefaults(labeller=""), BadRows()))
    labels = read_labels(reader, found, _evaluated(run), run.start.version)
    examples = divide(labels, labels.examples, labels.held_out, run.spec.comparisons.held_out_fraction)
    return _Learned(examples, None, all_alike(*examples), labels.left_out)


def _evaluated(run: Run) -> set[str]:
    """Keys of the prompts on which the run is judged in the end."""
    return {prompt.key for prompt in run.prompts.held_out}


def _fit(run: Run, refreshes: int, policy_version: int) -> PreferenceModel:
    spec = run.spec.preference_model
    reader = Reader.load(preference_base(run.spec))
    learned = _of_store(run, reader) if run.spec.comparisons.stored else _of_feedback(run, reader, policy_version)
    train, held_out = learned.examples
    history: list[FitStep] = []

    def report(step: FitStep, total: int, warming_up: bool) -> None:
        if warming_up:
            run.reporter.report(step.step, total, text="warm start on imported comparisons")
        else:
            history.append(step)
            _report(run, step, total)
        run.reporter.raise_if_stopped()

    again = draws(run, FITTING, refreshes)
    torch.manual_seed(derive_seed(run.spec.seed + refreshes, "fit", *([again] if again else [])))
    with drawn_anew_after(run, FITTING, refreshes, "preference_model.learning_rate"):
        measured, kept_step, weights = run.leader.on_all_ranks(
            fit_on_ranks, report, run.spec, learned.warm_start, train, held_out
        )
    model = _untrained(run.spec, torch.device("cpu"))
    model.load_state_dict(weights)
    merge_lora(model)
    scores = [*measured.scores_a, *measured.scores_b]
    model.centre(torch.tensor(_of_starting_policy(scores, held_out)))
    result = PreferenceFit(
        train_pairs=len(train),
        held_out_pairs=len(held_out),
        left_out=learned.left_out,
        labels=tuple(example.probability_a for example in (*train, *held_out)),
        history=tuple(history),
        held_out=calibration(measured, held_out, [True] * len(held_out), run.spec.seed),
        length_correlation=correlation(
            scores, [*(one.tokens_a for one in held_out), *(one.tokens_b for one in held_out)]
        ),
        kept_step=kept_step,
        members=spec.members,
        mix=tuple(learned.mix),
        by_source=_parts(measured, held_out, lambda example: example.source, run.spec.seed),
        by_dimension=_parts(measured, held_out, lambda example: example.dimension or "none given", run.spec.seed),
    )
    folder = run.artifacts.preference_model(refreshes)
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder)
    # Last: its presence says that the model is whole.
    write_result(run.artifacts.folder, run.artifacts.preference_fit(refreshes).stem, result)
    return model


def _of_starting_policy(scores: Sequence[float], held_out: Sequence[Example]) -> list[float]:
    """Scores (of all A, then all B) of the starting policy's answers, unseen by the fit; all where there are none."""
    found = [score for score, example in zip(scores, [*held_out, *held_out], strict=True) if example.starting]
    return found or list(scores)


def correlation(scores: Sequence[float], lengths: Sequence[int]) -> float:
    """Pearson correlation, 0 where one of the two does not vary; both [answers]."""
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return 0.0
    return float(np.corrcoef(scores, lengths)[0, 1])


def _labels(run: Run, policy_version: int) -> Iterator[types_pb2.Comparison]:
    """The judge's labels of this run's pairs up to ``policy_version``, and what the spec mixes in from the store."""
    wanted = label_sources(run.spec.feedback)
    if AI in wanted:
        for comparison in run.services.preference.comparisons(run.id, types_pb2.LABEL_SOURCE_AI):
            # A run that goes on from before a later refresh finds the pairs of that stored already.
            if comparison.answer_a.weight_version <= policy_version:
                yield comparison
    if HUMAN in wanted:
        yield from run.services.preference.comparisons(source=types_pb2.LABEL_SOURCE_HUMAN)
    if IMPORTED in wanted:
        yield from run.services.preference.comparisons(source=types_pb2.LABEL_SOURCE_IMPORTED)


def _imported(run: Run, reader: Reader, evaluated: set[str]) -> Labels | None:
    """Imported comparisons to fit to first, if the spec says so (Askell et al. 2021, preference-model pretraining)."""
    if not run.spec.preference_model.warm_start_epochs:
        return None
    return read_labels(reader, run.services.preference.comparisons(source=types_pb2.LABEL_SOURCE_IMPORTED), evaluated)


def fit_on_ranks(
    report: Callable[[FitStep, int, bool], None] | None,
    spec: run_pb2.RunSpec,
    warm_start: Divided | None,
    train: list[Example],
    held_out: list[Example],
) -> tuple[Measured, int, dict[str, Tensor]]:
    """Fit on every rank; how the best weights measured, the step they are of, and on rank 0 themselves.

    ``report`` is called on rank 0 alone, which may raise there to end the fit.
    """
    model = ranks.load_sharded(partial(_untrained, spec), ranks.device(), lambda model: model.backbones).eval()
    # Found out by each rank for itself; all must take the same way.
    model.longest_in_row = min(ranks.collect(model.longest_in_row))

    def fit_to(examples: Divided, fit_spec: run_pb2.PreferenceModelSpec, *, warming_up: bool, probe: bool) -> Best:
        best = Best()

        def told(step: FitStep, total: int) -> None:
            ranks.from_rank_zero(lambda: report(step, total, warming_up) if report else None)

        fit_best(model, *examples, fit_spec, ranks.device(), best, told, seed=spec.seed, probe=probe)
        best.restore(model)
        return best

    if warm_start is not None:
        warm_spec = run_pb2.PreferenceModelSpec()
        warm_spec.CopyFrom(spec.preference_model)
        warm_spec.epochs = warm_spec.warm_start_epochs
        fit_to(warm_start, warm_spec, warming_up=True, probe=True)
    best = fit_to((train, held_out), spec.preference_model, warming_up=False, probe=warm_start is None)
    assert best.measured is not None
    return best.measured, best.step, ranks.whole(model.state_dict())


def _untrained(spec: run_pb2.RunSpec, device: torch.device) -> PreferenceModel:
    """The preference model that the fit starts from, with adapters if the spec asks for some."""
    fit = spec.preference_model
    model = PreferenceModel.from_causal_lm(
        preference_base(spec), derive_seed(spec.seed, "head"), fit.members, separate=fit.separate_members
    )
    if fit.HasField("lora_rank"):
        for member, backbone in enumerate(model.backbones):
            add_lora(backbone, fit.lora_rank, derive_seed(spec.seed, "preference lora", str(member)))
    model.aggregate_by(_AGGREGATIONS[fit.aggregation], fit.uncertainty_weight)
    return model.to(device)


def _parts(
    measured: Measured, examples: Sequence[Example], name_of: Callable[[Example], str], seed: int
) -> dict[str, Calibration]:
    names = [name_of(example) for example in examples]
    return {one: calibration(measured, examples, [name == one for name in names], seed) for one in sorted(set(names))}


def _report(run: Run, step: FitStep, total: int) -> None:
    numbers = {"train_loss": step.train_loss}
    if step.held_out_loss is not None and step.held_out_accuracy is not None:
        numbers |= {"held_out_loss": step.held_out_loss, "held_out_accuracy": step.held_out_accuracy}
    if step.held_out_calibration_error is not None:
        numbers["held_out_calibration_error"] = step.held_out_calibration_error
    run.reporter.report(step.step, total, numbers=numbers)
