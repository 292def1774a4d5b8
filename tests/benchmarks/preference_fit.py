"""Preference models fitted to people's and to the judge's labels of the same pairs, and tested on people's labels.

    python -m tests.benchmarks.preference_fit --model FOLDER --pairs harmless.jsonl [--most-per-prompt 3]

``--pairs`` is a file of labelled pairs; ``python -m tests.benchmarks.judge.make_pairs`` writes those with human harm
scores. The prompts are halved as everywhere (``split_by_group``): the models learn from one half and are tested on the
other; a fifth of the prompts that are learnt from choose the weights to keep. Each line is one result, as JSON:

1. the judge's labels against people's, on the pairs that are learnt from;
2. the head alone (the probe that every fit starts with), on labels of either, a share of them flipped, hard and soft;
3. everything fitted, on labels of either.

Soft labels of people know the noise: 1 - flipped instead of 1. Those of the judge are its probabilities, and hard ones
say which side of 0.5 they are on. Printed is the mean over ``--draws`` of the noise, with the lowest and the highest.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from charter.data.pairs.labelled import LabelledPair, read_labelled_pairs
from charter.evaluation.judge.calibration import calibration_of, correctness, shorter_is_better_accuracy
from charter.evaluation.judge.labelled_pairs import split_by_group
from charter.inference.preference_model import PreferenceModel, encode
from charter.judge.server import JudgeConfig, build
from charter.rpc.channel import BATCH, connect
from charter.rpc.messages import proto_messages
from charter.spec.defaults import fill_defaults
from charter.v1 import judge_pb2, judge_pb2_grpc, run_pb2
from charter.worker.preference import fit
from charter.worker.preference.fit import Example
from charter.worker.preference.fit_best import Best, calibration, fit_best
from charter.worker.preference.probe import fit_probe
from charter.worker.seeds import stable_fraction

from tests.support.harness import running

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
# Share of the prompts that are learnt from which choose the weights to keep.
_SELECTING = 0.2


def main() -> None:
    """Measure, and print one line of JSON for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--constitution", type=Path, default=ROOT / "examples" / "constitutions" / "general.yaml")
    parser.add_argument("--most-per-prompt", type=int, default=3)
    parser.add_argument("--longest-answer", type=int, default=600, help="characters; pairs with a longer one stay out")
    parser.add_argument("--flipped", type=float, nargs="*", default=[0.0, 0.1, 0.25])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    learnt, tested = (
        few(half, options.most_per_prompt, options.longest_answer)
        for half in split_by_group(read_labelled_pairs(options.pairs))
    )
    model = PreferenceModel.from_causal_lm(options.model, options.seed).eval()
    people, test = ([example(model, pair) for pair in part] for part in (learnt, tested))
    show(
        "data",
        learnt=counts(people),
        tested=counts(test),
        shorter_is_better=shorter_is_better_accuracy(
            [len(one.ids_a) for one in test], [len(one.ids_b) for one in test], [one.probability_a for one in test]
        ),
    )
    start = time.monotonic()
    differences, test_differences = (fit.differences(model, part).numpy() for part in (people, test))
    show("features", seconds=time.monotonic() - start)
    probes("people", people, differences, test, test_differences, options)
    start = time.monotonic()
    labels = judge(learnt, options)
    judged = [
        (replace(one, probability_a=label), row)
        for one, label, row in zip(people, labels, differences, strict=True)
        if label is not None
    ]
    ai = [one for one, _ in judged]
    agreeing = [one.probability_a for one, label in zip(people, labels, strict=True) if label is not None]
    show(
        "judge",
        seconds=time.monotonic() - start,
        failures=len(people) - len(ai),
        against_people=figures([one.probability_a for one in ai], agreeing, [one.group for one in ai]),
    )
    probes("judge", ai, np.array([row for _, row in judged]), test, test_differences, options)
    for name, examples in (("people", people), ("judge", ai)):
        whole_fit(name, examples, test, options)


def few(pairs: Iterable[LabelledPair], most_per_prompt: int, longest: int) -> list[LabelledPair]:
    """The first pairs of each prompt whose answers are short enough."""
    taken: Counter[str] = Counter()
    chosen = []
    for pair in pairs:
        if max(len(pair.answer_a), len(pair.answer_b)) <= longest and taken[pair.group] < most_per_prompt:
            taken[pair.group] += 1
            chosen.append(pair)
    return chosen


def example(model: PreferenceModel, pair: LabelledPair) -> Example:
    """A pair as the model reads it."""
    ids_a, ids_b = (tuple(encode(model.tokenizer, pair.prompt, text)) for text in (pair.answer_a, pair.answer_b))
    return Example(ids_a, ids_b, pair.label, pair.group)


