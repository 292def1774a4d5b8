"""The comparison of a run's stages, killed on the way and not, against real services."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.evaluation.card.join import twin_of
from charter.evaluation.card.twin import Twin
from charter.judge import server as judge_server
from charter.rpc.channel import QUICK, connect
from charter.runs.folder import read_run_folder
from charter.v1 import policy_pb2, policy_pb2_grpc, run_pb2
from typer.testing import CliRunner

from tests.support.harness import running
from tests.support.worker_services import Stage, exit_status, tiny_services, write_jsonl

FILES = (
    "answers.jsonl",
    "likelihoods.jsonl",
    "judgements.jsonl",
    "replies.jsonl",
    "prompts.jsonl",
    "served.json",
    "result.json",
)
ROUNDED = ("judgements.jsonl", "result.json")
SOURCES = ("one", "other")
STAGES = ["start", "dpo", "policy"]
PROMPTS = 4
# The second model has begun to answer, judgements have begun, and the figures are computed but not written.
KILLS = (
    ("charter.worker.evaluation.evaluate:_stored_answer", PROMPTS + 2),
    ("charter.worker.evaluation.evaluate:Compared", 2),
    ("charter.worker.stages.compare:write_results", 1),
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("worker"), tiny_model) as stage:
        pairs = [{"prompt": f"Greet guest {n}.", "chosen": "Hello, welcome in!", "rejected": "Go."} for n in range(6)]
        write_jsonl(stage.folder / "dpo.jsonl", pairs)
        for source in SOURCES:
            write_jsonl(stage.folder / f"{source}.jsonl", [{"prompt": f"Name {source} {n}."} for n in range(3)])
        yield stage


def prompts_of(stage: Stage, source: str) -> dict[str, Any]:
    return {"source": str(stage.folder / f"{source}.jsonl"), "dimension": "harmless", "count": PROMPTS // 2}


def spec_of(stage: Stage, compare: dict[str, Any] | None = None) -> run_pb2.RunSpec:
    prompts = [prompts_of(stage, source) for source in SOURCES]
    return stage.spec(
        dpo={"data": [{"source": str(stage.folder / "dpo.jsonl")}], "learning_rate": 1e-3, "batch_size": 3},
        ppo={"steps": 1, "episodes_per_step": 2},
        comparisons={"pairs": 4},
        judge={"labelled_pairs": ""},
        evaluation={"compare": {"prompts": prompts} if compare is None else compare},
    )


@pytest.fixture(scope="module")
def unbroken(stage: Stage) -> Path:
    assert stage.work("unbroken", spec_of(stage)) == 0
    return stage.run_folder("unbroken") / "comparison"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """Its files, without the names of run folders."""
    return {name: (folder / name).read_text().replace(str(folder.parent), "RUN") for name in FILES}


def assert_like(found: dict[str, str], expected: dict[str, str]) -> None:
    """All is the same, judgements but for the rounding of the judge's batches, and so the figures too."""
    assert [name for name in FILES if found[name] != expected[name] and name not in ROUNDED] == []
    judged, expected_judged = (each["judgements.jsonl"].splitlines() for each in (found, expected))
    for one, other in zip(map(json.loads, judged), map(json.loads, expected_judged), strict=True):
        probability, expected_probability = (each.pop("judgement")["probability_a"] for each in (one, other))
        assert one == other
        assert probability == pytest.approx(expected_probability, abs=1e-4)


def test_each_stage_answers_and_the_aligned_policy_is_served_again(stage: Stage, unbroken: Path) -> None:
    answers = lines(unbroken / "answers.jsonl")
    versions = {model: {one["weight_version"] for one in answers if one["model"] == model} for model in STAGES}
    run = unbroken.parent
    last = json.loads((run / "run.json").read_text())["policy_version"]
    assert versions == {"start": {1}, "dpo": {2}, "policy": {last}}
    assert len(answers) == PROMPTS * len(STAGES)
    served = json.loads((unbroken / "served.json").read_text())
    digests = {one["weight_digest"] for one in served["models"].values()}
    files = {one["files_digest"] for one in served["models"].values()}
    assert len(digests) == len(files) == len(STAGES)
    assert [served["models"][name]["model"] for name in STAGES[1:]] == [str(run / name) for name in STAGES[1:]]
    with connect(stage.addresses.policy[0]) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        model = stub.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK).model
    assert (model.weight_version, model.weight_digest) == (last, served["models"]["policy"]["weight_digest"])


