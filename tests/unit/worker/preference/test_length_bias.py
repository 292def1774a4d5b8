"""What the lengths of answers explain of labels is not learned, and a fit is measured by the loss that it descends."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from charter.worker.preference import fit
from charter.worker.preference.fit import Example
from charter.worker.preference.fit_best import Best, fit_best
from charter.worker.preference.length_bias import debiased

from tests.unit.worker.preference.test_fit import CPU, ONCE, go_on, make_examples, make_model, make_spec


def test_length_logits_are_the_logistic_regression_on_the_difference_in_tokens() -> None:
    """Labels that are one: the slope is found, and exchanging the answers exchanges the sign."""
    slope = 0.3
    pairs = [
        Example((1,) * a, (1,) * b, 1 / (1 + math.exp(-slope * (a - b))), group=str(index))
        for index, (a, b) in enumerate((a, b) for a in range(3, 12) for b in range(3, 12))
    ]
    for pair in debiased(pairs):
        assert pair.length_logit == pytest.approx(slope * (len(pair.ids_a) - len(pair.ids_b)), abs=0.02)


def test_a_debiased_fit_does_not_learn_to_count(tiny_model: Path) -> None:
    """Labels that follow length alone: the plain fit scores by length, the debiased one has nothing left to learn."""
    pairs = [
        replace(one, probability_a=0.1 if len(one.ids_a) > len(one.ids_b) else 0.9)
        for one in make_examples(48)
        if len(one.ids_a) != len(one.ids_b)
    ]
    leads = {}
    for debias in (False, True):
        torch.manual_seed(0)
        model, best = make_model(tiny_model), Best()
        spec = make_spec(epochs=2, patience=2, learning_rate=3e-3, length_debiased=debias)
        fit_best(model, pairs, pairs, spec, CPU, best, lambda step, total: None, seed=0)
        measured = fit.measure(model, pairs)
        longer = [1 if len(one.ids_a) > len(one.ids_b) else -1 for one in pairs]
        scores = zip(measured.scores_a, measured.scores_b, longer, strict=True)
        leads[debias] = sum(sign * (a - b) for a, b, sign in scores) / len(pairs)
    assert leads[False] < -0.5
    assert abs(leads[True]) < 0.5 * abs(leads[False])


def test_a_debiased_fit_is_chosen_by_the_loss_that_is_trained(tiny_model: Path) -> None:
    """Held-out labels follow length, so that scores which count look better than those that the loss asks for."""
    pairs = [
        replace(one, probability_a=0.1 if len(one.ids_a) > len(one.ids_b) else 0.9)
        for one in make_examples(48)
        if len(one.ids_a) != len(one.ids_b)
    ]
    counting, silent = make_model(tiny_model), make_model(tiny_model)
    torch.manual_seed(0)
    fit.fit(counting, pairs, ONCE.expand(len(pairs), 1), make_spec(epochs=2, learning_rate=3e-3), CPU, go_on)
    with torch.no_grad():
        silent.head.weight.zero_()
    explained, spec = debiased(pairs), make_spec(length_debiased=True)
    found = {name: fit.measure(model, explained, spec) for name, model in (("c", counting), ("s", silent))}
    assert found["c"].loss < found["s"].loss
    assert found["c"].trained_loss > found["s"].trained_loss
    best = Best()
    for step, name in enumerate("sc"):
        best.offer(counting, found[name], step)
    assert best.step == 0


def test_a_fit_is_measured_by_the_loss_that_it_descends(tiny_model: Path) -> None:
    """With smoothing, margin and lengths' log-odds: what is measured on a batch is what its step reports."""
    pairs = debiased(make_examples(12))
    assert any(abs(one.length_logit) > 0.01 for one in pairs)
    spec = make_spec(label_smoothing=0.2, margin=0.5, batch_size=12, length_debiased=True)
    model = make_model(tiny_model)
    measured = fit.measure(model, pairs, spec)
    descended: list[float] = []

    def note(step: int, total: int, loss: float) -> bool:
        descended.append(loss)
        return True

    fit.fit(model, pairs, ONCE.expand(12, 1), spec, CPU, note)
    assert descended == [pytest.approx(measured.trained_loss, abs=1e-4)]
    assert measured.trained_loss != pytest.approx(measured.loss, abs=1e-3)
