"""The fit of the preference model on a tiny model, with labels whose answer is known."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.held_out import prompt_key
from charter.inference.preference_model import PreferenceModel
from charter.runs.results import FitStep
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2, types_pb2
from charter.worker.errors import RunError
from charter.worker.preference import fit
from charter.worker.preference.examples import split_examples
from charter.worker.preference.fit import Example, bootstrap_weights
from charter.worker.preference.fit_best import Best, fit_best
from charter.worker.stages.fit import correlation
from charter.worker.training.lora import add_lora, merge_lora
from torch import nn

CPU = torch.device("cpu")
# Each pair counts once for a single member.
ONCE = torch.ones(1, 1)


def go_on(step: int, total: int, loss: float) -> bool:
    return False


def make_model(folder: Path) -> PreferenceModel:
    return PreferenceModel.from_causal_lm(folder, seed=0).eval()


def make_spec(**values: float) -> run_pb2.PreferenceModelSpec:
    filled = fill_defaults(run_pb2.RunSpec(preference_model=run_pb2.PreferenceModelSpec(**values)))  # type: ignore[arg-type]
    return filled.preference_model


def make_examples(count: int, seed: int = 0, label: float | None = None) -> list[Example]:
    """Answers of random tokens; the better one has the smaller ids. Lengths differ, so that there is padding."""
    generator = torch.Generator().manual_seed(seed)

    def ids(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(3, 12, (), generator=generator))
        return (1, *torch.randint(least, most, (length,), generator=generator).tolist(), 2)

    examples = []
    for index in range(count):
        small_first = bool(torch.rand((), generator=generator) < 0.5)
        small, large = ids(3, 60), ids(140, 200)
        probability = label if label is not None else float(small_first) * 0.8 + 0.1
        pair = (small, large) if small_first else (large, small)
        examples.append(Example(*pair, probability_a=probability, group=str(index)))
    return examples


def test_labels_are_learned_and_hold_on_other_pairs(tiny_model: Path) -> None:
    model, held_out = make_model(tiny_model), make_examples(24, seed=1)
    before = fit.measure(model, held_out)
    seen: list[tuple[int, int]] = []
    spec = make_spec(epochs=3, batch_size=8, learning_rate=3e-3)
    torch.manual_seed(0)

    def after_step(step: int, total: int, loss: float) -> bool:
        seen.append((step, total))
        return False

    fit.fit(model, make_examples(48), ONCE.expand(48, 1), spec, CPU, after_step)
    after = fit.measure(model, held_out)
    assert seen == [(step, 18) for step in range(1, 19)]
    assert after.loss < before.loss - 0.1
    agreement = [(p > 0.5) == (e.probability_a > 0.5) for p, e in zip(after.probabilities, held_out, strict=True)]
    assert sum(agreement) >= 20


def test_a_shared_prompt_learns_as_one_that_is_computed_for_each_answer(tiny_model: Path) -> None:
    """The gradient of pairs that share their prompt, and one of three answers, is that of the answers one by one."""
    generator = torch.Generator().manual_seed(3)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 200, (length,), generator=generator).tolist())

    one, other = ids(30), ids(20)
    answers = [(*prompt, *ids(length)) for prompt, length in ((one, 5), (one, 9), (one, 3), (other, 4), (other, 7))]
    pairs = [Example(answers[a], answers[b], p, "") for a, b, p in ((0, 1, 0.9), (2, 0, 0.3), (3, 4, 0.6))]
    gradients = []
    for shares in (True, False):
        model = make_model(tiny_model)
        assert model.shares
        model.longest_in_row = model.longest_in_row if shares else 0
        fit._accumulate(model, pairs, ONCE.expand(3, 1), make_spec(), CPU)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        alone = gradients[1][name]
        assert gradient is not None
        assert alone is not None
        assert torch.allclose(gradient, alone, rtol=1e-3, atol=1e-6), name


def test_soft_labels_bound_the_confidence(tiny_model: Path) -> None:
    """With every label 0.5 nothing is preferred: the loss stays at log 2, its floor."""
    model, examples = make_model(tiny_model), make_examples(16, label=0.5)
    fit.fit(model, examples, ONCE.expand(16, 1), make_spec(epochs=4, learning_rate=3e-3), CPU, go_on)
    measured = fit.measure(model, examples)
    assert measured.loss == pytest.approx(math.log(2), abs=0.02)


def test_micro_batches_do_not_change_the_step(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step over micro-batches against the cross-entropy written out, each answer alone, in one AdamW step."""
    monkeypatch.setattr(fit, "BACKWARD_TOKENS", 40)
    model = make_model(tiny_model)
    plain = copy.deepcopy(model)
    examples = make_examples(6)
    fit.fit(model, examples, ONCE.expand(6, 1), make_spec(batch_size=6, learning_rate=1e-3), CPU, go_on)

    losses = []
    for example in examples:
        ids = (torch.tensor([one]) for one in (example.ids_a, example.ids_b))
        a, b = (plain.head(plain.backbone(input_ids=one).last_hidden_state[0, -1]).squeeze() for one in ids)
        p_a = 1 / (1 + torch.exp(b - a))
        losses.append(-example.probability_a * p_a.log() - (1 - example.probability_a) * (1 - p_a).log())
    torch.autograd.backward(torch.stack(losses).mean())
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-5, weight_decay=0.0).step()
    for (name, got), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5, msg=f"{name} differs")


