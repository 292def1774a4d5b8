"""A calibration is applied to the judge that it was fitted for, says so, and is refused by any other."""

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from charter.chat import ChatMessage
from charter.cli.main import app
from charter.held_out import prompt_key
from charter.judge.calibration import MethodCalibration
from charter.judge.calibration_file import CalibrationError, CalibrationFile, load_calibration, write_calibration
from charter.judge.server import JudgeConfig, build
from charter.judge.watch import WatchedConstitution
from charter.rpc.channel import QUICK, connect
from charter.spec.constitution import parse_constitution
from charter.v1 import judge_pb2, judge_pb2_grpc
from typer.testing import CliRunner

from tests.support.endpoint import MODEL, Answer, Body, endpoint
from tests.support.endpoint_judge import CONSTITUTION, compare, item
from tests.support.harness import running

DIGEST = parse_constitution(CONSTITUTION, "c.yaml").digest
FITTED = CalibrationFile(
    MODEL, DIGEST, {"choice": MethodCalibration(temperature=4.0)}, {}, fitted_prompts=("a1", "b2"), ensemble_size=1
)


def reply(body: Body) -> Answer:
    """Prefers the higher number, with a bias towards what is shown first; its rationales say nothing."""
    text = str(next(turn["content"] for turn in body["messages"] if turn["role"] == "user"))
    if not body.get("logprobs") or "number" not in text:
        return Answer("A", {"A": 0.5, "B": 0.4, "Yes": 0.05, "No": 0.05})
    first, second = (float(part.split("number ")[1].split(".")[0]) for part in text.split("(B)"))
    p = 1 / (1 + math.exp(-((first - second) / 10 + 1.5)))
    return Answer("A", {"A": p, "B": 1 - p})


@contextmanager
def judge(
    folder: Path, calibration: CalibrationFile | Path | None, method: str = "choice", constitution: str = CONSTITUTION
) -> Iterator[str]:
    """The address of a judge with a calibration."""
    (folder / "constitution.yaml").write_text(constitution)
    if isinstance(calibration, CalibrationFile):
        write_calibration(folder / "calibration.json", calibration)
        calibration = folder / "calibration.json"
    with endpoint(reply) as served:
        settings = {"endpoint": served.url}
        config = JudgeConfig(MODEL, folder / "constitution.yaml", "openai", method, calibration, settings)
        with running(build(config)) as addresses:
            yield addresses.main


@contextmanager
def asked(address: str) -> Iterator[judge_pb2_grpc.JudgeServiceStub]:
    with connect(address) as channel:
        yield judge_pb2_grpc.JudgeServiceStub(channel)


@pytest.mark.parametrize(
    ("change", "method", "reasons"),
    [
        ({"model": "some/70b-judge"}, "choice", ["was fitted for the model some/70b-judge, and this judge's model is"]),
        ({}, "verdict", ["has no calibration for method verdict, by which this judge compares; it has: choice"]),
        ({}, "choice+reasoning", ["has no calibration for method choice+reasoning"]),
        ({"methods": {"choice+reasoning": MethodCalibration()}}, "choice", ["it has: choice+reasoning"]),
        (
            {"constitution_digest": "0123456789abcdef"},
            "choice",
            ["constitution: digest 0123456789ab, and short"],
        ),
        ({"constitution_digest": ""}, "choice", ["another constitution: digest (none)"]),
        (
            {"model": "other", "methods": {"mix": MethodCalibration()}, "constitution_digest": "other"},
            "choice",
            ["the model other", "for method choice", "another constitution"],
        ),
    ],
)
def test_a_calibration_for_another_judge_is_refused_with_every_reason_and_what_to_do(
    tmp_path: Path, change: dict[str, Any], method: str, reasons: list[str]
) -> None:
    if "mix" in change.get("methods", {}):
        change = change | {"methods": {"verdict": MethodCalibration()}}
    with pytest.raises(CalibrationError) as caught, judge(tmp_path, replace(FITTED, **change), method):
        pass
    said = str(caught.value)
    assert all(reason in said for reason in reasons)
    assert "fit one for this judge with `charter judge calibrate" in said
    assert said.count("calibration.json") == len(reasons)


def test_the_service_says_which_calibration_it_applies_and_what_it_was_fitted_on(tmp_path: Path) -> None:
    with judge(tmp_path, FITTED) as address, asked(address) as stub:
        info = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)
    assert list(info.calibration.fitted_prompts) == ["a1", "b2"]
    assert len(info.calibration.digest) == 64
    with judge(tmp_path, None) as address, asked(address) as stub:
        info = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)
    assert not info.HasField("calibration")


