"""``charter feedback`` as a process: the links that it prints work, and what is wrong is said."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from charter.cli.main import app
from typer.testing import CliRunner

from tests.support.feedback_page import feedback_services, write_pairs
from tests.support.ports import free_ports

SERVICES = Path(__file__).resolve().parents[3] / "services"
UNREACHABLE = "127.0.0.1:1"


def test_the_printed_link_signs_in(tiny_model: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    home = tmp_path / "home"
    with feedback_services(tmp_path, tiny_model) as at:
        places = ["--policy", at.policy, "--preference", at.preference, "--port", str(free_ports(1)[0])]
        command = [sys.executable, "-m", "charter.cli.main", "feedback", "--labeller", "Zoë", "--pairs", str(pairs)]
        environment = {**os.environ, "CHARTER_HOME": str(home), "PYTHONPATH": str(SERVICES), "PYTHONUNBUFFERED": "1"}
        page = subprocess.Popen([*command, *places], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert page.stdout is not None
            link = re.fullmatch(r"Zoë: (http://\S+)/#token=(\S+)\n", page.stdout.readline())
            assert link is not None
            # The socket listens before the link is printed.
            body = json.dumps({"token": link[2]}).encode()
            with urllib.request.urlopen(f"{link[1]}/api/sign-in", data=body, timeout=60) as answer:
                assert json.load(answer)["labeller"] == "Zoë"
                assert "HttpOnly; Max-Age" in answer.headers["Set-Cookie"]
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        finally:
            page.send_signal(signal.SIGINT)
            page.wait(30)
    assert json.loads((home / "feedback" / "labellers.json").read_text()) == {"Zoë": link[2]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nobody may label yet: name someone with --labeller NAME"),
        (["--labeller", "ann", "--guided"], "--guided needs --constitution"),
        (["--labeller", "/"], "is no name of a labeller"),
        (["--labeller", "ann", "--pairs", "missing.jsonl"], "missing.jsonl"),
        (["--labeller", "ann", "--pairs", "empty.jsonl"], "there are no pairs to compare"),
        (["--labeller", "ann"], f"the preference service at {UNREACHABLE} cannot be reached"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    (tmp_path / "empty.jsonl").touch()
    done = CliRunner().invoke(app, ["feedback", *arguments, "--preference", UNREACHABLE])
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
