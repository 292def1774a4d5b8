"""The command line without services: help, exit codes, addresses, and what is shown of a run."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from charter.cli import services
from charter.cli.commands import COMMANDS
from charter.cli.lazy import LazyCommand
from charter.cli.main import app
from charter.cli.runs.progress import RunProgress
from charter.cli.runs.readings import Reading, summary
from charter.cli.services import SERVICES, Endpoint, Started, endpoint, remember, started
from charter.spec.facts import ALGORITHM_TITLES
from charter.trainer.processes import ProcessId
from charter.v1 import run_pb2
from rich.console import Console
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[3]
STARTER = ROOT / "services" / "charter" / "spec" / "starter"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder, and no addresses of this machine's real services."""
    for name in SERVICES:
        monkeypatch.delenv(f"CHARTER_{name.upper()}_ADDRESS", raising=False)
        monkeypatch.delenv(f"CHARTER_{name.upper()}_CONTROL_ADDRESS", raising=False)
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where nothing listens; every service is looked for there."""
    with socket.socket() as held:
        # Bound and not listening: connections are refused, and nobody else can take the port.
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        for name in SERVICES:
            monkeypatch.setenv(f"CHARTER_{name.upper()}_ADDRESS", address)
        yield address


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group.load() if isinstance(group, LazyCommand) else group
    # A command may have others behind its word.
    for name, command in {**getattr(group, "commands", {}), **getattr(group, "others", {})}.items():
        yield from commands(command, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_there() -> None:
    expected = "up down status serve run runs generate report demo preferences judge constitution"
    assert set(expected.split()) <= {path[0] for path in ALL if path}
    assert {path[1] for path in ALL if path[:1] == ("serve",) and len(path) > 1} == set(SERVICES)


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "charter")
def test_every_command_and_option_has_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    command = ALL[path]
    assert command.help
    assert [option.name for option in command.params if not getattr(option, "help", None)] == []


@pytest.mark.parametrize(("path", "target", "line"), [row for row in COMMANDS if row[1]], ids=lambda part: part)
def test_the_line_of_help_is_the_beginning_of_the_docstring(path: str, target: str, line: str) -> None:
    """The list of commands shows it without importing the function."""
    assert ALL[tuple(path.split())].help.partition("\n")[0] == line


# What prints a result can print it as JSON; what acts, serves or only writes a file need not.
WITHOUT_JSON = {"feedback", "gateway", "serve policy", "serve judge", "serve preference", "serve trainer"}


@pytest.mark.parametrize("path", [path for path, one in ALL.items() if path and not getattr(one, "commands", None)])
def test_every_command_with_a_result_takes_json(path: tuple[str, ...]) -> None:
    takes = any("--json" in option.opts for option in ALL[path].params)
    assert takes or " ".join(path) in WITHOUT_JSON


@pytest.mark.parametrize("path", [(), ("runs",), ("serve",)])
def test_a_group_alone_shows_its_help(path: tuple[str, ...]) -> None:
    assert "Commands" in CliRunner().invoke(app, [*path]).output


def charter(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the real command in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "charter.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "services")},
    )


def test_a_bad_spec_ends_with_1_and_without_a_traceback(tmp_path: Path) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text("name: x\nppo:\n  stepz: 3\n")
    for command in ("run", "up"):
        result = charter(command, str(spec))
        assert result.returncode == 1
        assert f"{spec}:3: ppo.stepz: unknown field; did you mean `steps`?" in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "list"),
        ("runs", "show", "x"),
        ("runs", "cancel", "x"),
        ("runs", "resume", "x"),
        ("runs", "watch", "x"),
        ("runs", "list", "--json"),
    ],
)
def test_an_unreachable_trainer_is_named_with_its_address(nobody: str, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert f"the trainer service at {nobody} cannot be reached" in result.stderr
    assert "charter up" in result.stderr
    assert result.stdout == ""


def test_an_unreachable_policy_is_named_with_its_address(nobody: str) -> None:
    result = CliRunner().invoke(app, ["generate", "Hello"])
    assert result.exit_code == 1
    assert f"the policy service at {nobody} cannot be reached" in result.stderr


def test_status_of_nothing_says_so_for_each_service(nobody: str) -> None:
    result = CliRunner().invoke(app, ["status", "--json"])
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert {name: one["health"] for name, one in shown.items()} == dict.fromkeys(SERVICES, "UNREACHABLE")
    assert shown["policy"]["address"] == nobody


def test_services_that_a_run_from_files_does_not_need_are_not_missed(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path))
    addresses = Endpoint(nobody, "", "127.0.0.1:1")
    remember({"trainer": Started(ProcessId.of(os.getpid()), addresses, ["charter"], tmp_path / "trainer.log")})
    shown = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    healths = {name: one["health"] for name, one in shown.items()}
    assert healths == dict.fromkeys(SERVICES, "NOT_STARTED") | {"trainer": "UNREACHABLE"}
    assert [*summary(Reading(0.0, {}), Reading(1.0, {}))["services"]] == ["trainer"]


def test_a_run_names_every_service_that_is_missing(nobody: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"name: x\npolicy: {{model: m}}\njudge: {{model: j, constitution: {STARTER}/constitution.yaml}}\n"
        f"prompts: {{train: [{STARTER}/train.jsonl], held_out: [{STARTER}/held_out.jsonl]}}\n"
    )
    result = CliRunner().invoke(app, ["run", str(spec)])
    assert result.exit_code == 1
    for name in SERVICES:
        assert f"the {name} service at {nobody} cannot be reached" in result.stderr
    assert f"charter up {spec}" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--n", "0", "x"),
        ("generate", "--temperature", "-1", "x"),
        ("generate", "--max-new-tokens", "0", "x"),
        ("generate",),
        ("runs", "list", "--limit", "0"),
        ("serve", "policy"),
        ("serve", "policy", "--model", "m", "--port", "70000"),
        ("serve", "poet"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_serve_says_which_port_is_taken() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        result = charter("serve", "trainer", "--port", port, "--control-port", port)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("old=a", "old=b"), "two models are named `old`"),
        (("a", "b"), "two models are named `default`"),
        (("=a",), "--model takes MODEL or NAME=MODEL, got `=a`"),
        (("a", "old=b"), "the model `old`, b, is no preference_model folder"),
        (("a", "old=./lr=3"), "the model `old`, ./lr=3, is no preference_model folder"),
        (("./lr=3", "b"), "two models are named `default`"),
    ],
)
def test_serve_preference_says_which_model_is_wrong(models: tuple[str, ...], words: str) -> None:
    options = [part for model in models for part in ("--model", model)]
    result = CliRunner().invoke(app, ["serve", "preference", *options])
    assert result.exit_code == 1
    assert words in result.stderr.replace("\n", " ")


def test_serve_says_which_database_cannot_be_opened() -> None:
    result = charter("serve", "trainer", "--port", "0", "--database", "nonsense")
    assert result.returncode == 1
    assert "nonsense" in result.stderr.splitlines()[-1]


def test_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARTER_ENGINE_SETTINGS", "latency_seconds=0.5 no_such_setting=1")
    result = CliRunner().invoke(app, ["serve", "policy", "--model", "m", "--engine", "fake"])
    assert result.exit_code == 1
    assert "no_such_setting" in result.stderr
    assert "knows: start_seconds, latency_seconds" in result.stderr


@pytest.mark.parametrize("setting", ["latency", "=1", "a b=1"])
def test_a_malformed_setting_is_refused(setting: str) -> None:
    result = CliRunner().invoke(app, ["serve", "policy", "--model", "m", "--engine", "fake", "--setting", setting])
    assert result.exit_code == 1
    assert "NAME=VALUE" in result.stderr


def test_down_without_services_says_so() -> None:
    result = CliRunner().invoke(app, ["down"])
    assert result.exit_code == 0
    assert "Nothing" in result.stdout


def test_addresses_come_from_the_environment_then_from_up_then_from_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert endpoint("judge") == services.DEFAULTS["judge"]
    up = Endpoint("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    one = Started(ProcessId(1, 2.5), up, ["a", "b"], tmp_path / "log")
    remember({"policy": one})
    assert started() == {"policy": one}
    assert endpoint("policy") == up
    monkeypatch.setenv("CHARTER_POLICY_ADDRESS", "elsewhere:5")
    assert endpoint("policy") == Endpoint("elsewhere:5", "127.0.0.1:2", "127.0.0.1:3")
    remember({})
    assert started() == {}


def event(phase: int, done: int, total: int, seconds: int, **metrics: float) -> run_pb2.RunEvent:
    made = run_pb2.RunEvent(phase=phase, done=done, total=total, metrics=metrics)  # type: ignore[arg-type]
    made.time.FromSeconds(seconds)
    return made


def shown(terminal: bool, *events: run_pb2.RunEvent, width: int = 120, algorithm: str = "ppo") -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=width, color_system=None, highlight=False)
    spec = run_pb2.RunSpec(ppo=run_pb2.PpoSpec(algorithm=run_pb2.Algorithm.Value(f"ALGORITHM_{algorithm.upper()}")))
    with RunProgress(console, spec) as progress:
        for one in events:
            progress.show(one)
    return screen.getvalue()


def test_a_run_is_shown_as_bars_on_a_terminal() -> None:
    text = shown(
        True,
        event(run_pb2.PHASE_JUDGING, 5, 5, 100),
        event(run_pb2.PHASE_PPO, 1, 8, 200, reward_mean=0.5, kl_k1=0.25, tokens_per_second=120.4),
        event(run_pb2.PHASE_PPO, 2, 8, 265, reward_mean=0.625, kl_k1=0.25, tokens_per_second=120.4),
    )
    last = [line for line in text.splitlines() if "PPO" in line][-1]
    assert "2/8" in last
    # From the last event of the phase before.
    assert "0:02:45" in last
    assert "reward +0.625  KL 0.250  120 tokens/s" in last


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce_plus_plus", "online_dpo"])
def test_a_phase_of_rl_has_the_name_of_its_algorithm(algorithm: str) -> None:
    text = shown(False, event(run_pb2.PHASE_PPO, 1, 8, 200), algorithm=algorithm)
    assert ALGORITHM_TITLES[algorithm] in text
    assert "PPO" not in text


@pytest.mark.parametrize("phase", [run_pb2.PHASE_DPO, run_pb2.PHASE_KTO])
def test_labels_that_the_rewards_agree_with_are_not_called_preferred(phase: int) -> None:
    """Of a thumb nothing is preferred: the reward is on its side or is not."""
    assert "labels met 75%" in shown(False, event(phase, 1, 8, 200, held_out_reward_accuracy=0.75))


@pytest.mark.parametrize("width", [60, 70, 80])
def test_in_a_narrow_terminal_no_number_is_cut(width: int) -> None:
    numbers = {"train_loss": 5.691, "held_out_loss": 5.598, "tokens_per_second": 8042.0, "learning_rate": 9.5e-6}
    text = shown(True, event(run_pb2.PHASE_SUPERVISED, 1234, 5678, 100, **numbers), width=width)
    last = text[text.rindex("supervised") :]
    for words in ("1234/5678", "0:00:00", "loss 5.691", "held out 5.598", "8042 tokens/s", "rate 9.5e-06"):
        assert words in last


def test_a_run_is_shown_as_lines_elsewhere() -> None:
    with_text = event(run_pb2.PHASE_PPO, 2, 8, 265, reward_mean=-0.5)
    with_text.text = "resumed [bold]"
    lines = shown(False, event(run_pb2.PHASE_JUDGING, 5, 5, 100), with_text).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("judging  5/5")
    assert lines[1].endswith("PPO  2/8  reward -0.500  resumed [bold]")