def test_measured_scores_are_those_of_each_answer_alone(tiny_model: Path) -> None:
    model, examples = make_model(tiny_model), make_examples(5)
    measured = fit.measure(model, examples)
    with torch.no_grad():
        for place, example in enumerate(examples):
            assert measured.scores_b[place] == pytest.approx(model.scores([example.ids_b]).item(), abs=1e-5)


def test_probe_fits_the_head_and_leaves_the_backbone(tiny_model: Path) -> None:
    model, held_out = make_model(tiny_model), make_examples(24, seed=1)
    backbone = copy.deepcopy(model.backbone.state_dict())
    examples = make_examples(48)
    loss = fit.probe(model, examples, ONCE.expand(48, 1), 0.0)
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in model.backbone.state_dict().items())
    assert fit.measure(model, examples).loss == pytest.approx(loss, abs=1e-4)
    assert fit.measure(model, held_out).loss < math.log(2) - 0.1


def comparison(outcome: types_pb2.Outcome.ValueType, split: types_pb2.Split.ValueType) -> types_pb2.Comparison:
    made = types_pb2.Comparison(
        prompt=[types_pb2.Message(role=types_pb2.ROLE_USER, content=f"Hi {types_pb2.Split.Name(split)}")],
        answer_a=types_pb2.Answer(text="Hello"),
        answer_b=types_pb2.Answer(text="Go"),
        outcome=outcome,
        split=split,
    )
    if outcome == types_pb2.OUTCOME_PREFERRED_A:
        made.probability_a = 0.9
    return made


def test_failed_labels_are_counted_and_left_out(tiny_model: Path) -> None:
    good, invalid, lost = types_pb2.OUTCOME_PREFERRED_A, types_pb2.OUTCOME_INVALID, types_pb2.OUTCOME_UNAVAILABLE
    train, held_out = types_pb2.SPLIT_TRAIN, types_pb2.SPLIT_HELD_OUT
    stored = [(good, train), (invalid, train), (good, held_out), (lost, held_out), (good, train), (invalid, held_out)]
    model = make_model(tiny_model)
    fitted, held, left_out = split_examples(model, [comparison(*one) for one in stored])
    assert (len(fitted), len(held), left_out) == (2, 1, {"INVALID": 2, "UNAVAILABLE": 1})
    assert fitted[0].probability_a == 0.9
    assert fitted[0].ids_a[-1] == model.tokenizer.eos_id


@pytest.mark.parametrize(
    "labels",
    [
        [("INVALID", "TRAIN"), ("INVALID", "HELD_OUT")],
        [("PREFERRED_A", "TRAIN"), ("PREFERRED_A", "TRAIN")],
        [],
    ],
    ids=["all failed", "none held out", "none at all"],
)
def test_too_few_labels_stop_the_run(tiny_model: Path, labels: list[tuple[str, str]]) -> None:
    stored = [
        comparison(types_pb2.Outcome.Value(f"OUTCOME_{outcome}"), types_pb2.Split.Value(f"SPLIT_{split}"))
        for outcome, split in labels
    ]
    with pytest.raises(RunError, match="too few for a preference model"):
        split_examples(make_model(tiny_model), stored)


