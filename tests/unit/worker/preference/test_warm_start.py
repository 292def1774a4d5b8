"""Preference-model pretraining: what imported labels taught is there when the main fit begins."""

from dataclasses import replace
from pathlib import Path

import torch
from charter.inference.preference_model import PreferenceModel
from charter.runs.results import FitStep
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.preference import fit
from charter.worker.stages.fit import fit_on_ranks

from tests.unit.worker.preference.test_fit import make_examples


def test_the_main_fit_goes_on_from_the_imported_labels(tiny_model: Path) -> None:
    """The labels of the main fit say nothing, so that what the weights know is of the warm start alone."""
    spec = fill_defaults(
        run_pb2.RunSpec(
            preference_model=run_pb2.PreferenceModelSpec(
                model=str(tiny_model), epochs=1, warm_start_epochs=4, batch_size=8, learning_rate=3e-3, patience=4
            )
        )
    )
    imported = (make_examples(48), make_examples(24, seed=1))
    silent = (make_examples(1, seed=2, label=0.5), make_examples(2, seed=3, label=0.5))
    asked = make_examples(24, seed=4)

    def right(warm_start: tuple[list[fit.Example], list[fit.Example]] | None) -> tuple[int, list[tuple[int, bool]]]:
        """Of the asked pairs how many come out right, and the steps that were reported."""
        steps: list[tuple[int, bool]] = []
        torch.manual_seed(0)
        _, _, weights = fit_on_ranks(
            lambda step, total, warming: steps.append((step.step, warming)), spec, warm_start, *silent
        )
        model = PreferenceModel.from_causal_lm(tiny_model, seed=0).eval()
        model.load_state_dict(weights)
        found = fit.measure(model, asked).probabilities
        return sum((p > 0.5) == (one.probability_a > 0.5) for p, one in zip(found, asked, strict=True)), steps

    warm, steps = right(imported)
    assert warm >= 20
    # Step 0 of the main fit is what the warm start left: a probe would forget what was learned.
    assert [step for step, warming in steps if not warming] == [0, 1]
    assert [step for step, warming in steps if warming] == list(range(25))
    cold, steps = right(None)
    assert cold <= 16
    assert [step for step, _ in steps] == [0, 1]


def test_what_the_warm_start_left_is_kept_where_the_main_fit_only_harms(tiny_model: Path) -> None:
    spec = fill_defaults(
        run_pb2.RunSpec(
            preference_model=run_pb2.PreferenceModelSpec(
                model=str(tiny_model), epochs=1, warm_start_epochs=2, batch_size=8, learning_rate=3e-3
            )
        )
    )
    wrong = [replace(one, probability_a=1 - one.probability_a) for one in make_examples(24, seed=2)]
    held_out = make_examples(24, seed=3)
    losses: list[tuple[bool, float]] = []

    def report(step: FitStep, total: int, warming: bool) -> None:
        if step.held_out_loss is not None:
            losses.append((warming, step.held_out_loss))

    torch.manual_seed(0)
    measured, kept, _ = fit_on_ranks(report, spec, (make_examples(48), make_examples(24, seed=1)), wrong, held_out)
    begun, after = (loss for warming, loss in losses if not warming)
    assert begun < after
    assert (kept, measured.loss) == (0, begun)
