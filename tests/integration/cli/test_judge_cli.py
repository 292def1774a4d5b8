"""`charter judge` and `charter constitution show` against a running judge."""

import json
import math
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.cli.judging import asking
from charter.cli.main import app
from charter.judge.calibration import MethodCalibration, MixCalibration
from charter.judge.calibration_file import load_calibration
from charter.judge.server import JudgeConfig, build
from typer.testing import CliRunner, Result

from tests.support.endpoint import MODEL, Answer, Body, endpoint
from tests.support.harness import running

CONSTITUTION = Path(__file__).parents[3] / "examples" / "constitutions" / "customer-support.yaml"
# The judge below sees twice the quality of an answer and adds this to whatever stands first.
POSITION_BIAS = 1.5


def read_quality(text: str) -> float:
    return float(text.split("quality ")[1].split(".")[0]) / 10


def reply(body: Body) -> Answer:
    if "Rewrite" in str(body["messages"]) or "Point out" in str(body["messages"]):
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        return Answer("Say it kindly.", {}, "stop" if limit > 4 else "length")
    text = str([turn["content"] for turn in body["messages"] if turn["role"] == "user"][-1])
    if "whole number" in text:
        return Answer("7", {"7": 0.5, "8": 0.5})
    if "(A)" not in text or "quality" not in text:
        return Answer("A", {"A": 0.5, "B": 0.4, "Yes": 0.05, "No": 0.05})
    first, second = text.split("(B)")
    p = 1 / (1 + math.exp(-(2 * (read_quality(first) - read_quality(second)) + POSITION_BIAS)))
    return Answer("A", {"A": p, "B": 1 - p})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with endpoint(reply) as served:
        config = JudgeConfig(MODEL, CONSTITUTION, "openai", "choice", engine_settings={"endpoint": served.url})
        with running(build(config)) as addresses:
            yield addresses.main


