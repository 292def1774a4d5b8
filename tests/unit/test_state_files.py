"""A damaged file of Charter's own and an environment variable of no use: named, in words, with what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from charter import environment
from charter.cli.main import app
from charter.environment import EnvironmentVariableError
from charter.feedback.chats import Chats
from charter.inference.preference_model import PreferenceModel
from charter.runs.artifacts import COMPLETE, Artifacts
from charter.spec.load import spec_to_json
from charter.state_files import StateFileError, read_json, read_log
from charter.v1 import run_pb2
from charter.worker.__main__ import REFUSED
from charter.worker.reporter import Reporter
from charter.worker.training import checkpoint
from typer.testing import CliRunner

STARTED = {
    "process": {"pid": 1, "started": 1.5},
    "endpoint": {"main": "127.0.0.1:1", "control": "", "metrics": ""},
    "command": [],
    "log": "x",
}
WHOLE = json.dumps({"policy": STARTED})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[:-9].encode(),
        b"[]",
        b"3",
        b'{"policy": 3}',
        b'{"policy": {}}',
        b"\xff\xfe",
        json.dumps({"policy": STARTED | {"process": {"pid": "x", "started": 1}}}).encode(),
        json.dumps({"policy": STARTED | {"process": {"pid": -1, "started": 1}}}).encode(),
        json.dumps({"policy": STARTED | {"endpoint": {"other": "x"}}}).encode(),
        json.dumps({"policy": STARTED | {"command": None}}).encode(),
        json.dumps({"policy": STARTED | {"log": 3}}).encode(),
    ],
)
@pytest.mark.parametrize("command", ["status", "down", "runs list"])
def test_damaged_services_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, command: str) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path))
    (tmp_path / "services.json").write_bytes(content)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert f"{tmp_path / 'services.json'} is damaged: " in result.stderr
    assert "then delete the file" in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("CHARTER_WORKER_METRICS_PORT", "abc", "top --once"),
        ("CHARTER_WORKER_METRICS_PORT", "70000", "top --once"),
        ("CHARTER_WORKER_METRICS_PORT", "-1", "top --once"),
        ("CHARTER_POLICY_ADDRESS", "localhost", "status"),
        ("CHARTER_POLICY_ADDRESS", "localhost:99999", "status"),
        ("CHARTER_POLICY_ADDRESS", "a:1,,b:2", "generate hello"),
        ("CHARTER_JUDGE_ADDRESS", "a:1,b:2", "status"),
        ("CHARTER_TRAINER_ADDRESS", "dns:///host", "runs list"),
        ("CHARTER_TLS", "/nowhere", "status"),
    ],
)
def test_an_environment_variable_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, command: str
) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path))
    for service in ("POLICY", "JUDGE", "PREFERENCE", "TRAINER"):
        monkeypatch.setenv(f"CHARTER_{service}_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert f"{name} must " in result.stderr


def test_addresses_that_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("a:1", "a:1,b:65535", "[::1]:5", "dns:///host:1", "kubernetes:///policy.charter:50051", "unix:/x"):
        monkeypatch.setenv("X", text)
        assert environment.addresses("X", "other", several=True) == text
    monkeypatch.setenv("X", "")
    assert environment.addresses("X", "usual:1", several=False) == "usual:1"
    monkeypatch.setenv("X", ":80")
    with pytest.raises(EnvironmentVariableError, match=r"X must be an address host:port, .* not ':80'"):
        environment.addresses("X", "usual:1", several=False)


def test_the_line_and_what_is_missing_are_named(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"id": 1}\n{}\n')
    with pytest.raises(StateFileError, match=r"log.jsonl, line 2, is damaged: 'id' is missing. Mend it"):
        read_log(file, lambda line: json.loads(line)["id"], "Mend it")
    file.write_bytes(b"\xff\n")
    with pytest.raises(StateFileError, match="can't decode byte"):
        read_log(file, str, "")
    file.write_text("[" * 100_000)
    with pytest.raises(StateFileError, match="recursion"):
        read_json(file, str, "")


@pytest.mark.parametrize("content", ["{", "[]", '{"counts": 3}'])
def test_a_damaged_record_of_a_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(StateFileError, match=r"run\.json is damaged: .*Bring it back from a copy"):
        Artifacts(tmp_path, "r")
    assert (tmp_path / "run.json").read_text() == content


def test_damaged_events_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"sequence": "1"}\n{"sequ\n')
    with pytest.raises(StateFileError, match=r"events\.jsonl, line 2, is damaged"):
        Reporter(Artifacts(tmp_path, "r"), "r", 1, "")


@pytest.mark.parametrize("line", ["{", "3", "{}", '{"id": "x", "prompt": 3}'])
def test_damaged_chats(tmp_path: Path, line: str) -> None:
    (tmp_path / "chats.jsonl").write_text(line + "\n")
    with pytest.raises(StateFileError, match=r"chats\.jsonl, line 1, is damaged"):
        Chats(tmp_path / "chats.jsonl")


@pytest.mark.parametrize("content", ["{", "3", "{}"])
def test_a_damaged_description_of_a_preference_model(tmp_path: Path, content: str) -> None:
    (tmp_path / "charter.json").write_text(content)
    with pytest.raises(ValueError, match=r"charter\.json (is damaged|does not describe)"):
        PreferenceModel.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "3"])
def test_a_checkpoint_with_a_damaged_mark_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / COMPLETE).write_text(content)
    assert checkpoint.newest(tmp_path) is None


def test_the_worker_says_what_is_damaged_in_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARTER_WORKER_METRICS_PORT", "abc")
    spec = tmp_path / "spec.json"
    spec.write_text(spec_to_json(run_pb2.RunSpec(name="r")))
    command = [sys.executable, "-m", "charter.worker", "--run-id=r", f"--artifacts={tmp_path}", f"--spec={spec}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == REFUSED, ended.stderr
    assert "CHARTER_WORKER_METRICS_PORT must be a port" in ended.stderr.splitlines()[-1]