def test_failures_are_counted_and_stop_no_fit(tiny_model: Path) -> None:
    """The spec's share of failures is one for all stages, and the labelling has kept to it."""
    good = comparison(types_pb2.OUTCOME_PREFERRED_A, types_pb2.SPLIT_TRAIN)
    invalid = comparison(types_pb2.OUTCOME_INVALID, types_pb2.SPLIT_TRAIN)
    held = comparison(types_pb2.OUTCOME_PREFERRED_A, types_pb2.SPLIT_HELD_OUT)
    fitted, held_out, left_out = split_examples(make_model(tiny_model), [good, held, *[invalid] * 3])
    assert (len(fitted), len(held_out), left_out) == (1, 1, {"INVALID": 3})


def test_length_correlation() -> None:
    assert correlation([1.0, 2.0, 3.0], [10, 20, 30]) == pytest.approx(1.0)
    assert correlation([3.0, 1.0, 2.0], [10, 30, 20]) == pytest.approx(-1.0)
    assert correlation([1.0, 1.0], [10, 20]) == 0.0


def test_smoothing_and_margin_against_the_written_out_loss(tiny_model: Path) -> None:
    """The loss of one step, from scores of each answer alone."""
    model, examples = make_model(tiny_model), make_examples(4)
    losses: list[float] = []

    def note(step: int, total: int, loss: float) -> bool:
        losses.append(loss)
        return True

    expected = []
    measured = fit.measure(model, examples)
    for example, a, b in zip(examples, measured.scores_a, measured.scores_b, strict=True):
        p = 0.8 * example.probability_a + 0.1
        m = 0.7 * abs(2 * example.probability_a - 1)
        expected.append(p * math.log1p(math.exp(-(a - b - m))) + (1 - p) * math.log1p(math.exp(-(b - a - m))))
    fit.fit(model, examples, ONCE.expand(4, 1), make_spec(batch_size=4, label_smoothing=0.2, margin=0.7), CPU, note)
    assert losses == [pytest.approx(sum(expected) / 4, abs=1e-5)]


def test_the_fit_stops_early_and_keeps_the_best_weights(tiny_model: Path) -> None:
    """Held-out labels say the opposite: every epoch makes them worse, so the probe's weights are kept."""
    model, train = make_model(tiny_model), make_examples(24)
    opposite = [replace(one, probability_a=1 - one.probability_a) for one in make_examples(12, seed=1)]
    best = Best()
    steps: list[int] = []
    spec = make_spec(epochs=6, batch_size=8, learning_rate=3e-3, patience=2)
    fit_best(model, train, opposite, spec, CPU, best, lambda step, total: steps.append(step.step), seed=0)
    assert best.step == 0
    assert steps[-1] == 6
    measured = best.restore(model)
    assert fit.measure(model, opposite).loss == pytest.approx(measured.loss, abs=1e-6)


def test_members_learn_from_different_prompts_and_differ(tiny_model: Path) -> None:
    model = PreferenceModel.from_causal_lm(tiny_model, seed=0, members=3).eval()
    train, held_out = make_examples(48), make_examples(12, seed=1)
    counted = bootstrap_weights(train, 3, seed=4)
    assert counted.shape == (48, 3)
    assert counted.mean().item() == pytest.approx(1.0, abs=0.3)
    best = Best()
    fit_best(model, train, held_out, make_spec(members=3, learning_rate=1e-3), CPU, best, lambda *_: None, seed=4)
    with torch.no_grad():
        members = model.member_scores([held_out[0].ids_a])
    assert members.shape == (1, 3)
    assert members.std().item() > 1e-3
    assert best.restore(model).loss < math.log(2)


def test_a_pair_that_weighs_nothing_teaches_nothing(tiny_model: Path) -> None:
    """Half of the labels are turned round and weigh next to nothing: the fit is that to the other half."""
    model, held_out = make_model(tiny_model), make_examples(24, seed=1)
    good = make_examples(48)
    bad = [replace(one, probability_a=1 - one.probability_a, weight=1e-9) for one in make_examples(48, seed=2)]
    fit_best(
        model,
        [*good, *bad],
        held_out,
        make_spec(epochs=2, learning_rate=1e-3),
        CPU,
        best := Best(),
        lambda *_: None,
        seed=0,
    )
    assert best.restore(model).loss < math.log(2) - 0.1


