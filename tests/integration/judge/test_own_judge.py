"""A judge that is not ours, behind the same contract: the example of the documentation, in front of a whole run."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.cli.checks import problems
from charter.cli.local.up import judge_command
from charter.cli.main import app
from charter.rpc.channel import QUICK, connect
from charter.runs.folder import read_run_folder
from charter.v1 import preference_pb2, preference_pb2_grpc, run_pb2
from typer.testing import CliRunner

from tests.support.worker_services import Stage, tiny_services

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "own_judge.py"


@pytest.fixture(scope="module")
def judge_address() -> Iterator[str]:
    module = importlib.util.spec_from_file_location("own_judge", EXAMPLE)
    assert module is not None
    assert module.loader is not None
    own_judge = importlib.util.module_from_spec(module)
    module.loader.exec_module(own_judge)
    server, port = own_judge.start("127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_run_is_labelled_by_it(judge_address: str, tmp_path: Path, tiny_model: Path) -> None:
    with tiny_services(tmp_path, tiny_model) as stage:
        spec = own_spec(stage, judge_address)
        assert stage.work("own", spec) == 0
        chosen = preference_pb2.ComparisonFilter(run_id="own")
        with connect(stage.addresses.preference) as channel:
            pages = preference_pb2_grpc.PreferenceServiceStub(channel).StreamComparisons(
                preference_pb2.StreamComparisonsRequest(filter=chosen), timeout=QUICK
            )
            labels = [one for page in pages for one in page.comparisons]
    assert {(one.labeller, one.constitution_digest) for one in labels} == {("word-overlap", "")}
    assert {one.judgements[0].principle_id for one in labels} == {"uses-the-words-of-the-question"}
    run = read_run_folder(stage.run_folder("own"))
    assert run.evaluation is not None
    assert list(run.missing) == ["constitution.yaml"]


def own_spec(stage: Stage, address: str) -> run_pb2.RunSpec:
    judge = {"model": "word-overlap", "engine": "external", "constitution": ""}
    spec = stage.spec(judge=judge, ppo={"steps": 1})
    spec.judge.ClearField("method")
    spec.services.judge = address
    return spec


def test_the_commands_ask_it_and_know_it(judge_address: str) -> None:
    done = CliRunner().invoke(
        app,
        ["judge", "compare", "--prompt", "Is water wet?", "--a", "Yes, water is wet.", "--b", "No.", "--json",
         "--address", judge_address],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert '"outcome": "preferred_a"' in done.stdout
    score = CliRunner().invoke(
        app, ["judge", "score", "--prompt", "Is it?", "--answer", "It is.", "--json", "--address", judge_address]
    )
    assert '"score": 1.0' in score.stdout
    spec = run_pb2.RunSpec()
    spec.judge.model = "another"
    spec.services.judge = judge_address
    assert not any("not a judge service" in one or f"{judge_address} cannot" in one for one in problems(spec))


def test_up_starts_no_judge_for_it() -> None:
    spec = run_pb2.RunSpec(judge=run_pb2.JudgeSpec(model="word-overlap", engine="external"))
    assert judge_command(spec) is None
