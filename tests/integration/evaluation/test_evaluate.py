"""`charter evaluate` through real services: what is stored, what a kill leaves, and what is said."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from typer.testing import CliRunner, Result

from tests.support.endpoint import Answer, Failure
from tests.support.evaluated import PROMPTS, Evaluated, Hold, evaluated
from tests.support.learned_run import learned_run

ROOT = Path(__file__).resolve().parents[3]
FILES = ("answers.jsonl", "judgements.jsonl", "prompts.jsonl", "served.json", "result.json")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    with evaluated(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture
def services(shared: Evaluated) -> Iterator[Evaluated]:
    yield shared
    shared.before = lambda model, body: None


def charter(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES}


def test_the_better_model_wins_and_every_figure_can_be_computed_again(
    services: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = services.spec(tmp_path), tmp_path / "two"
    result = charter(spec, "--folder", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    wise = {one["dimension"]: one for one in found["standings"] if one["model"] == "wise"}
    assert set(wise) == {"all", "helpful", "harmless"}
    assert wise["all"]["win_rate"]["wins"] == PROMPTS
    assert wise["all"]["win_rate"]["mean_probability"]["value"] == pytest.approx(0.9)
    assert wise["harmless"]["win_rate"]["win_rate"]["prompts"] == PROMPTS // 2
    assert wise["all"]["rating"]["low"] > 0
    assert wise["all"]["best"] > 0.9
    answers = lines(folder / "answers.jsonl")
    # Models answer by the same seeds, and are known by what served them.
    assert [one["seed"] for one in answers[:PROMPTS]] == [one["seed"] for one in answers[PROMPTS:]]
    assert {(one["model"], one["tokens"], one["cut_off"]) for one in answers} == {
        ("plain", 1, False),
        ("wise", 1, False),
    }
    judged = lines(folder / "judgements.jsonl")
    assert {one["judgement"]["principles"][0]["principle_id"] for one in judged} == {"kind"}
    assert len({one["judgement"]["constitution_digest"] for one in judged}) == 1
    assert "wise" in (folder / "report.html").read_text()

    # The same command asks nobody again, and the figures need no service at all.
    before, count = contents(folder), len(services.endpoint.requests)
    assert charter(spec, "--folder", folder).exit_code == 0
    assert len(services.endpoint.requests) == count
    assert contents(folder) == before
    (tmp_path / "prompts.jsonl").unlink()
    (folder / "result.json").unlink()
    shown = charter(folder, "--figures")
    assert shown.exit_code == 0, shown.output
    assert contents(folder) == before
    assert "100.0%" in shown.stdout
    assert "is a folder: name the spec" in charter(folder).stderr
    # By its name, too, as the other commands take it.
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    assert "no evaluation: two and " in charter("two", "--figures").stderr
    (tmp_path / "home/evaluations").mkdir(parents=True)
    folder.rename(tmp_path / "home/evaluations/two")
    assert charter("two", "--figures").exit_code == 0


def test_refusals_of_harmful_prompts_and_of_look_alikes_are_told_together(services: Evaluated, tmp_path: Path) -> None:
    spec, folder = services.spec(tmp_path), tmp_path / "two"
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "harmful.jsonl").write_text("".join(rows[1::2]))
    (tmp_path / "alike.jsonl").write_text("".join(rows[::2]))
    sources = "[{source: harmful.jsonl, kind: harmful}, {source: alike.jsonl, kind: look_alike}]"
    spec.write_text(spec.read_text().replace("[{source: prompts.jsonl, dimension: helpful}]", sources))
    asked = len(services.endpoint.requests)
    result = charter(spec, "--folder", folder, "--json")
    assert result.exit_code == 0, result.output
    # Answers, pairs in both orders, and each answer in four orders of the options.
    assert len(services.endpoint.requests) - asked == 2 * PROMPTS + 2 * PROMPTS + 4 * 2 * PROMPTS
    found = {one["model"]: one["refusals"] for one in json.loads(result.stdout)["refusals"]}
    for model, kind, share in (("wise", "harmful", 1), ("wise", "harmless", 0), ("plain", "harmful", 0)):
        assert found[model][kind]["declined"]["value"] == pytest.approx(share, abs=1e-6)
        assert found[model][kind]["likeliest"]["answers"] == 1 - share
        assert found[model][kind]["declined"]["prompts"] == PROMPTS // 2
    assert found["wise"]["harmful"]["shares"]["declines with a reason"]["value"] == pytest.approx(1)

    # What is stored is not asked again, the figures need nobody, and what was lost is asked.
    before, asked = contents(folder), len(services.endpoint.requests)
    log = folder / "replies.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-2]) + '{"judge": "ri')
    assert charter(spec, "--folder", folder).exit_code == 0
    assert len(services.endpoint.requests) - asked == 4 * 2
    assert log.read_text() == whole
    shown = charter(folder, "--figures")
    assert contents(folder) == before
    assert "look-alike" in shown.stdout


def test_tokens_that_an_endpoint_does_not_count_are_not_taken_for_none(services: Evaluated, tmp_path: Path) -> None:
    counted, services.endpoint.usage = services.endpoint.usage, None
    try:
        result = charter(services.spec(tmp_path), "--folder", tmp_path / "two", "--json")
    finally:
        services.endpoint.usage = counted
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["mean_tokens"] == {}
    assert "nobody counted the tokens" in found["standings"][-1]["notes"][-1]
    assert {one["tokens"] for one in lines(tmp_path / "two" / "answers.jsonl")} == {None}


@pytest.mark.parametrize(("held", "log"), [("wise", "answers.jsonl"), ("judge", "judgements.jsonl")])
def test_a_kill_in_the_middle_loses_nothing_that_was_stored(
    services: Evaluated, tmp_path: Path, held: str, log: str
) -> None:
    spec = services.spec(tmp_path)
    assert charter(spec, "--folder", tmp_path / "whole").exit_code == 0
    order = [one["prompt"] for one in lines(tmp_path / "whole" / log)][-PROMPTS:]
    texts = {one["key"]: one["messages"][0]["content"] for one in lines(tmp_path / "whole" / "prompts.jsonl")}
    hold = services.before = Hold(held, texts[order[3]])
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "charter.cli.main", "evaluate", str(spec), "--folder", str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "services")})
    stored = PROMPTS * (held == "wise")
    hold.reached.wait()
    while len((folder / log).read_text().splitlines()) < stored + 3:
        # This process serves what it waits for.
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    hold.released.set()
    services.before = lambda model, body: None
    with (folder / log).open("a") as file:
        # What a process that is killed while it writes may leave.
        file.write('{"judge": "ri')
    asked = len(services.endpoint.requests)
    resumed = charter(spec, "--folder", folder)
    assert resumed.exit_code == 0, resumed.output
    assert contents(folder) == contents(tmp_path / "whole")
    # Both orders of a pair are two requests.
    missing = (PROMPTS - 3) + 2 * PROMPTS if held == "wise" else 2 * (PROMPTS - 3)
    assert len(services.endpoint.requests) - asked == missing


def test_another_spec_is_refused_and_another_model_is_added(services: Evaluated, tmp_path: Path) -> None:
    spec, folder = services.spec(tmp_path), tmp_path / "two"
    assert charter(spec, "--folder", folder).exit_code == 0
    text = spec.read_text()
    for old, new, words in (
        ("seed: 3", "seed: 4", "seed changed"),
        ("prompts:", "sampling: {temperature: 0.5}\nprompts:", "sampling changed"),
        (services.addresses["wise"], services.addresses["plain"], "models `wise` changed"),
    ):
        spec.write_text(text.replace(old, new, 1))
        refused = charter(spec, "--folder", folder)
        assert refused.exit_code == 1
        assert words in refused.output
        assert "another name" in refused.output
    asked = len(services.endpoint.requests)
    third = f"  - {{name: third, address: '{services.addresses['plain']}'}}\nprompts:"
    spec.write_text(text.replace("prompts:", third, 1))
    added = charter(spec, "--folder", folder, "--json")
    assert added.exit_code == 0, added.output
    # Its own answers, and its pairs with both others; those with `plain` are alike, and no model is asked.
    assert len(services.endpoint.requests) - asked == PROMPTS + 2 * PROMPTS
    matrix = {(one["model"], one["against"]): one["win_rate"] for one in json.loads(added.stdout)["matrix"]}
    assert set(matrix) == set(permutations(("plain", "wise", "third"), 2))
    assert matrix["third", "plain"]["ties"] > 0


def test_what_fails_is_counted_and_too_much_of_it_stops(services: Evaluated, tmp_path: Path) -> None:
    spec, folder = services.spec(tmp_path, "failures: {max_share: 0.2}\n"), tmp_path / "two"
    refused = Failure(400, "not this one")
    services.before = lambda model, body: refused if model == "wise" and "Question 3" in str(body) else None
    kept = charter(spec, "--folder", folder, "--json")
    assert kept.exit_code == 0, kept.output
    found = json.loads(kept.stdout)
    assert found["answers_left_out"]["wise"] == {"items": PROMPTS, "kinds": {"refused": 1}}
    (whole,) = [one for one in found["standings"] if one["model"] == "wise" and one["dimension"] == "all"]
    assert (whole["win_rate"]["wins"], whole["win_rate"]["failures"]) == (PROMPTS - 1, 1)

    unclear = Answer("neither", {"neither": 1.0})
    services.before = lambda model, body: unclear if model == "judge" else None
    stopped = charter(spec, "--folder", tmp_path / "other")
    assert stopped.exit_code == 1
    assert "judgements of right: 2 of 2 left out: 2 unclear, and failures.max_share allows 20% of 8" in stopped.output
    assert len(lines(tmp_path / "other" / "judgements.jsonl")) == 2


def test_models_and_judges_are_started_and_stopped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models without weights, and a checkpoint of a run that had learned."""
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "services"))
    run = tmp_path / "home" / "runs" / "my-run"
    run.parent.mkdir(parents=True)
    learned_run(run, tiny_model, lora_rank=2)
    rules = ROOT / "examples" / "constitutions" / "general.yaml"
    (tmp_path / "held.jsonl").write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n')
    spec = tmp_path / "evaluation.yaml"
    spec.write_text(
        "name: started\nmodels:\n  - {name: a, model: m, engine: fake}\n  - {name: b, model: n, engine: fake}\n"
        "  - {name: early, run: my-run, step: 1, engine: transformers}\nsampling: {max_new_tokens: 8}\n"
        f"prompts: [{{source: held.jsonl}}]\njudges: [{{name: j, model: m, engine: fake, constitution: {rules}}}]\n"
    )
    result = charter(spec, "--json")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "home" / "evaluations" / "started"
    served = json.loads((folder / "served.json").read_text())
    models = {name: one["model"] for name, one in served["models"].items()}
    assert Path(models["early"]).is_relative_to(folder / "checkpoints")
    assert served["models"]["early"]["files_digest"]
    assert (models["a"], models["b"]) == ("m", "n")
    assert served["judges"]["j"]["method"] == "contrast"
    # The start is served once more, and says how likely all answers are.
    likelihoods = [json.loads(line) for line in (folder / "likelihoods.jsonl").read_text().splitlines()]
    assert [(one["start"], one["model"]) for one in likelihoods] == [
        ("a", model) for model in ("a", "b", "early") for _ in range(2)
    ]
    assert all((one["tokens"] > 0) == (one["nats"] > 0) for one in likelihoods)
    assert json.loads(result.stdout)["texts"]["b"]["nats_per_token"]["prompts"] == 2
    # The fake engine answers alike by the same seeds, and there is nothing to prefer.
    (b,) = [one for one in json.loads(result.stdout)["standings"] if one["model"] == "b"]
    assert b["win_rate"]["ties"] == 2
    assert not (folder / "serving.json").exists()
    log = (tmp_path / "home" / "logs" / "started-judge.log").read_text()
    assert "stopped" in log or "draining" in log, log
    # The run deletes its checkpoint, and the evaluation does not need it any more.
    shutil.rmtree(run / "checkpoints" / "step-000001")
    assert charter(spec, "--check").exit_code == 0


