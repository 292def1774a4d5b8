"""Runs whose preference model is fitted to labels of people, alone and mixed with the judge's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.evaluation.compare.trained import training_of
from charter.rpc.channel import QUICK, connect
from charter.spec.defaults import fill_defaults
from charter.v1 import evaluation_pb2, preference_pb2, preference_pb2_grpc, run_pb2, types_pb2
from typer.testing import CliRunner

from tests.support.comparisons import comparison
from tests.support.worker_services import Stage, tiny_services


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("feedback"), tiny_model) as stage:
        yield stage


def add(stage: Stage, source: types_pb2.LabelSource.ValueType, count: int, **fields: Any) -> None:
    """Labelled pairs of prompts of their own, every fourth held out; one is of a prompt of the evaluation."""
    made = []
    for n in range(count):
        split = types_pb2.SPLIT_HELD_OUT if n % 4 == 0 else types_pb2.SPLIT_TRAIN
        one = comparison(f"Yes {n}", source=source, split=split, **fields)
        one.prompt[0].content = f"Question {n} of {source}?" if n else "Spell the word number 1."
        made.append(one)
    with connect(stage.addresses.preference) as channel:
        request = preference_pb2.AddComparisonsRequest(request_id=f"add {source} {fields}", comparisons=made)
        preference_pb2_grpc.PreferenceServiceStub(channel).AddComparisons(request, timeout=QUICK)


def test_labels_that_are_not_there_stop_the_run_at_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    assert stage.work("early", stage.spec(feedback={"human": 1})) == 1
    assert "feedback asks for human labels, and the preference service has none: `charter feedback`" in caplog.text
    assert not (stage.run_folder("early") / "pairs.jsonl").exists()


def test_people_alone_and_mixed_by_dimension(stage: Stage) -> None:
    add(stage, types_pb2.LABEL_SOURCE_HUMAN, 17, dimension="helpful")
    assert stage.work("rlhf", stage.spec(feedback={"human": 1}, ppo={"steps": 1})) == 0
    fit = json.loads((stage.run_folder("rlhf") / "preference_fit.json").read_text())
    # Sixteen: the label of a prompt of the evaluation is left out.
    assert (fit["train_pairs"] + fit["held_out_pairs"], fit["left_out"]["EVALUATED"]) == (16, 1)
    assert [part["source"] for part in fit["mix"]] == ["HUMAN"]
    assert set(fit["by_source"]) == {"HUMAN"}
    record = json.loads((stage.run_folder("rlhf") / "run.json").read_text())
    assert record["counts"]["pairs_sampled"] == 0

    add(stage, types_pb2.LABEL_SOURCE_IMPORTED, 9, labeller="file")
    mixed = stage.spec(
        feedback={"by_dimension": {"helpful": {"human": 1}, "harmless": {"ai": 1}}},
        preference_model={
            "members": 2,
            "separate_members": True,
            "lora_rank": 2,
            "aggregation": "PREFERENCE_AGGREGATION_WORST",
            "warm_start_epochs": 1,
        },
        ppo={"steps": 1},
    )
    assert stage.work("mixed", mixed) == 0
    folder = stage.run_folder("mixed")
    fit = json.loads((folder / "preference_fit.json").read_text())
    assert {(part["dimension"], part["source"]) for part in fit["mix"]} == {("helpful", "HUMAN"), ("harmless", "AI")}
    assert fit["members"] == 2
    assert set(fit["by_dimension"]) == {"helpful", "harmless"}
    # The judge labelled prompts of its dimension only.
    assert {one["dimension"] for one in labels(stage, "mixed")} == {"harmless"}
    assert "What went in" in (folder / "report.html").read_text()


def of_store(stage: Stage, *chosen: run_pb2.StoredComparisons) -> run_pb2.RunSpec:
    """A run whose preference model is fitted to these comparisons of the store."""
    spec = stage.spec(ppo={"steps": 1})
    spec.ClearField("feedback")
    spec.comparisons.CopyFrom(run_pb2.ComparisonSpec(stored=chosen, held_out_fraction=0.5))
    return fill_defaults(spec)


def test_a_preference_model_is_fitted_to_chosen_labels_of_the_store_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(stage, types_pb2.LABEL_SOURCE_HUMAN, 9, run_id="study-people", dimension="helpful")
    add(stage, types_pb2.LABEL_SOURCE_HUMAN, 9, run_id="study-people", dimension="harmless")
    add(stage, types_pb2.LABEL_SOURCE_AI, 5, run_id="study-judge", dimension="harmless", labeller="org/third")
    add(stage, types_pb2.LABEL_SOURCE_AI, 7, run_id="study-judge", dimension="helpful")
    helpful = run_pb2.StoredComparisons(run_id="study-people", dimension="helpful")
    harmless = run_pb2.StoredComparisons(run_id="study-judge", dimension="harmless")
    # Chosen twice, they are there once.
    spec = of_store(stage, helpful, helpful, harmless)
    assert stage.work("stored", spec) == 0
    folder = stage.run_folder("stored")
    fit = json.loads((folder / "preference_fit.json").read_text())
    counts = {(one["dimension"], one["source"]): one["train_pairs"] + one["held_out_pairs"] for one in fit["mix"]}
    # One of each is of a prompt of the evaluation; of the others every fourth says that it is held out.
    assert counts == {("helpful", "HUMAN"): 8, ("harmless", "AI"): 4}
    assert (fit["held_out_pairs"], fit["left_out"]) == (3, {"EVALUATED": 2})
    assert not (folder / "pairs.jsonl").exists()
    assert labels(stage, "stored") == []
    phases = {run_pb2.Phase.Name(one.phase) for one in stage.events("stored")}
    assert not phases & {"PHASE_SAMPLING_PAIRS", "PHASE_JUDGING"}
    card = (folder / "policy" / "README.md").read_text()
    assert "a preference model was fitted to a judge model's labels and labels of people" in card
    assert training_of(evaluation_pb2.EvaluatedModel(run=str(folder)))[0]["judge"] == "org/third"

    monkeypatch.setenv("CHARTER_PREFERENCE_ADDRESS", "127.0.0.1:1")
    found = json.loads(CliRunner().invoke(app, ["audit", str(folder), "--json"]).stdout)
    assert found["sources"][-1]["labels"] == {"AI": 4, "HUMAN": 8}
    assert {(one["run_id"], one["dimension"]) for one in found["labels"]} == {
        ("study-people", "helpful"),
        ("study-judge", "harmless"),
    }


def test_labels_of_the_store_that_are_not_there_stop_the_run_at_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    add(stage, types_pb2.LABEL_SOURCE_HUMAN, 4, run_id="study-other", dimension="helpful")
    right = run_pb2.StoredComparisons(run_id="study-other")
    wrong = run_pb2.StoredComparisons(run_id="study-other", dimension="harmless")
    assert stage.work("absent", of_store(stage, right, wrong)) == 1
    assert "comparisons.stored[1]: the preference service at" in caplog.text
    assert "holds none of these" in caplog.text
    assert not (stage.run_folder("absent") / "preference_fit.json").exists()


def test_one_member_cannot_be_separate(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    assert stage.work("alone", stage.spec(preference_model={"separate_members": True})) == 2
    assert "set preference_model.members to 2 or more" in caplog.text


def labels(stage: Stage, run: str) -> list[dict[str, str]]:
    with connect(stage.addresses.preference) as channel:
        chosen = preference_pb2.ComparisonFilter(run_id=run)
        request = preference_pb2.StreamComparisonsRequest(filter=chosen)
        pages = preference_pb2_grpc.PreferenceServiceStub(channel).StreamComparisons(request, timeout=QUICK)
        return [{"dimension": one.dimension} for page in pages for one in page.comparisons]


def test_a_refresh_without_the_judges_labels_is_refused(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    spec = stage.spec(feedback={"human": 1}, comparisons={"refresh_every_steps": 1})
    assert stage.work("refresh", spec) == 2
    assert "comparisons.refresh_every_steps: adds labels of the judge, and feedback gives ai no share" in caplog.text
