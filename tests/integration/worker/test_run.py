"""Whole runs of the worker against real services on a tiny model."""

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from charter.evaluation.card.markdown import markdown
from charter.evaluation.card.twin import Twin
from charter.inference.preference_model import PreferenceModel
from charter.policy import server as policy
from charter.rpc.channel import QUICK, connect
from charter.runs.folder import read_run_folder
from charter.v1 import policy_pb2, policy_pb2_grpc, run_pb2
from charter.worker import answer_log
from charter.worker.__main__ import FAILED
from prometheus_client import REGISTRY
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.harness import running
from tests.support.worker_services import Stage, assert_every_ppo_metric, tiny_services


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("worker"), tiny_model) as stage:
        yield stage


def token_ages() -> list[float]:
    """Answers of age 0, of age 0 or 1, and of any, as the worker's histogram has them."""
    found = [
        REGISTRY.get_sample_value("charter_worker_token_age_versions_bucket", {"le": bound})
        for bound in ("0.0", "1.0", "+Inf")
    ]
    return [value or 0.0 for value in found]


@pytest.fixture(scope="module")
def finished(stage: Stage) -> Stage:
    """A run named "whole" that went through every stage."""
    before = token_ages()
    assert stage.work("whole", stage.spec()) == 0
    # Three steps of six answers; only the first step's were written by the weights that learned from them.
    assert [now - then for now, then in zip(token_ages(), before, strict=True)] == [6, 18, 18]
    return stage


def served(stage: Stage) -> tuple[int, str]:
    with connect(stage.addresses.policy[0]) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        model = stub.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK).model
    return model.weight_version, model.weight_digest


def test_every_artifact_is_there(finished: Stage) -> None:
    folder = finished.run_folder("whole")
    run = read_run_folder(folder)
    assert run.missing == {}
    assert run.notes == ()
    assert run.info is not None
    assert run.info.finished is not None
    assert run.info.constitution_digest
    assert set(run.info.phase_seconds) >= {"STARTING", "JUDGING", "PPO", "EVALUATING", "REPORTING"}
    assert run.info.counts["prompts_train"] == 7
    assert (folder / "report.html").stat().st_size > 10_000
    assert pq.read_table(folder / "comparisons.parquet").num_rows == 8 - run.info.counts["pairs_identical"]
    rows = pq.read_table(folder / "comparisons.parquet").to_pylist()
    assert {type(row[f"{name}_cut_off"]) for row in rows for name in ("answer_a", "answer_b")} == {bool}
    limit = finished.spec().sampling.max_new_tokens
    answers = [one for (one,) in answer_log.read(folder / "answers_after.jsonl")]
    assert len(answers) == 4
    assert all(one.tokens == limit for one in answers if one.cut_off)
    assert_card(folder, finished)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000002", "step-000003"]


def assert_card(folder: Path, stage: Stage) -> None:
    """The card and its twin are of this run, and what it read is known by its digest."""
    policy = folder / "policy"
    twin = Twin.from_json((policy / "charter.json").read_text())
    assert markdown(twin) == (policy / "README.md").read_text()
    assert twin.reinforcement is not None
    assert (twin.reinforcement.algorithm, twin.reinforcement.done) == ("ppo", 3)
    assert sum(one.count for one in twin.collected) == pq.read_table(folder / "comparisons.parquet").num_rows
    spec, (leg,) = stage.spec(), twin.attempts
    assert leg.hardware.cores == len(os.sched_getaffinity(0))
    assert leg.versions["torch"] == importlib.metadata.version("torch")
    assert set(leg.phase_seconds) >= {"STARTING", "JUDGING", "PPO", "EVALUATING"}
    (weights,) = Path(spec.policy.model).glob("*.safetensors")
    read = {one.field: one.sha256 for one in twin.read}
    assert read["policy.model"] == (hashlib.sha256(weights.read_bytes()).hexdigest(),)
    train = hashlib.sha256(Path(spec.prompts.train[0]).read_bytes()).hexdigest()
    assert read["prompts.train[0]"] == (train,)
    learned = hashlib.sha256((policy / "model.safetensors").read_bytes()).hexdigest()
    assert [(one.name, one.sha256) for one in twin.weights] == [("model.safetensors", learned)]
    assert sum(sum(one.dimensions.values()) for one in twin.prompts) == 7


def test_events_are_numbered_without_gaps_and_end_with_the_end(finished: Stage) -> None:
    events = finished.events("whole")
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].phase == run_pb2.PHASE_STARTING
    assert (events[-1].phase, events[-1].done) == (run_pb2.PHASE_REPORTING, events[-1].total)