def judge(pairs: Sequence[LabelledPair], options: argparse.Namespace) -> list[float | None]:
    """P(A is better) by the judge service with its defaults, one principle a pair; None where it could not say."""
    items = [
        judge_pb2.ComparisonItem(
            id=str(index),
            prompt=proto_messages(pair.prompt),
            answer_a=pair.answer_a,
            answer_b=pair.answer_b,
            dimension=pair.dimension,
        )
        for index, pair in enumerate(pairs)
    ]
    request = judge_pb2.CompareRequest(items=items, options=judge_pb2.JudgingOptions(seed=options.seed))
    room = build(JudgeConfig(options.model, options.constitution))
    with running(room) as addresses, connect(addresses.main) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        found = {one.item_id: one.judgement for one in stub.Compare(request, timeout=BATCH)}
    judgements = [found[item.id] for item in items]
    return [one.probability_a if one.HasField("probability_a") else None for one in judgements]


def probes(
    name: str,
    examples: Sequence[Example],
    differences: np.ndarray,
    test: Sequence[Example],
    test_differences: np.ndarray,
    options: argparse.Namespace,
) -> None:
    """The head alone on labels of which a share is flipped, hard and soft."""
    labels = np.array([one.probability_a for one in examples])
    groups = [one.group for one in examples]
    wanted = [one.probability_a for one in test]
    for flipped in options.flipped:
        for kind in ("hard", "soft"):
            found = []
            for draw in range(options.draws if flipped else 1):
                flip = np.random.default_rng((options.seed, draw)).random(len(labels)) < flipped
                noisy = np.where(flip, 1 - labels, labels)
                if kind == "hard":
                    noisy = np.where(noisy == 0.5, 0.5, (noisy > 0.5).astype(float))
                elif name == "people":
                    noisy = noisy * (1 - flipped) + (1 - noisy) * flipped
                logits = test_differences @ fit_probe(differences, noisy, groups)
                found.append(1 / (1 + np.exp(-logits)))
            accuracies = [float(correctness(one, wanted).mean()) for one in found]
            show(
                "probe",
                labels=name,
                kind=kind,
                flipped=flipped,
                accuracy=fmean(accuracies),
                lowest=min(accuracies),
                highest=max(accuracies),
                brier=fmean(float(np.mean((one - wanted) ** 2)) for one in found),
                first=figures(found[0].tolist(), wanted, [one.group for one in test]),
            )


def whole_fit(name: str, examples: Sequence[Example], test: Sequence[Example], options: argparse.Namespace) -> None:
    """Probe, then everything, as a run does it; the weights are chosen on other prompts than they are tested on."""
    spec = fill_defaults(run_pb2.RunSpec()).preference_model
    spec.epochs, spec.learning_rate, spec.patience, spec.members = options.epochs, options.learning_rate, 1, 1
    chosen = [stable_fraction("select", one.group) < _SELECTING for one in examples]
    train = [one for one, wanted in zip(examples, chosen, strict=True) if not wanted]
    select = [one for one, wanted in zip(examples, chosen, strict=True) if wanted]
    torch.manual_seed(options.seed)
    model = PreferenceModel.from_causal_lm(options.model, options.seed).eval()
    best, start = Best(), time.monotonic()
    fit_best(model, train, select, spec, CPU, best, lambda step, total: None, seed=options.seed)
    last = fit.measure(model, test)
    best.restore(model)
    kept = fit.measure(model, test) if best.step == 0 else last
    everywhere = [True] * len(test)
    show(
        "fit",
        labels=name,
        train=counts(train),
        select=counts(select),
        seconds=time.monotonic() - start,
        kept_step=best.step,
        kept=without_bins(asdict(calibration(kept, test, everywhere, options.seed))) | {"loss": kept.loss},
        last=without_bins(asdict(calibration(last, test, everywhere, options.seed))) | {"loss": last.loss},
    )


def figures(probabilities: Sequence[float], labels: Sequence[float], groups: Sequence[str]) -> dict[str, object]:
    """Accuracy with its interval, Brier score and calibration error."""
    return without_bins(asdict(calibration_of(probabilities, labels, groups)))


def without_bins(found: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in found.items() if name != "bins"}


def counts(examples: Sequence[Example]) -> dict[str, int]:
    """How much there is."""
    return {
        "pairs": len(examples),
        "prompts": len({one.group for one in examples}),
        "tokens": sum(len(one.ids_a) + len(one.ids_b) for one in examples),
    }


def show(result: str, **values: object) -> None:
    """Print one result at once."""
    rounded = json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 4))
    print(json.dumps({"result": result} | rounded), flush=True)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
