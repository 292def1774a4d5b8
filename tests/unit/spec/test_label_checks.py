"""What a spec says of the labels that DPO and KTO learn from, checked without a model."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.spec import checks, facts
from charter.spec.defaults import fill_defaults

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


def test_adapters_learn_at_ten_times_the_rate(folder: Path) -> None:
    (folder / "spec.yaml").write_text(GOOD + f"{DPO}, lora_rank: 4}}\n{KTO}, lora_rank: 4}}")
    spec = fill_defaults(checks.load_checked(folder / "spec.yaml"))
    assert (spec.dpo.learning_rate, spec.kto.learning_rate) == pytest.approx((5e-6, 1e-5))
