"""`charter up`, a whole run of a tiny model, and `charter down`: real processes; only the judge's model is fake."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.cli.services import DEFAULTS
from charter.trainer.processes import ProcessId
from typer.testing import CliRunner, Result

from tests.support.ports import free_offset

ROOT = Path(__file__).resolve().parents[3]
CONSTITUTION = ROOT / "examples" / "constitutions" / "general.yaml"


class Command:
    """The `charter` command with a state folder of its own. It runs in this process, its services do not."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    def as_json(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def processes(self) -> list[ProcessId]:
        services = json.loads((self.home / "services.json").read_text())
        return [ProcessId(**fields["process"]) for fields in services.values()]


@pytest.fixture
def charter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    for name in DEFAULTS:
        monkeypatch.delenv(f"CHARTER_{name.upper()}_ADDRESS", raising=False)
        monkeypatch.delenv(f"CHARTER_{name.upper()}_CONTROL_ADDRESS", raising=False)
    command = Command(tmp_path / "home")
    monkeypatch.setenv("CHARTER_HOME", str(command.home))
    monkeypatch.setenv("CHARTER_WORKER_METRICS_PORT", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "services"))
    yield command
    result = command("down")
    assert result.exit_code == 0, result.stderr


@pytest.fixture
def spec(tmp_path: Path, tiny_model: Path) -> Path:
    for name, count in (("train", 8), ("held", 2)):
        lines = [json.dumps({"id": f"{name}{i}", "prompt": f"Question {name} {i}?"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    file = tmp_path / "spec.yaml"
    file.write_text(
        f"name: tiny\npolicy: {{model: {tiny_model}, engine: transformers}}\n"
        f"judge: {{model: fake, engine: fake, constitution: {CONSTITUTION}}}\n"
        "prompts: {train: [train.jsonl], held_out: [held.jsonl]}\n"
        "sampling: {max_new_tokens: 8}\ncomparisons: {pairs: 8}\n"
        "ppo: {steps: 1, episodes_per_step: 4}\nevaluation: {prompts: 2}\n"
    )
    return file


@pytest.fixture
def offset() -> str:
    return str(free_offset())


def test_up_run_and_down(charter: Command, spec: Path, offset: str) -> None:
    # Without a GPU nothing is planned, but the services sleep when they are told to.
    spec.write_text(f"{spec.read_text()}services: {{gpu_sharing: take_turns}}\n")
    up = charter("up", str(spec), "--port-offset", offset)
    assert up.exit_code == 0, up.stderr + up.stdout
    # Not a terminal: whole lines, none of them drawn over.
    lines = up.stdout.splitlines()
    assert f"policy: serving at 127.0.0.1:{50051 + int(offset)}" in lines
    assert any(line.startswith("All services are serving") for line in lines)
    assert "run already" in charter("up", str(spec), "--port-offset", offset).stdout
    assert charter.as_json("status")["policy"]["weight_version"] == 0

    done = charter.as_json("run", str(spec))
    assert done["state"] == "RUN_STATE_SUCCEEDED"
    assert (Path(done["artifacts"]) / "report.html").is_file()
    stored = json.loads((Path(done["artifacts"]) / "spec.json").read_text())["services"]
    assert stored["gpu_sharing"] == "GPU_SHARING_TAKE_TURNS"
    assert stored["judge_control"] == f"127.0.0.1:{50062 + int(offset)}"
    assert "sleeping" in (charter.home / "logs" / "judge.log").read_text()
    served = charter.as_json("status")["policy"]
    sent = json.loads((Path(done["artifacts"]) / "run.json").read_text())["served"]["policy"]
    assert served["weight_version"] > 0
    assert (served["weight_version"], served["weight_digest"]) == (sent["version"], sent["digest"])
    assert charter.as_json("generate", "Hello", "--max-new-tokens", "4")[0]["tokens"] > 0

    other = spec.with_name("other.yaml")
    other.write_text(spec.read_text().replace("model: fake", "model: another"))
    refused = charter("up", str(other), "--port-offset", offset)
    assert refused.exit_code == 1
    assert "the judge service runs with other settings already" in refused.stderr

    processes = charter.processes()
    down = charter("down")
    assert down.exit_code == 0, down.stderr
    assert not any(process.alive() for process in processes)
    assert not (charter.home / "services.json").exists()


def test_up_says_which_service_cannot_start_and_stops_the_others(charter: Command, spec: Path, offset: str) -> None:
    broken = spec.with_name("broken.yaml")
    # A folder that looks like a model's until it is loaded.
    (spec.parent / "empty").mkdir()
    (spec.parent / "empty" / "config.json").write_text("{}")
    broken.write_text(
        spec.read_text().replace("engine: transformers}", "engine: fake}") + "preference_model: {model: ./empty}\n"
    )
    up = charter("up", str(broken), "--port-offset", offset)
    assert up.exit_code == 1
    assert "the preference service ended before it was serving" in up.stderr
    assert f"The end of {charter.home}/logs/preference.log:\n" in up.stderr
    assert not (charter.home / "services.json").exists()
    assert "Nothing" in charter("down").stdout


def test_up_says_which_port_is_taken_before_it_starts_anything(charter: Command, spec: Path, offset: str) -> None:
    port = int(DEFAULTS["judge"].main.rpartition(":")[2]) + int(offset)
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        held.listen()
        up = charter("up", str(spec), "--port-offset", offset)
    assert up.exit_code == 1
    assert f"the judge service cannot listen on 127.0.0.1:{port}" in up.stderr
    assert not charter.home.exists()
