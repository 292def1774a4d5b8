"""A path that cannot be used, a terminal that cannot show a character: said in words, never as a traceback."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from charter.cli import output
from charter.cli.cluster.access import Cluster, ClusterError
from charter.cli.main import app
from charter.spec.starter import write_starter
from charter.storage.database import DatabaseError, open_database
from charter.trainer.tables import SCHEMA
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[3]
LONG = "x" * 500


@pytest.mark.parametrize("path", [LONG, "folder", "closed/file", "a/b", "binary"])
@pytest.mark.parametrize(
    "command",
    [
        ("check", "PATH"),
        ("run", "PATH"),
        ("up", "PATH"),
        ("plan", "PATH", "--gpu-gib", "80"),
        ("constitution", "check", "PATH"),
        ("constitution", "diff", "PATH", "PATH"),
        ("constitution", "show", "PATH"),
        ("init", "--model", "org/m", "PATH/x"),
        ("report", "PATH"),
        ("samples", "PATH"),
        ("judge", "compare", "--file", "PATH"),
        ("judge", "calibrate", "PATH"),
        ("preferences", "import", "PATH.jsonl"),
        ("feedback", "--labeller", "a", "--constitution", "PATH"),
        ("feedback", "--labeller", "a", "--labellers", "PATH"),
    ],
    ids=lambda command: " ".join(command),
)
def test_a_path_that_cannot_be_used_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    for name in ("POLICY", "JUDGE", "PREFERENCE", "TRAINER"):
        monkeypatch.setenv(f"CHARTER_{name}_ADDRESS", "127.0.0.1:1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_text("a file, where a folder is meant")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "closed").mkdir(mode=0)
    result = CliRunner().invoke(app, [word.replace("PATH", path) for word in command])
    if command[0] == "init" and result.exit_code == 0:
        return  # a folder that it can write into
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "[Errno" not in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal_will_do(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "Zoë 日本"
    write_starter("org/m", folder)
    (folder / "constitution.yaml").write_text(
        (folder / "constitution.yaml").read_text().replace("name: m", "name: Ü日")
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "services"),
        "PYTHONIOENCODING": f"{encoding}:strict",
        "PYTHONUTF8": "0",
    }
    for command in (("constitution", "check"), ("constitution", "show"), ("check",)):
        file = folder / ("run.yaml" if command == ("check",) else "constitution.yaml")
        for option in ((), ("--json",)):
            charter = [sys.executable, "-m", "charter.cli.main", *command, str(file), *option]
            ended = subprocess.run(charter, capture_output=True, env=environment)
            assert ended.returncode == 0, ended.stderr
            if option:
                found = json.loads(ended.stdout.decode(encoding))
                assert command == ("check",) or found["name"] == "Ü日"


def printed(table: Table, width: int) -> str:
    screen = io.StringIO()
    output.print_table(table, Console(file=screen, width=width, force_terminal=False))
    return screen.getvalue()


def test_a_table_keeps_an_address_whole() -> None:
    table = Table(box=None)
    table.add_column("ADDRESS", no_wrap=True)
    table.add_row("a-very-long-name.of-a-namespace.svc.cluster.local:50051")
    assert "a-very-long-name.of-a-namespace.svc.cluster.local:50051" in printed(table, 30).splitlines()[1]


@pytest.mark.parametrize("width", [20, 60, 80, 200])
@pytest.mark.parametrize("no_wrap", [True, False])
def test_no_cell_of_a_table_is_cut(width: int, no_wrap: bool) -> None:
    """Of several columns that are too wide together, names that are copied stay whole."""
    row = ("supervised-20261130-125722-1a2b3c", "[green]succeeded[/]", "127.0.0.1:50051", "0:04:12")
    table = Table(box=None, pad_edge=False)
    for heading in ("RUN", "STATE", "ADDRESS", "TIME"):
        table.add_column(heading, no_wrap=no_wrap)
    table.add_row(*row)
    shown = printed(table, width)
    assert all(cell.replace("[green]", "").replace("[/]", "") in shown for cell in row)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_column_of_a_table_loses_its_name(width: int) -> None:
    """Those of `charter audit --summary`, of which ten do not stand side by side in 80 columns."""
    names = "principle", "dimension", "judgements", "A", "B", "tie", "failed", "sure", "same position", "tokens"
    table = Table(*names)
    table.add_row("no-violence-of-any-kind", "harmlessness", *["1234567"] * 8)
    shown = printed(table, width)
    assert "…" not in shown
    assert all(word in shown for word in ("principle", "judgements", "failed", "position", "no-violence-of-any-kind"))
    if width == 80:
        assert max(map(len, shown.splitlines())) > 80, "else the case shows nothing"


def test_every_table_is_printed_so() -> None:
    """``console.print`` cuts columns that do not fit. Grids and live screens have no other way."""
    for file in (ROOT / "services" / "charter" / "cli").rglob("*.py"):
        assert not re.search(r"\.print\((table|facts)\)", file.read_text()), file


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no database at all" * 100, "the file is damaged, or none of ours"), (b"", "")],
)
def test_a_damaged_database_is_said_to_be_damaged(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "charter.db").write_bytes(content)
    url = f"sqlite:///{tmp_path}/charter.db"
    if not words:
        open_database(url, SCHEMA).dispose()
        return
    with pytest.raises(DatabaseError, match=words) as error:
        open_database(url, SCHEMA)
    assert "sqlite:///FILE" not in str(error.value)


@pytest.mark.parametrize("url", ["nonsense", "nodriver://x", ""])
def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    with pytest.raises(DatabaseError, match="Is it a URL such as sqlite:///FILE"):
        open_database(url, SCHEMA)


def test_a_database_in_no_folder_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match=r"file: (Not a directory|File exists)"):
        open_database(f"sqlite:///{tmp_path}/file/charter.db", SCHEMA)


def test_without_a_cluster_the_advice_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(ClusterError) as error:
        Cluster.open("", "charter")
    assert ".." not in str(error.value)
    assert str(error.value).endswith(". Set KUBECONFIG, or choose a context that is in it")