def test_separate_members_learn_as_each_would_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe and fit of two members, each on its own bootstrap, against two fits of one."""
    monkeypatch.setattr(fit, "_MAX_GRADIENT_NORM", 1e9)
    examples, spec = make_examples(16), make_spec(learning_rate=1e-3)
    counted = bootstrap_weights(examples, 2, seed=0)
    together = PreferenceModel.from_causal_lm(tiny_model, seed=0, members=2, separate=True).eval()
    torch.manual_seed(0)
    fit.probe(together, examples, counted, 0.0)
    fit.fit(together, examples, counted, spec, CPU, go_on)
    for member, backbone in enumerate(together.backbones):
        alone = make_model(tiny_model)
        start = copy.deepcopy(alone.backbone.state_dict())
        torch.manual_seed(0)
        fit.probe(alone, examples, counted[:, [member]], 0.0)
        fit.fit(alone, examples, counted[:, [member]], spec, CPU, go_on)
        torch.testing.assert_close(together.head.weight[[member]], alone.head.weight, rtol=0, atol=1e-4)
        for name, tensor in alone.backbone.state_dict().items():
            torch.testing.assert_close(backbone.state_dict()[name], tensor, rtol=0, atol=1e-4)
        assert any(not torch.allclose(tensor, start[name], atol=1e-3) for name, tensor in backbone.state_dict().items())


def test_adapters_learn_and_are_merged(tiny_model: Path) -> None:
    """LoRA: nothing but the adapters and the head changes, and the merged model scores what the fit measured."""
    model, held_out, best = make_model(tiny_model), make_examples(24, seed=1), Best()
    start = copy.deepcopy(model.backbone.state_dict())
    add_lora(model.backbone, 2, seed=0)
    learnt: list[FitStep] = []
    fit_best(
        model,
        make_examples(48),
        held_out,
        make_spec(epochs=3, patience=3, learning_rate=1e-2),
        CPU,
        best,
        lambda step, total: learnt.append(step),
        seed=0,
    )
    assert best.step > 0
    frozen = {name.replace(".base.", "."): tensor for name, tensor in model.backbone.state_dict().items()}
    assert all(torch.equal(frozen[name], tensor) for name, tensor in start.items())
    measured = best.restore(model)
    merge_lora(model)
    assert model.backbone.state_dict().keys() == start.keys()
    assert fit.measure(model, held_out).loss == pytest.approx(measured.loss, abs=1e-4)
    probe = learnt[0].held_out_loss
    assert probe is not None
    assert measured.loss < probe


def test_what_cannot_teach_is_left_out_and_counted(tiny_model: Path) -> None:
    """Identical answers, answers beyond the context, and prompts that the run is evaluated on."""
    good, train, held_out = types_pb2.OUTCOME_PREFERRED_A, types_pb2.SPLIT_TRAIN, types_pb2.SPLIT_HELD_OUT
    same, long, tested, kept = (comparison(good, train) for _ in range(4))
    same.answer_b.text = same.answer_a.text
    long.answer_b.text = "word " * 100_000
    tested.prompt[0].content = "Evaluated?"
    kept.prompt[0].content = "Another?"
    stored = [same, long, tested, kept, comparison(good, train), comparison(good, held_out)]
    evaluated = {prompt_key([ChatMessage("user", "Evaluated? ")])}
    fitted, held, left_out = split_examples(make_model(tiny_model), stored, evaluated)
    assert left_out == {"IDENTICAL": 1, "TOO_LONG": 1, "EVALUATED": 1}
    assert (len(fitted), len(held)) == (2, 1)


def test_a_prompt_that_anybody_holds_out_is_held_out(tiny_model: Path) -> None:
    good = types_pb2.OUTCOME_PREFERRED_A
    stored = [comparison(good, split) for split in (types_pb2.SPLIT_TRAIN, types_pb2.SPLIT_HELD_OUT)]
    again = comparison(good, types_pb2.SPLIT_TRAIN)
    again.prompt[0].content = stored[1].prompt[0].content
    fitted, held, _ = split_examples(make_model(tiny_model), [again, *stored])
    assert [one.group for one in fitted] == [prompt_key([ChatMessage("user", "Hi SPLIT_TRAIN")])]
    assert len(held) == 2
