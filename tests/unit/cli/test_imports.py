"""What a command imports: libraries that nobody waits for who only asks for help, or has a file checked."""

import subprocess
import sys
from pathlib import Path

import pytest
from charter.cli.commands import COMMANDS
from charter.spec.starter import write_starter

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
# Never needed to show help or to read a file.
HEAVY = (
    "alembic", "jinja2", "kubernetes", "matplotlib", "numpy", "opentelemetry", "prometheus_client", "psutil", "pyarrow",
    "scipy", "sqlalchemy", "starlette", "torch", "transformers", "uvicorn", "vllm",
)  # fmt: skip
# Needed to call a service.
CALLS = ("grpc", "google.protobuf", "yaml")

GROUPS = [(), *((path,) for path, target, _ in COMMANDS if not target)]
LEAVES = [tuple(path.split()) for path, target, _ in COMMANDS if target]


def imported(*commands: tuple[str, ...]) -> set[str]:
    """The modules that one process has loaded after these commands; each must succeed."""
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from charter.cli.main import app\n"
        f"for command in {commands!r}:\n"
        "    result = CliRunner().invoke(app, command)\n"
        "    assert result.exit_code == 0, (command, result.output)\n"
        "print(*sys.modules)\n"
    )
    environment = {"PYTHONPATH": str(ROOT / "services"), "PATH": "", "CHARTER_HOME": "/nowhere"}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_help_of_charter_and_of_its_groups_imports_no_library() -> None:
    loaded = imported(*((*group, "--help") for group in GROUPS))
    assert not loaded & {*HEAVY, *CALLS}
    # The check can fail: what is imported is seen.
    assert {"typer", "charter.cli.commands"} <= loaded


def test_help_of_a_command_imports_only_what_calls_need() -> None:
    assert not imported(*((*leaf, "--help") for leaf in LEAVES)) & set(HEAVY)


@pytest.mark.parametrize(
    "command",
    [
        ("constitution", "check", str(EXAMPLES / "constitutions" / "general.yaml")),
        ("init", "--model", "org/model", "FOLDER"),
        ("check", "FOLDER/run.yaml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_what_reads_files_calls_no_service(command: tuple[str, ...], tmp_path: Path) -> None:
    if command[0] == "check":
        write_starter("org/model", tmp_path)
    command = tuple(word.replace("FOLDER", str(tmp_path)) for word in command)
    assert not imported(command) & {*HEAVY, "grpc"}
