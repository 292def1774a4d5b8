"""What a spec says of the labels that DPO and KTO learn from, checked without a model."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.spec import checks, facts, label_checks
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2

from tests.support.worker_services import CONSTITUTION

GOOD = "name: my-run\npolicy:\n  model: org/policy\n"
PAIR = {"prompt": "p", "chosen": "x", "rejected": "y"}
TIE = {"prompt": "p", "answer_a": "x", "answer_b": "y", "label": 0.5}
UP = {"prompt": "p", "completion": "x", "label": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files: dict[str, list[dict[str, Any]]] = {
        "pairs": [PAIR],
        "ties": [TIE, PAIR | {"rejected": "x"}],
        "up": [UP],
        "both": [UP, UP | {"label": False}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def found(folder: Path, more: str) -> list[str]:
    (folder / "spec.yaml").write_text(GOOD + more)
    return [str(one) for one in checks.check_file(folder / "spec.yaml", to_serve=True).file.problems]


DPO, KTO = "dpo: {data: [{source: pairs.jsonl}]", "kto: {data: [{source: both.jsonl}]"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (f"{DPO}}}\n{KTO}}}", ""),
        (f"{DPO}, stored: {{source: human, dimension: helpful, method: feedback}}}}", ""),
        ("dpo: {stored: {}}", ""),
        ("dpo: {beta: 0.2}", "dpo.data: needs at least one source: what is learned from, or dpo.stored"),
        ("kto: {}", "kto.data: needs at least one source"),
        ("dpo: {data: [{source: none.jsonl}]}", "dpo.data[0].source: no such file"),
        ("dpo: {data: [{source: ties.jsonl}]}", "dpo.data[0].source: holds no preference to learn from (ties"),
        ("dpo: {data: [{source: up.jsonl}]}", "dpo.data[0].source: "),
        ("kto: {data: [{source: pairs.jsonl}]}", "kto.data[0].source: "),
        ("kto: {data: [{source: up.jsonl}]}", "kto.data: holds thumbs up only"),
        ("kto: {data: [{source: up.jsonl}, {source: both.jsonl}]}", ""),
        ("kto: {data: [{source: up.jsonl}], stored: {}}", ""),
        (f"{DPO}, beta: 0}}", "dpo.beta: must be greater than 0"),
        (f"{KTO}, desirable_weight: 0}}", "kto.desirable_weight: must be greater than 0"),
        (f"{DPO}, stored: {{weight: 1}}}}", "dpo.stored.weight: must be there where dpo.data has weights"),
        ("dpo: {data: [{source: pairs.jsonl, weight: 2}], stored: {}}", "dpo.stored.weight: must be there"),
        ("dpo: {stored: {run_id: own}}", "dpo.stored.run_id: is own, and before this stage the run has compared"),
        ("kto: {stored: {run_id: own}}", "kto.stored.run_id: is own, and before this stage the run has rated none"),
    ],
)
def test_what_cannot_be_learned_from_is_named(folder: Path, more: str, expected: str) -> None:
    problems = found(folder, more)
    assert len(problems) == bool(expected), problems
    assert not expected or problems[0].startswith(expected)


def test_a_run_of_labels_alone_needs_at_most_the_store(folder: Path) -> None:
    for more, store in ((f"{DPO}}}", False), ("dpo: {stored: {}}", True), ("kto: {stored: {}}", True)):
        (folder / "spec.yaml").write_text(GOOD + more)
        spec = fill_defaults(checks.load_checked(folder / "spec.yaml"))
        assert not facts.needs_reinforcement(spec)
        assert facts.needs_store(spec) == store


ALIGNED = """prompts: {train: [t.jsonl], held_out: [h.jsonl]}
judge: {model: org/judge, constitution: c.yaml}
comparisons: {stored: [{run_id: study-a-judge}, {run_id: study-a-people, dimension: helpful}]%s}
"""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (", held_out_fraction: 0.3}", ""),
        ("}\nfeedback: {ai: 1}", "feedback: says whose labels are learned, and so does comparisons.stored: leave one"),
        (", pairs: 10}", "comparisons.pairs: is about pairs that are sampled"),
        (", refresh_every_steps: 2}", "comparisons.refresh_every_steps: is about pairs that are sampled"),
        (", refresh_pairs: 2}", "comparisons.refresh_pairs: is about pairs that are sampled"),
        ("}\npreference_model: {warm_start_epochs: 1}", "preference_model.warm_start_epochs: learns from all imported"),
        ("}\nreward: {preference_weight: 0, judge_weight: 1}", "comparisons.stored: is what a preference model is"),
        ("}\nppo: {algorithm: ALGORITHM_ONLINE_DPO}", "comparisons.stored: is what a preference model is"),
    ],
)
def test_what_a_preference_model_is_fitted_to_is_said_once(folder: Path, more: str, expected: str) -> None:
    spec = GOOD + ALIGNED.replace("%s}", more)
    (folder / "t.jsonl").write_text('{"prompt": "p"}\n{"prompt": "q"}\n')
    (folder / "h.jsonl").write_text('{"prompt": "r"}\n')
    (folder / "c.yaml").write_text(CONSTITUTION)
    (folder / "spec.yaml").write_text(spec)
    problems = [str(one) for one in checks.check_file(folder / "spec.yaml", to_serve=True).file.problems]
    assert len(problems) == bool(expected), problems
    assert not expected or problems[0].startswith(expected)


def test_stored_labels_count_once_and_a_run_compares_itself_only_by_revising() -> None:
    stored = [run_pb2.StoredComparisons(weight=2), run_pb2.StoredComparisons(run_id="own")]
    spec = fill_defaults(run_pb2.RunSpec(comparisons=run_pb2.ComparisonSpec(stored=stored)))
    weight, own = map(str, label_checks.fitted(spec))
    assert weight.startswith("comparisons.stored[0].weight: has no meaning here")
    assert own.startswith("comparisons.stored[1].run_id: is own, and with comparisons.stored the run compares nothing")
    spec.revision.SetInParent()
    assert list(map(str, label_checks.fitted(spec))) == [weight]


def test_with_stored_labels_no_default_speaks_of_others() -> None:
    spec = run_pb2.RunSpec(comparisons=run_pb2.ComparisonSpec(stored=[run_pb2.StoredComparisons(run_id="other")]))
    filled = fill_defaults(spec)
    assert facts.needs_preference_model(filled)
    assert not facts.samples_pairs(filled)
    assert not filled.HasField("feedback")
    assert not filled.comparisons.HasField("pairs")
    assert filled.comparisons.held_out_fraction == 0.2
    assert fill_defaults(filled) == filled
    assert facts.samples_pairs(fill_defaults(run_pb2.RunSpec()))


def test_adapters_learn_at_ten_times_the_rate(folder: Path) -> None:
    (folder / "spec.yaml").write_text(GOOD + f"{DPO}, lora_rank: 4}}\n{KTO}, lora_rank: 4}}")
    spec = fill_defaults(checks.load_checked(folder / "spec.yaml"))
    assert (spec.dpo.learning_rate, spec.kto.learning_rate) == pytest.approx((5e-6, 1e-5))