def charter(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_compare_prints_json_with_each_order(address: str) -> None:
    result = charter(
        "judge", "compare", "--prompt", "Help", "--a", "quality 9.", "--b", "quality 2.", "--principle",
        "protects-accounts", "--address", address, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert (found["outcome"], found["method"], found["model"]) == ("preferred_a", "choice", MODEL)
    (one,) = found["principles"]
    assert one["principle_id"] == "protects-accounts"
    assert one["evidence"] == pytest.approx([2 * 0.7 + POSITION_BIAS, 2 * 0.7 - POSITION_BIAS])
    assert found["probability_a"] == pytest.approx(
        (one["probability_a_shown_first"] + one["probability_a_shown_second"]) / 2
    )


def test_compare_prints_a_table(address: str) -> None:
    result = charter(
        "judge", "compare", "--prompt", "Help", "--a", "quality 9.", "--b", "quality 2.", "--ensemble", "2",
        "--dimension", "service", "--address", address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "preferred_a" in result.stdout
    assert result.stdout.count("service") >= 2


def test_compare_reads_a_file_without_labels(address: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": "Help", "answer_a": f"quality {i}.", "answer_b": "quality 5."} for i in range(3)]
    file.write_text("\n".join(map(json.dumps, lines)))
    result = charter("judge", "compare", "--file", str(file), "--address", address, "--json")
    assert [one["outcome"] for one in json.loads(result.stdout)] == ["preferred_b"] * 3


def test_a_pair_without_a_label_is_a_failure(address: str) -> None:
    result = charter("judge", "compare", "--prompt", "Help", "--a", "", "--b", "quality 2.", "--address", address)
    assert result.exit_code == 1
    assert "invalid" in result.stdout
    assert "no label" in result.stdout


def test_score_prints_the_distribution(address: str) -> None:
    result = charter("judge", "score", "--prompt", "Help", "--answer", "Sure.", "--address", address, "--json")
    found = json.loads(result.stdout)
    assert found["score"] == pytest.approx(2 * (7.5 - 1) / 9 - 1, abs=1e-6)
    assert sum(found["distribution"]) == pytest.approx(1)


def labelled(path: Path, prompts: int) -> None:
    """Pairs whose labels are drawn with the true probability: the sigmoid of the difference in quality."""
    draw = random.Random(5)
    lines = []
    for prompt in range(prompts):
        for _ in range(4):
            a, b = (draw.randrange(0, 60) for _ in range(2))
            chosen = draw.random() < 1 / (1 + math.exp(-(a - b) / 10))
            lines.append(
                {
                    "prompt": f"Prompt {prompt}",
                    "answer_a": f"quality {a}." + "x" * draw.randrange(9),
                    "answer_b": f"quality {b}.",
                    "label": "a" if chosen else "b",
                    "dimension": "service" if prompt % 2 else "policy",
                }
            )
    lines.append({"prompt": "Prompt 0", "answer_a": "", "answer_b": "quality 1.", "label": "b", "dimension": "policy"})
    path.write_text("\n".join(map(json.dumps, lines)))


def test_calibrate_measures_and_finds_temperature_and_bias(address: str, tmp_path: Path) -> None:
    labelled(tmp_path / "labelled.jsonl", 100)
    output, details = tmp_path / "calibration.json", tmp_path / "details.jsonl"
    result = charter(
        "judge", "calibrate", str(tmp_path / "labelled.jsonl"), "--output", str(output), "--details", str(details),
        "--html", str(tmp_path / "page.html"), "--address", address, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    page = (tmp_path / "page.html").read_text()
    for name, form in (("accuracy", ".1%"), ("brier", ".3f"), ("expected_calibration_error", ".3f")):
        assert format(found["calibrated"][name], form) in page
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=\"(?!#)", page)
    fitted = load_calibration(output).methods["choice"]
    assert isinstance(fitted, MethodCalibration)
    # Both dimensions have enough prompts; each has its own in the file that the judge applies.
    assert set(load_calibration(output).dimensions) == {"policy", "service"}
    # The judge sees twice the quality: temperature 2; its bias is known.
    assert fitted.position_bias == pytest.approx(POSITION_BIAS, abs=0.2)
    assert fitted.temperature == pytest.approx(2, rel=0.35)
    assert found["failures"] == {"invalid": 1}
    assert found["calibrated"]["pairs"] + found["fitted_on"]["pairs"] == 400
    assert set(found["by_dimension"]) == {"policy", "service"}

    rows = [json.loads(line) for line in details.read_text().splitlines()]
    assert len(rows) == 401
    judged = [row for row in rows if "probability_a" in row["judgement"]]
    # Without identical answers, which are a tie by themselves.
    principles = [one for row in judged for one in row["judgement"]["principles"]]
    evidence = [one["evidence"] for one in principles if "evidence" in one]
    biased = [(first > 0) != (second > 0) for first, second in evidence]
    assert found["position_bias_rate"] == pytest.approx(sum(biased) / len(biased), abs=0.1)
    right = [
        (row["judgement"]["probability_a"] > 0.5) == (row["label"] == 1)
        for row in judged
        if row["judgement"]["probability_a"] != 0.5
    ]
    served, fit = found["as_served"], found["fitted_on"]
    assert (served["accuracy"] * served["pairs"] + fit["accuracy"] * fit["pairs"]) == pytest.approx(sum(right), abs=12)
    assert found["calibrated"]["brier"] <= found["as_served"]["brier"]


def test_an_interrupted_calibration_goes_on_from_its_details(tmp_path: Path) -> None:
    labelled(tmp_path / "labelled.jsonl", 36)
    details = tmp_path / "details.jsonl"
    with endpoint(reply) as served:
        config = JudgeConfig(MODEL, CONSTITUTION, "openai", "choice", engine_settings={"endpoint": served.url})
        with running(build(config)) as addresses:

            def calibrate(*arguments: str) -> Result:
                command = ("judge", "calibrate", str(tmp_path / "labelled.jsonl"), "--details", str(details), "--json")
                return charter(*command, "--address", addresses.main, *arguments)

            whole = calibrate()
            assert whole.exit_code == 0, whole.output
            lines = details.read_bytes().splitlines(keepends=True)
            details.write_bytes(b"".join(lines[:50]) + lines[50][:40])
            before = len(served.requests)
            rest = calibrate()
            assert rest.exit_code == 0, rest.output
            assert json.loads(rest.stdout) == json.loads(whole.stdout)
            assert sorted(details.read_bytes().splitlines(keepends=True)) == sorted(lines)
            # Both orders of each pair that was missing, unless nothing has to be asked about it.
            missing = [json.loads(line)["judgement"]["principles"][0] for line in lines[50:]]
            assert len(served.requests) - before == 2 * sum("evidence" in one for one in missing)
            # Asked in another way, nothing in the file counts.
            before = len(served.requests)
            assert calibrate("--seed", "5").exit_code == 0
            assert len(served.requests) - before > 2 * 50


def test_details_of_another_judge_are_refused(address: str, tmp_path: Path) -> None:
    labelled(tmp_path / "labelled.jsonl", 36)
    details = tmp_path / "details.jsonl"
    command = ("judge", "calibrate", str(tmp_path / "labelled.jsonl"), "--details", str(details), "--address", address)
    assert charter(*command).exit_code == 0
    lines = details.read_text().splitlines()
    details.write_text("\n".join(lines[:9]).replace(MODEL, "other-model") + "\n")
    result = charter(*command)
    assert (result.exit_code, "of another model or constitution" in result.output.replace("\n", " ")) == (1, True)
    details.write_text("{}\n")
    result = charter(*command)
    assert result.exit_code == 1
    assert "details.jsonl, line 1, is damaged" in result.output.replace("\n", "")


def test_a_slow_judge_is_asked_again_for_what_a_call_had_no_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "BATCH", 2.0)
    asked_again = threading.Event()
    slow = 0

    def slow_at_first(body: Body) -> Answer:
        nonlocal slow
        if "quality 7." in str(body["messages"]):
            slow += 1
            # The first call's questions, in both orders, are answered when the second call asks.
            if slow > 2:
                asked_again.set()
            asked_again.wait(60)
        return reply(body)

    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": "Help", "answer_a": f"quality {i}.", "answer_b": "quality 5."} for i in (1, 2, 7)]
    file.write_text("\n".join(map(json.dumps, lines)))
    with endpoint(slow_at_first) as served:
        config = JudgeConfig(MODEL, CONSTITUTION, "openai", "choice", engine_settings={"endpoint": served.url})
        with running(build(config)) as addresses:
            result = charter("judge", "compare", "--file", str(file), "--address", addresses.main, "--json")
    assert result.exit_code == 0, result.output
    assert [one["outcome"] for one in json.loads(result.stdout)] == ["preferred_b", "preferred_b", "preferred_a"]


def test_calibrate_fits_the_weights_of_a_mix(address: str, tmp_path: Path) -> None:
    labelled(tmp_path / "labelled.jsonl", 100)
    output = tmp_path / "calibration.json"
    result = charter(
        "judge", "calibrate", str(tmp_path / "labelled.jsonl"), "--output", str(output), "--method", "mix",
        "--address", address, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    mix = load_calibration(output).methods["mix"]
    assert isinstance(mix, MixCalibration)
    # Half of what the judge sees is right; it says nothing by verdict, and an endpoint cannot contrast.
    assert mix.choice == pytest.approx(0.5, rel=0.35)
    assert (mix.verdict_follow, mix.contrast_follow, mix.contrast_oppose) == (0, 0, 0)
    found = json.loads(result.stdout)
    assert found["calibrated"]["brier"] <= found["as_served"]["brier"] + 0.01


def test_calibrate_prints_a_table(address: str, tmp_path: Path) -> None:
    labelled(tmp_path / "labelled.jsonl", 36)
    result = charter("judge", "calibrate", str(tmp_path / "labelled.jsonl"), "--address", address)
    assert result.exit_code == 0, result.output
    for expected in ("dimension", "fitted: temperature", " to ", "same position wins", "without a label"):
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "x", "answer_a": "a"}'], "labelled.jsonl, line 1: needs chosen and rejected, two answers"),
        (['{"prompt": "x", "answer_a": "a", "answer_b": "b", "label": 1}'], "from 1 prompts, too few to fit"),
    ],
)
def test_unusable_pairs_are_named(address: str, tmp_path: Path, lines: list[str], message: str) -> None:
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(lines))
    result = charter("judge", "calibrate", str(file), "--address", address)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", "")


