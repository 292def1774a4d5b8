"""A judge, or principles, that trained one of the models: said in words."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from charter.evaluation.compare.trained import remarks, training_of
from charter.spec.defaults import fill_defaults
from charter.spec.load import spec_to_json
from charter.v1 import evaluation_pb2, run_pb2

TRAINED: dict[str, list[dict[str, str]]] = {
    "ppo": [{"judge": "org/judge", "constitution_digest": "abc"}],
    "base": [],
}


@pytest.mark.parametrize(
    ("model", "digest", "words"),
    [
        ("org/judge", "abc", ["strict is the judge that trained ppo, by the same principles."]),
        ("org/judge", "def", ["strict is the judge that trained ppo, by other principles."]),
        ("org/other", "abc", ["strict judges by the principles that trained ppo."]),
        ("org/other", "def", []),
        ("", "", []),
    ],
)
def test_what_is_said(model: str, digest: str, words: list[str]) -> None:
    served = {"model": model, "constitution_digest": digest}
    assert remarks("strict", served, TRAINED) == [f"Measured by what it was trained on: {one}" for one in words]


def run_folder(folder: Path, change: run_pb2.RunSpec | None = None) -> Path:
    spec = run_pb2.RunSpec(policy=run_pb2.PolicySpec(model="org/policy"), judge=run_pb2.JudgeSpec(model="org/judge"))
    spec.MergeFrom(change or run_pb2.RunSpec())
    (folder / "policy").mkdir(parents=True)
    (folder / "spec.json").write_text(spec_to_json(fill_defaults(spec)))
    (folder / "run.json").write_text(json.dumps({"id": "1", "constitution_digest": "abc"}))
    return folder


def test_the_run_that_made_a_model_says_who_judged(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert training_of(evaluation_pb2.EvaluatedModel(run=str(run))) == TRAINED["ppo"]
    assert training_of(evaluation_pb2.EvaluatedModel(model=str(run / "policy"))) == TRAINED["ppo"]
    assert training_of(evaluation_pb2.EvaluatedModel(model="org/model")) == []
    assert training_of(evaluation_pb2.EvaluatedModel(address="127.0.0.1:1")) == []


def test_what_a_run_learned_before_its_judge_taught_is_nobodys(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for name, judge in (("pretraining", []), ("supervised", []), ("revised", TRAINED["ppo"])):
        (run / name).mkdir()
        assert training_of(evaluation_pb2.EvaluatedModel(model=str(run / name))) == judge


@pytest.mark.parametrize("section", ["dpo", "comparisons"])
def test_stored_labels_of_judges_have_trained_who_learned_from_them(tmp_path: Path, section: str) -> None:
    others = run_pb2.ComparisonSpec(stored=[run_pb2.StoredComparisons(run_id="other")])
    people = run_pb2.RunSpec(feedback=run_pb2.FeedbackSpec(human=1.0))
    run = run_folder(tmp_path / "run", people if section == "dpo" else run_pb2.RunSpec(comparisons=others))
    labels = [("AI", "org/judge", "abc"), ("AI", "org/other", "def"), ("AI", "org/judge", "abc"), ("HUMAN", "anna", "")]
    columns = dict(zip(("source", "labeller", "constitution_digest"), zip(*labels, strict=True), strict=True))
    pq.write_table(pa.table(columns), run / f"{section}_stored.parquet")
    found = training_of(evaluation_pb2.EvaluatedModel(run=str(run)))
    assert sorted(map(tuple, map(dict.values, found))) == [("org/judge", "abc"), ("org/other", "def")]
    said = remarks("strict", {"model": "org/judge", "constitution_digest": "def"}, {"dpo": found})
    assert [one.partition(": ")[2] for one in said] == [
        "strict is the judge that trained dpo, by other principles.",
        "strict judges by the principles that trained dpo.",
    ]


def test_a_judge_that_only_compared_at_the_end_trained_nothing(tmp_path: Path) -> None:
    people = run_pb2.RunSpec(feedback=run_pb2.FeedbackSpec(human=1.0))
    run = run_folder(tmp_path / "people", people)
    assert training_of(evaluation_pb2.EvaluatedModel(run=str(run))) == []
    people.reward.judge_weight = 0.5
    run = run_folder(tmp_path / "both", people)
    assert training_of(evaluation_pb2.EvaluatedModel(run=str(run))) == TRAINED["ppo"]