def test_figures_report_and_card_tell_of_it(unbroken: Path) -> None:
    result = json.loads((unbroken / "result.json").read_text())
    assert list(result["models"]) == STAGES
    (remark,) = result["remarks"]["own"]
    assert "trained" in remark
    assert "policy" in remark
    run = unbroken.parent
    assert 'href="comparison/report.html"' in (run / "report.html").read_text()
    twin = Twin.from_json((run / "policy" / "charter.json").read_text())
    assert any((one.judge, one.evaluation, one.against) == ("own", "tiny", "start") for one in twin.comparisons)
    # One model has one digest, whoever tells of it.
    served = json.loads((unbroken / "served.json").read_text())["models"]
    assert [one.sha256 for one in twin.weights] == [served["policy"]["files_digest"]]
    assert (served["start"]["files_digest"],) in {one.sha256 for one in twin.read}
    before = contents(unbroken)
    (unbroken / "result.json").unlink()
    shown = CliRunner().invoke(app, ["evaluate", str(unbroken), "--figures"])
    assert shown.exit_code == 0, shown.output
    assert contents(unbroken) == before


def test_a_comparison_that_is_killed_goes_on_item_by_item(stage: Stage, unbroken: Path) -> None:
    whole = contents(unbroken)
    # The stages before it need not be gone through again.
    shutil.rmtree(unbroken)
    for attempt, place in enumerate(KILLS, 1):
        with stage.process("unbroken", spec_of(stage), "", place) as worker:
            assert exit_status(worker, 240) == -signal.SIGKILL, place
        assert not (unbroken / "result.json").exists()
        asked = len(lines(unbroken / "answers.jsonl"))
        assert asked == (PROMPTS + 1 if attempt == 1 else PROMPTS * len(STAGES))
    assert stage.work("unbroken", spec_of(stage), attempt=len(KILLS) + 1) == 0
    assert_like(contents(unbroken), whole)


def test_a_judge_that_is_away_is_told_before_anything_is_learned(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(stage)
    spec.evaluation.compare.judges.add(name="strict", address="127.0.0.1:9")
    assert stage.work("away", spec) != 0
    assert "127.0.0.1:9" in caplog.messages[-1]
    assert not (stage.run_folder("away") / "dpo.json").exists()


def test_a_corrected_comparison_is_made_without_learning_anew(stage: Stage, unbroken: Path) -> None:
    """By default the prompts are those of the final comparison."""
    shutil.rmtree(unbroken)
    assert stage.work("unbroken", spec_of(stage, {"stages": ["policy", "start"]}), attempt=5) == 0
    held_out = {one["prompt"] for one in json.loads((unbroken.parent / "evaluation.json").read_text())["rows"]}
    asked = lines(unbroken / "prompts.jsonl")
    assert {one["messages"][-1]["content"] for one in asked} == held_out
    result = json.loads((unbroken / "result.json").read_text())
    assert (result["start"], list(result["models"])) == ("policy", ["policy", "start"])


def test_stages_are_asked_what_they_decline_by_a_judge_of_its_own(stage: Stage, unbroken: Path) -> None:
    shutil.rmtree(unbroken)
    kinds = zip(SOURCES, ("harmful", "look_alike"), strict=True)
    prompts = [prompts_of(stage, source) | {"kind": kind} for source, kind in kinds]
    judge = judge_server.build(judge_server.JudgeConfig("fake", stage.folder / "constitution.yaml", engine="fake"))
    with running(judge) as found:
        compare = {"prompts": prompts, "judges": [{"name": "strict", "address": found.main}]}
        assert stage.work("unbroken", spec_of(stage, compare), attempt=6) == 0
    result = json.loads((unbroken / "result.json").read_text())
    rates = {one["model"]: one["refusals"] for one in result["refusals"]}
    assert list(rates) == STAGES
    assert all(one[kind]["answers"] == PROMPTS // 2 for one in rates.values() for kind in ("harmful", "harmless"))
    card = twin_of(read_run_folder(unbroken.parent), [unbroken])
    (declines,) = card.declines
    assert (declines.judge, declines.harmful.value) == ("strict", rates["policy"]["harmful"]["declined"]["value"])
    assert "Does it decline?" in (unbroken / "report.html").read_text()
