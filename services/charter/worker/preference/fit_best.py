"""The fit that stops when held-out labels say so, and keeps the weights that did best on them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from charter.evaluation.judge.calibration import (
    calibration_of,
    correctness,
    expected_calibration_error,
    reliability_bins,
)
from charter.inference.preference_model import PreferenceModel
from charter.runs.results import Calibration, FitStep
from charter.v1 import run_pb2
from charter.worker.preference import fit
from charter.worker.preference.fit import Example, Measured
from charter.worker.preference.length_bias import debiased
from charter.worker.seeds import derive_seed
from charter.worker.training import ranks


class Best:
    """The weights whose held-out loss, as it is trained, was the lowest; on the CPU, of each rank its shards."""

    def __init__(self) -> None:
        self.step = 0
        self.measured: Measured | None = None
        self._weights: dict[str, Tensor] = {}
        self._worse = 0

    def offer(self, model: PreferenceModel, measured: Measured, step: int) -> int:
        """Keep the weights if their loss is lower; returns how many offers in a row were not."""
        if self.measured is None or measured.trained_loss < self.measured.trained_loss:
            self.measured, self.step, self._worse = measured, step, 0
            self._weights = {
                name: ranks.local(tensor).detach().cpu().clone() for name, tensor in model.state_dict().items()
            }
        else:
            self._worse += 1
        return self._worse

    def restore(self, model: PreferenceModel) -> Measured:
        """Give the model the best weights back; returns how they measured. Raises ``ValueError`` without an offer."""
        if self.measured is None:
            raise ValueError("nothing was offered")
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                ranks.local(tensor).copy_(self._weights[name])
        return self.measured


def fit_best(
    model: PreferenceModel,
    train: Sequence[Example],
    held_out: Sequence[Example],
    spec: run_pb2.PreferenceModelSpec,
    device: torch.device,
    best: Best,
    report: Callable[[FitStep, int], None],
    *,
    seed: int,
    probe: bool = True,
) -> None:
    """Probe, then fit everything, and offer ``best`` the weights that are begun with and those after each epoch.

    Without a ``probe`` they are the model's own. The fit ends early when the held-out loss, as it is trained, was not
    lower for ``spec.patience`` epochs. ``report`` gets each step and the number of all steps; step 0 is the beginning.
    """
    if spec.length_debiased:
        train, held_out = debiased(train), debiased(held_out, fitted_on=train)
    counted = fit.bootstrap_weights(train, spec.members, derive_seed(seed, "bootstrap"))

    def after_step(step: int, total: int, loss: float) -> bool:
        if step % (total // spec.epochs):
            report(FitStep(step, loss, None, None), total)
            return False
        measured = fit.measure(model, held_out, spec)
        worse = best.offer(model, measured, step)
        labels = [example.probability_a for example in held_out]
        accuracy = float(correctness(measured.probabilities, labels).mean())
        calibration_error = expected_calibration_error(reliability_bins(measured.probabilities, labels))
        report(FitStep(step, loss, measured.trained_loss, accuracy, calibration_error), total)
        return worse >= spec.patience

    if probe:
        begun = fit.probe(model, train, counted, spec.label_smoothing)
    else:
        begun = fit.measure(model, train, spec).trained_loss
    after_step(0, spec.epochs, begun)
    fit.fit(model, train, counted, spec, device, after_step)


def calibration(measured: Measured, examples: Sequence[Example], chosen: Sequence[bool], seed: int) -> Calibration:
    """Accuracy, Brier score and calibration on the chosen pairs."""
    rows = [row for row, wanted in enumerate(chosen) if wanted]
    return calibration_of(
        [measured.probabilities[row] for row in rows],
        [examples[row].probability_a for row in rows],
        [examples[row].group for row in rows],
        seed=seed,
    )