def test_a_service_that_cannot_serve_is_said(
    services: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "services"))
    rules = ROOT / "examples" / "constitutions" / "general.yaml"
    (tmp_path / "calibration.json").write_text("none")
    spec, folder = services.spec(tmp_path), tmp_path / "two"
    started = f"model: m, engine: fake, constitution: {rules}, calibration: calibration.json"
    spec.write_text(spec.read_text().replace(f"address: '{services.addresses['judge']}'", started))
    result = charter(spec, "--folder", folder)
    assert result.exit_code == 1
    assert "the judge service ended before it was serving" in result.output
    assert "calibration.json" in result.output
    assert not (folder / "serving.json").exists()
    # The answers are there for the next time.
    assert len(lines(folder / "answers.jsonl")) == 2 * PROMPTS


def test_an_endpoint_that_is_away_is_said_and_asked_again(services: Evaluated, tmp_path: Path) -> None:
    spec, folder = services.spec(tmp_path), tmp_path / "two"
    away = Failure(503, "down", headers={"x-should-retry": "false"})
    services.before = lambda model, body: away if model == "judge" and "Question 3" in str(body) else None
    stopped = charter(spec, "--folder", folder)
    assert stopped.exit_code == 1
    assert "the model of judge right cannot be reached" in stopped.output
    services.before = lambda model, body: None
    assert charter(spec, "--folder", folder).exit_code == 0
    assert len(lines(folder / "judgements.jsonl")) == PROMPTS