def test_an_unreachable_judge_is_named_with_what_to_do() -> None:
    result = charter("judge", "compare", "--prompt", "x", "--a", "a", "--b", "b", "--address", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "the judge service at 127.0.0.1:1 cannot be reached" in result.output.replace("\n", "")
    assert "charter serve judge" in result.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = charter("judge", "calibrate", str(tmp_path / "none.jsonl"))
    assert (result.exit_code, "cannot read" in result.output) == (1, True)


def test_show_prints_what_the_judge_judges_by(address: str) -> None:
    result = charter("constitution", "show", "--address", address, "--json")
    assert json.loads(result.stdout)["name"] == "customer-support"
    table = charter("constitution", "show", str(CONSTITUTION))
    assert "protects-accounts" in table.stdout


def test_critique_and_revise_write_by_a_principle(address: str) -> None:
    about = ["--prompt", "Help", "--answer", "No.", "--principle", "calm-with-angry-customers", "--address", address]
    critique = charter("judge", "critique", *about, "--json")
    assert critique.exit_code == 0, critique.output
    found = json.loads(critique.stdout)
    written = {"critique": "Say it kindly.", "principle_id": "calm-with-angry-customers"}
    assert found == {**written, "failure": "", "cut_off": False}
    revision = charter("judge", "revise", *about, "--critique", found["critique"])
    assert revision.exit_code == 0, revision.output
    assert "Say it kindly." in revision.stdout
    assert "revision by calm-with-angry-customers" in revision.stdout
    assert "cut off" not in revision.stdout
    short = charter("judge", "revise", *about, "--critique", found["critique"], "--max-new-tokens", "4")
    assert "cut off by --max-new-tokens" in short.stdout
    unknown = charter("judge", "critique", *about[:4], "--principle", "none", "--address", address)
    assert unknown.exit_code == 1
    assert "no principle 'none'" in unknown.stderr