def test_ppo_steps_report_every_metric(finished: Stage) -> None:
    steps = finished.ppo_steps("whole")
    assert set(steps) == {1, 2, 3}
    for numbers in steps.values():
        assert_every_ppo_metric(numbers)
        assert numbers["reward_p10"] <= numbers["reward_p50"] <= numbers["reward_p90"]
        assert all(math.isfinite(value) for value in numbers.values())
        # Sampler and trainer run the same weights at the same temperature.
        assert numbers["probe_mismatch_max"] < 1e-3
        assert 0 <= numbers["worker_idle_share"] <= 1
        assert 0 <= numbers["policy_idle_share"] <= 1
    # The second batch was sampled while the first was learned from, and so on.
    assert [steps[step]["token_age_mean"] for step in (1, 2, 3)] == [0.0, 1.0, 1.0]
    assert steps[1]["logprob_mismatch_max"] < 1e-3
    assert steps[2]["logprob_mismatch_max"] > 1e-3
    assert [steps[step]["weight_version"] for step in (1, 2, 3)] == [2.0, 3.0, 4.0]
    assert steps[1]["kl_k1"] == pytest.approx(0.0, abs=1e-4)
    assert steps[3]["kl_k3"] > 0


def test_strictly_on_policy(stage: Stage) -> None:
    """Without staleness each step's answers are written by the weights that learn from them."""
    before = token_ages()
    assert stage.work("on-policy", stage.spec(ppo={"max_staleness": 0})) == 0
    # Three steps of six answers, all of age 0.
    assert [now - then for now, then in zip(token_ages(), before, strict=True)] == [18, 18, 18]
    for numbers in stage.ppo_steps("on-policy").values():
        assert numbers["token_age_mean"] == 0
        assert numbers["logprob_mismatch_max"] < 1e-3
        assert numbers["importance_ratio_mean"] == pytest.approx(1.0, abs=1e-3)


def test_a_replica_that_computes_something_else_ends_the_run(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It serves the right weights, rounded to bfloat16, beside one that serves them as they are."""
    config = policy.PolicyConfig(str(stage.model), tmp_path, engine_settings={"dtype": "bfloat16"})
    with running(policy.build(config)) as rounded:
        spec = stage.spec(policy={"logprob_tolerance": 1e-5}, judge={"labelled_pairs": ""})
        spec.services.policy.append(rounded.main)
        spec.services.policy_control.append(rounded.control)
        assert stage.work("rounded", spec) == FAILED
    said = caplog.records[-1].getMessage()
    assert f"the policy at {rounded.main} does not compute what the trainer does: with weight version 1" in said
    assert "policy.logprob_tolerance is 1e-05" in said


def test_the_policy_folder_is_what_is_served(finished: Stage) -> None:
    folder = finished.run_folder("whole") / "policy"
    aligned = AutoModelForCausalLM.from_pretrained(folder)
    start = AutoModelForCausalLM.from_pretrained(finished.model)
    differences = [
        float((one - other).detach().abs().max())
        for one, other in zip(aligned.parameters(), start.parameters(), strict=True)
    ]
    assert max(differences) > 1e-4
    assert AutoTokenizer.from_pretrained(folder).chat_template
    record = json.loads((finished.run_folder("whole") / "run.json").read_text())
    assert record["policy_version"] == 4


def test_the_preference_model_is_centred_on_the_starting_policy(finished: Stage) -> None:
    """The stored offset is not zero, and the scores of the held-out answers have mean zero with it."""
    model = PreferenceModel.load(finished.run_folder("whole") / "preference_model")
    assert model.offset.item() != 0.0
    rows = pq.read_table(finished.run_folder("whole") / "comparisons.parquet").to_pylist()
    held_out = [row for row in rows if row["split"] == "HELD_OUT"]
    assert held_out
    from charter.chat import ChatMessage
    from charter.inference.preference_model import encode

    ids = [
        encode(model.tokenizer, [ChatMessage("user", row["prompt"][0]["content"])], row[answer])
        for row in held_out
        for answer in ("answer_a", "answer_b")
    ]
    with torch.no_grad():
        assert model.eval().scores(ids).mean().item() == pytest.approx(0.0, abs=1e-4)


def test_held_out_prompts_are_in_no_training_pair(finished: Stage) -> None:
    rows = pq.read_table(finished.run_folder("whole") / "comparisons.parquet").to_pylist()
    by_split = {
        split: {row["prompt"][0]["content"] for row in rows if row["split"] == split} for split in ("TRAIN", "HELD_OUT")
    }
    assert by_split["TRAIN"]
    assert by_split["HELD_OUT"]
    assert not by_split["TRAIN"] & by_split["HELD_OUT"]


def test_a_finished_run_started_again_does_nothing_twice(finished: Stage) -> None:
    before = finished.events("whole")
    stored = pq.read_table(finished.run_folder("whole") / "comparisons.parquet").num_rows
    assert finished.work("whole", finished.spec(), attempt=2) == 0
    again = finished.events("whole")[len(before) :]
    assert not any(event.HasField("step") for event in again)
    assert {event.phase for event in again} <= {
        run_pb2.PHASE_STARTING,
        run_pb2.PHASE_EVALUATING,
        run_pb2.PHASE_REPORTING,
    }
    assert pq.read_table(finished.run_folder("whole") / "comparisons.parquet").num_rows == stored
