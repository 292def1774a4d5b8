"""Fits the preference model to the stored labels of this run, measures it on held-out ones, and has it served."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from charter.evaluation.calibration import calibration_of, correctness, expected_calibration_error, reliability_bins
from charter.evaluation.results import FitStep, PreferenceFit, write_result
from charter.inference.preference_model import PreferenceModel, encode
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import LABELLED, enum_name
from charter.v1 import run_pb2, types_pb2
from charter.worker import fit
from charter.worker.context import PREFERENCE_VERSION, STARTING_VERSION, Run
from charter.worker.errors import RunError
from charter.worker.fit import Example, Measured
from charter.worker.seeds import derive_seed
from charter.worker.served import preference_serves, serve_preference_model

_RESULT = "preference_fit"
# With fewer labels than this share, the failures say more than the labels.
_LEAST_LABELLED_SHARE = 0.5


def fit_preference_model(run: Run, refreshes: int = 0, policy_version: int = STARTING_VERSION) -> None:
    """Fit once to the pairs of the policy up to ``policy_version``, and see that the preference service serves the fit.

    Writes ``preference_model/`` and ``preference_fit.json``, and after a refresh the same names with its number.
    """
    folder, version = model_folder(run, refreshes), PREFERENCE_VERSION + refreshes
    # Fitting and loading draw random numbers: PPO's must not depend on which of them an attempt has to do.
    with run.reporter.in_phase(run_pb2.PHASE_FITTING_PREFERENCE_MODEL), torch.random.fork_rng():
        if not is_fitted(run, refreshes):
            serve_preference_model(run, _fit(run, refreshes, policy_version), version)
        elif not preference_serves(run, version):
            serve_preference_model(run, PreferenceModel.load(folder), version)


def is_fitted(run: Run, refreshes: int) -> bool:
    """Whether the fit after so many refreshes is whole."""
    return (run.artifacts.folder / f"{_named(_RESULT, refreshes)}.json").exists()


def model_folder(run: Run, refreshes: int) -> Path:
    """Where the preference model after so many refreshes is."""
    return run.artifacts.preference_model.with_name(_named(run.artifacts.preference_model.name, refreshes))


def _named(name: str, refreshes: int) -> str:
    return f"{name}-{refreshes}" if refreshes else name


def _fit(run: Run, refreshes: int, policy_version: int) -> PreferenceModel:
    torch.manual_seed(derive_seed(run.spec.seed + refreshes, "fit"))
    spec = run.spec.preference_model
    model = PreferenceModel.from_causal_lm(spec.model, derive_seed(run.spec.seed, "head")).to(run.device).eval()
    # A run that goes on from before a later refresh finds the pairs of that stored already.
    comparisons = [one for one in run.services.comparisons(run.id) if one.answer_a.weight_version <= policy_version]
    train, held_out, left_out = split_examples(model, comparisons)
    left_out["IDENTICAL"] = run.artifacts.record["counts"]["pairs_identical"]
    history: list[FitStep] = []
    latest: list[Measured] = []

    def after_step(step: int, total: int, loss: float) -> None:
        numbers = {"train_loss": loss}
        if step % (total // spec.epochs) == 0:
            latest[:] = [fit.measure(model, held_out, run.device)]
            numbers |= _held_out_numbers(latest[0], held_out)
        history.append(FitStep(step, loss, numbers.get("held_out_loss"), numbers.get("held_out_accuracy")))
        run.reporter.report(step, total, numbers=numbers)
        run.reporter.raise_if_stopped()

    # Step 0 is the probe.
    after_step(0, spec.epochs, fit.probe(model, train, run.device))
    fit.fit(model, train, spec, run.device, after_step)
    (measured,) = latest
    scores = [*measured.scores_a, *measured.scores_b]
    # Answers of the starting policy that the fit has not seen.
    model.centre(torch.tensor([score for score, starts in zip(scores, _starting(comparisons), strict=True) if starts]))
    result = PreferenceFit(
        train_pairs=len(train),
        held_out_pairs=len(held_out),
        left_out=left_out,
        labels=tuple(example.probability_a for example in (*train, *held_out)),
        history=tuple(history),
        held_out=calibration_of(
            measured.probabilities,
            [example.probability_a for example in held_out],
            [example.group for example in held_out],
            seed=run.spec.seed,
        ),
        length_correlation=correlation(
            scores, [len(ids) for ids in (*(one.ids_a for one in held_out), *(one.ids_b for one in held_out))]
        ),
    )
    folder = model_folder(run, refreshes)
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder)
    # Last: its presence says that the model is whole.
    write_result(run.artifacts.folder, _named(_RESULT, refreshes), result)
    return model


def _starting(comparisons: Sequence[types_pb2.Comparison]) -> list[bool]:
    """Of the answers A, then B, of the held-out pairs with a label: whether the starting policy wrote them."""
    held_out = [one for one in comparisons if one.split == types_pb2.SPLIT_HELD_OUT and one.outcome in LABELLED]
    return 2 * [one.answer_a.weight_version <= STARTING_VERSION for one in held_out]


def split_examples(
    model: PreferenceModel, comparisons: Sequence[types_pb2.Comparison]
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """Pairs to fit, pairs held out, and the comparisons that have no label, counted by outcome.

    Raises ``RunError`` when too few have one.
    """
    train: list[Example] = []
    held_out: list[Example] = []
    left_out: dict[str, int] = {}
    for comparison in comparisons:
        if comparison.outcome not in LABELLED:
            name = enum_name("outcome", comparison.outcome)
            left_out[name] = left_out.get(name, 0) + 1
            continue
        (held_out if comparison.split == types_pb2.SPLIT_HELD_OUT else train).append(_example(model, comparison))
    labelled = len(train) + len(held_out)
    if labelled < _LEAST_LABELLED_SHARE * len(comparisons) or not train or not held_out:
        raise RunError(
            f"only {labelled} of {len(comparisons)} comparisons have a label ({len(train)} to fit, {len(held_out)} "
            f"held out; without label: {left_out}), too few for a preference model. If labels failed, the judge's log "
            "says why; otherwise raise comparisons.pairs"
        )
    return train, held_out, left_out


def correlation(scores: Sequence[float], lengths: Sequence[int]) -> float:
    """Pearson correlation, 0 where one of the two does not vary; both [answers]."""
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return 0.0
    return float(np.corrcoef(scores, lengths)[0, 1])


def _example(model: PreferenceModel, comparison: types_pb2.Comparison) -> Example:
    messages = chat_messages(comparison.prompt)
    ids_a = encode(model.tokenizer, messages, comparison.answer_a.text)
    ids_b = encode(model.tokenizer, messages, comparison.answer_b.text)
    longest = max(len(ids_a), len(ids_b))
    if longest > model.max_context_tokens:
        raise RunError(
            f"a comparison has {longest} tokens, the preference model's context holds {model.max_context_tokens}: "
            "lower prompts.max_prompt_tokens or sampling.max_new_tokens"
        )
    group = "\n".join(message.content for message in messages)
    return Example(tuple(ids_a), tuple(ids_b), comparison.probability_a, group)


def _held_out_numbers(measured: Measured, examples: Sequence[Example]) -> dict[str, float]:
    labels = [example.probability_a for example in examples]
    return {
        "held_out_loss": measured.loss,
        "held_out_accuracy": float(correctness(measured.probabilities, labels).mean()),
        "held_out_calibration_error": expected_calibration_error(reliability_bins(measured.probabilities, labels)),
    }
