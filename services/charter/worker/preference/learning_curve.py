"""How good a preference model becomes with a part of its labels: whether more labels would help."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from charter.inference.preference_model import PreferenceModel
from charter.runs.results import Calibration, FitStep
from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.preference.fit import Example
from charter.worker.preference.fit_best import Best, calibration, fit_best
from charter.worker.seeds import derive_seed, stable_fraction


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A fit to the labels of some of the prompts, measured on all held-out ones."""

    percent: float
    prompts: int
    pairs: int
    # Cross-entropy in nats.
    held_out_loss: float
    held_out: Calibration


def learning_curve(
    start: PreferenceModel,
    train: Sequence[Example],
    held_out: Sequence[Example],
    percents: Sequence[float],
    spec: run_pb2.PreferenceModelSpec,
    device: torch.device,
    *,
    seed: int,
    after_step: Callable[[float, int, int], None],
) -> Iterator[CurvePoint]:
    """One fit for each share of the training prompts, smallest first; a larger share holds the smaller ones.

    Args:
        start: each fit is of a copy of it.
        spec: filled; its epochs are of the part that is fitted.
        after_step: called with the percent, steps done and all steps.

    Raises:
        RunError: a share holds no pair.
    """
    for percent in sorted(percents):
        part = [example for example in train if stable_fraction("curve", example.group) < percent / 100]
        if not part:
            raise RunError(f"{percent:g} % of the prompts hold no pair: take a larger share, or label more")
        torch.manual_seed(derive_seed(seed, "fit"))
        model = copy.deepcopy(start).to(device).eval()
        best = Best()

        def report(step: FitStep, total: int, percent: float = percent) -> None:
            after_step(percent, step.step, total)

        fit_best(model, part, held_out, spec, device, best, report, seed=seed)
        measured = best.restore(model)
        yield CurvePoint(
            percent=percent,
            prompts=len({example.group for example in part}),
            pairs=len(part),
            held_out_loss=measured.loss,
            held_out=calibration(measured, held_out, [True] * len(held_out), seed),
        )