def test_what_it_was_not_fitted_for_is_judged_without_it_or_refused(tmp_path: Path) -> None:
    pair = item("x", "number 30.", "number 0.")
    with judge(tmp_path, FITTED) as address, asked(address) as stub:
        calibrated = compare(stub, pair)["x"].probability_a
        plain = compare(stub, pair, instruction="Count.")["x"].probability_a
        with pytest.raises(grpc.RpcError, match="fitted for 1 principles a pair, and this request asks for 2"):
            # Of one principle: the size is looked at first.
            compare(stub, pair, ensemble_size=2)
        reasoned = compare(stub, pair, chain_of_thought=True)["x"]
    # The mean of both orders, by temperatures 4 and 1.
    lead, bias = 3.0, 1.5
    for found, temperature in ((calibrated, 4.0), (plain, 1.0)):
        orders = [1 / (1 + math.exp(-(lead + sign * bias) / temperature)) for sign in (1, -1)]
        assert found == pytest.approx(sum(orders) / 2)
    assert reasoned.chain_of_thought
    assert reasoned.probability_a == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("bound", "allowed", "refused"),
    [
        (
            {"principle": "kind"},
            [{"principle_id": "kind"}, {"dimension": "helpful"}, {"instruction": "Count."}],
            [{}, {"principle_id": "safe"}, {"dimension": "harmless"}],
        ),
        (
            {"dimension": "helpful"},
            [{"principle_id": "kind"}, {"dimension": "helpful"}, {"instruction": "Count."}],
            [{}, {"principle_id": "safe"}, {"dimension": "harmless"}],
        ),
        ({}, [{}, {"principle_id": "safe"}, {"dimension": "harmless"}], []),
    ],
)
def test_a_calibration_for_one_principle_or_dimension_is_for_no_other(
    tmp_path: Path, bound: dict[str, Any], allowed: list[dict[str, str]], refused: list[dict[str, str]]
) -> None:
    two = CONSTITUTION + CONSTITUTION[CONSTITUTION.index("  - id") :].replace("kind", "safe").replace(
        "helpful", "harmless"
    )
    fitted = replace(FITTED, constitution_digest=parse_constitution(two, "c.yaml").digest, **bound)
    pair = item("x", "number 30.", "number 0.")
    with judge(tmp_path, fitted, constitution=two) as address, asked(address) as stub:
        for options in allowed:
            assert compare(stub, pair, **options)["x"].HasField("probability_a")
        for options in refused:
            with pytest.raises(grpc.RpcError, match=r"fitted for the (principle kind|dimension helpful) alone"):
                compare(stub, pair, **options)


def test_a_judge_can_reason_by_default(tmp_path: Path) -> None:
    fitted = replace(FITTED, methods={"choice+reasoning": MethodCalibration(temperature=40.0)})
    with judge(tmp_path, fitted, "choice+reasoning") as address, asked(address) as stub:
        info = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)
        found = compare(stub, item("x", "number 30.", "number 0."))["x"]
        without = compare(stub, item("x", "number 30.", "number 0."), method=judge_pb2.JUDGING_METHOD_CHOICE)["x"]
    assert (info.default_method, info.default_chain_of_thought) == (judge_pb2.JUDGING_METHOD_CHOICE, True)
    assert found.chain_of_thought
    assert found.probability_a == pytest.approx((1 / (1 + math.exp(-4.5 / 40)) + 1 / (1 + math.exp(-1.5 / 40))) / 2)
    assert not without.chain_of_thought


async def test_a_constitution_is_not_exchanged_under_a_calibration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "constitution.yaml"
    file.write_text(CONSTITUTION)
    watched = WatchedConstitution(file)
    watched.keep("the calibration was fitted for the one of now")
    # Comments are no change.
    file.write_text("# A comment.\n" + CONSTITUTION)
    await watched.refresh()
    assert watched.current.source_yaml.startswith("# A comment.")
    file.write_text(CONSTITUTION.replace("Be kind.", "Be very kind."))
    await watched.refresh()
    assert watched.current.digest == DIGEST
    assert "fitted for the one of now" in caplog.records[-1].__dict__["problem"]


@pytest.mark.parametrize("reason", [False, True])
def test_what_is_reported_is_what_is_then_served(tmp_path: Path, reason: bool) -> None:
    """The calibrated figures of a report are those of a judge that was started with the file."""
    draw, lines = random.Random(1), []
    for prompt in range(40):
        for _ in range(2):
            a, b = draw.randrange(60), draw.randrange(60)
            better = "a" if draw.random() < 1 / (1 + math.exp(-(a - b) / 20)) else "b"
            pair = {"prompt": f"Prompt {prompt}", "answer_a": f"number {a}.", "answer_b": f"number {b}."}
            lines.append(pair | {"label": better})
    labelled, file = tmp_path / "labelled.jsonl", tmp_path / "fitted.json"
    labelled.write_text("\n".join(map(json.dumps, lines)))

    def calibrate(address: str, *arguments: str) -> dict[str, Any]:
        command = ["judge", "calibrate", str(labelled), "--address", address, "--json", *arguments]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    with judge(tmp_path, None) as address:
        reported = calibrate(address, "--output", str(file), *(["--reason", "--principle", "kind"] if reason else []))
    method = "choice+reasoning" if reason else "choice"
    with judge(tmp_path, file, method) as address:
        served = calibrate(address)
    assert reported["method"] == served["method"] == method
    assert served["as_served"] == reported["calibrated"] != reported["as_served"]
    found = load_calibration(file)
    assert list(found.methods) == [method]
    assert found.principle == ("kind" if reason else "")
    assert set(found.fitted_prompts) < {prompt_key([ChatMessage("user", f"Prompt {prompt}")]) for prompt in range(40)}
    low, high = reported["calibration_intervals"]["temperature"]
    assert low < reported["calibration"]["temperature"] < high


def test_a_calibration_by_an_instruction_is_not_written() -> None:
    command = ["judge", "calibrate", "none.jsonl", "--instruction", "Be kind.", "--output", "c.json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "a calibration holds for a constitution" in result.output
