"""Commands against real services: fake engines, a tiny preference model, and workers that only report."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from charter.cli.main import app
from charter.judge.server import JudgeConfig
from charter.judge.server import build as build_judge
from charter.policy.server import PolicyConfig
from charter.policy.server import build as build_policy
from charter.preference.server import PreferenceConfig
from charter.preference.server import build as build_preference
from charter.trainer.local_launcher import LocalLauncher
from charter.trainer.server import TrainerConfig
from charter.trainer.server import build as build_trainer
from charter.v1 import run_pb2
from typer.testing import CliRunner, Result

from tests.support.harness import running_for_commands

ROOT = Path(__file__).resolve().parents[3]
WORKER = (sys.executable, str(ROOT / "tests" / "support" / "trainer_worker.py"))
# These tests name every service.
NO_SERVICES = run_pb2.ServiceAddresses()
CONSTITUTION = ROOT / "examples" / "constitutions" / "general.yaml"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """All four services, found through the environment; gives their state folder."""
    home = tmp_path_factory.mktemp("home")
    url = f"sqlite:///{home}/charter.db"
    rooms = (
        build_policy(PolicyConfig("fake-policy", home / "staging", "fake")),
        build_judge(JudgeConfig("fake-judge", CONSTITUTION, "fake")),
        build_preference(PreferenceConfig({"default": str(tiny_model)}, url, home / "staging")),
        build_trainer(TrainerConfig(url, home / "runs", "unset:1", LocalLauncher(WORKER), NO_SERVICES)),
    )
    with running_for_commands(home, rooms):
        try:
            yield home
        finally:
            # Workers outlive their trainer by design.
            for process in psutil.process_iter(["cmdline"]):
                if str(home) in " ".join(process.info["cmdline"] or []):
                    process.kill()


@pytest.fixture
def write_spec(tmp_path: Path) -> Any:
    """Writes a spec; the name of a run says what its worker does."""
    for name in ("t", "h"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}"}}\n{{"prompt": "{name} again"}}\n')

    def write(
        name: str, policy: str = "fake-policy", judge: str = "fake-judge", constitution: Path = CONSTITUTION
    ) -> str:
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            f"name: {name}\npolicy: {{model: {policy}, engine: fake}}\n"
            f"judge: {{model: {judge}, engine: fake, constitution: {constitution}}}\n"
            "prompts: {train: [t.jsonl], held_out: [h.jsonl]}\n"
        )
        return str(file)

    return write


def charter(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def as_json(*arguments: str) -> Any:
    """Result of a command that must succeed, as JSON: nothing else may be on stdout."""
    result = charter(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_status_shows_models_and_versions(services: Path) -> None:
    shown = as_json("status")
    assert {name: one["health"] for name, one in shown.items()} == dict.fromkeys(shown, "SERVING")
    assert (shown["policy"]["model"], shown["policy"]["engine"]) == ("fake-policy", "fake")
    assert shown["judge"]["weight_version"] == 0
    text = charter("status")
    assert text.exit_code == 0
    assert "fake-judge" in text.stdout


def test_generate_answers_every_prompt_in_order(services: Path) -> None:
    answers = as_json("generate", "one", "two [bold]", "--n", "2", "--max-new-tokens", "5", "--seed", "1")
    assert [one["prompt"] for one in answers] == ["one", "one", "two [bold]", "two [bold]"]
    assert all(0 < one["tokens"] <= 5 and one["weight_versions"] == [0] for one in answers)
    assert as_json("generate", "one", "two [bold]", "--n", "2", "--max-new-tokens", "5", "--seed", "1") == answers
    assert "two [bold]" in charter("generate", "two [bold]").stdout


def test_a_run_is_followed_to_its_end(services: Path, write_spec: Any) -> None:
    result = charter("run", write_spec("finishes"))
    assert result.exit_code == 0, result.output
    assert "PPO  3/3  reward +0.750  KL 0.500  100 tokens/s" in result.stdout
    assert "Succeeded" in result.stdout
    done = as_json("run", write_spec("finishes"))
    assert done["state"] == "RUN_STATE_SUCCEEDED"
    assert done["spec"]["prompts"]["train"][0].startswith("/")
    shown = as_json("runs", "show", "finishes")
    assert shown == done
    assert as_json("runs", "list")[0]["id"] == done["id"]
    assert done["id"] in charter("runs", "list").stdout
    text = charter("runs", "show", done["id"]).stdout
    assert "learning_rate: 3.0e-06" in text
    # Of each phase, not only of the last event.
    assert "reward_mean" in text


def test_a_failed_run_ends_with_1_and_can_be_resumed(services: Path, write_spec: Any) -> None:
    failed = charter("run", write_spec("crashes-once"))
    assert failed.exit_code == 1
    assert "no room on the moon" in failed.stderr
    again = charter("runs", "resume", "crashes-once")
    assert again.exit_code == 0, again.output
    # What the first attempt reported is not shown again.
    assert "PPO" not in again.stdout
    assert as_json("runs", "show", "crashes-once")["attempts"] == 2


def test_what_a_worker_says_itself_comes_first_and_is_no_crash(services: Path, write_spec: Any) -> None:
    failed = charter("run", write_spec("says-why"))
    assert failed.exit_code == 1
    said = failed.stderr.replace("\n", " ")
    assert "failed: all thumbs are up: add some down. `charter runs resume says-why" in said
    assert not any(words in said for words in ("exit status", "did not finish", "last line"))


def test_a_run_without_a_checkpoint_is_resumed_with_a_corrected_spec(services: Path, write_spec: Any) -> None:
    spec = Path(write_spec("crashes-once"))
    failed = charter("run", str(spec))
    assert "`--spec FILE`" in failed.stderr.replace("\n", " ")
    spec.write_text(spec.read_text() + "ppo: {steps: 3, minibatches: 99}\n")
    refused = charter("runs", "resume", "crashes-once", "--spec", str(spec))
    assert refused.exit_code == 1
    assert f"{spec}:5: ppo.minibatches: is 99" in refused.stderr
    spec.write_text(spec.read_text().replace("99", "4"))
    again = charter("runs", "resume", "crashes-once", "--spec", str(spec))
    assert again.exit_code == 0, again.output
    assert as_json("runs", "show", "crashes-once")["spec"]["ppo"]["steps"] == 3


def test_a_runs_name_is_as_good_as_its_id(services: Path, write_spec: Any) -> None:
    as_json("run", write_spec("finishes"))
    assert as_json("preferences", "stats", "--run", "finishes")["total"] == 0
    known = charter("feedback", "--labeller", "ann", "--run", "finishes")
    assert known.exit_code == 1
    assert re.search(r"run finishes-\S+ has no pairs to compare yet", known.stderr.replace("\n", " "))
    for command in (("feedback", "--labeller", "ann"), ("preferences", "stats"), ("preferences", "export", "x.jsonl")):
        unknown = charter(*command, "--run", "nobody")
        assert unknown.exit_code == 1
        assert "there is no run of this name" in unknown.stderr.replace("\n", " ")


def test_a_detached_run_is_watched_and_cancelled(services: Path, write_spec: Any) -> None:
    started = as_json("run", write_spec("steps-until-cancelled"), "--detach")
    assert started["state"] == "RUN_STATE_RUNNING"
    second = charter("run", write_spec("finishes"))
    assert second.exit_code == 1
    assert started["id"] in second.stderr
    cancelled = as_json("runs", "cancel", started["id"])
    assert cancelled["state"] == "RUN_STATE_CANCELLED"
    watched = charter("runs", "watch", started["id"], "--json")
    assert watched.exit_code == 1
    lines = [json.loads(line) for line in watched.stdout.splitlines()]
    assert lines[0]["event"]["sequence"] == "1"
    assert lines[-1]["run"]["state"] == "RUN_STATE_CANCELLED"
    text = charter("runs", "watch", started["id"])
    assert text.exit_code == 1
    assert f"charter runs resume {started['id']}" in text.stdout


@pytest.mark.parametrize("command", ["show", "cancel", "resume", "watch"])
def test_an_unknown_run_is_named(services: Path, command: str) -> None:
    result = charter("runs", command, "nobody")
    assert result.exit_code == 1
    assert "no run `nobody`" in result.stderr


def test_a_finished_run_is_neither_cancelled_nor_resumed(services: Path, write_spec: Any) -> None:
    done = as_json("run", write_spec("finishes"))
    for command in ("cancel", "resume"):
        result = charter("runs", command, done["id"])
        assert result.exit_code == 1
        assert "SUCCEEDED" in result.stderr


def test_a_run_for_other_services_is_refused(services: Path, write_spec: Any, tmp_path: Path) -> None:
    before = len(as_json("runs", "list"))
    changed = tmp_path / "changed.yaml"
    changed.write_text(CONSTITUTION.read_text().replace("name: ", "name: changed-", 1))
    result = charter("run", write_spec("finishes", policy="that", judge="this", constitution=changed))
    assert result.exit_code == 1
    assert "serves fake-policy, the spec says that" in result.stderr
    assert "judges with fake-judge, the spec says this" in result.stderr
    assert f"is not what {changed} says" in result.stderr
    assert len(as_json("runs", "list")) == before
