"""``charter gateway`` as a process: it serves HTTPS and metrics, TLS to policy and judge too, and ends on SIGTERM."""

import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest
from charter.cli.main import app
from charter.judge import server as judge_server
from charter.policy.server import PolicyConfig, build
from charter.rpc import tls
from openai import DefaultHttpxClient
from typer.testing import CliRunner

from tests.support.certificates import Authority
from tests.support.harness import running
from tests.support.ports import free_ports

GENERAL = Path(__file__).resolve().parents[3] / "examples" / "constitutions" / "general.yaml"
SERVICES = Path(__file__).resolve().parents[3] / "services"


def test_it_serves_https_before_policy_and_judge_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Authority.make().issue(tmp_path / "tls")
    monkeypatch.setenv(tls.VARIABLE, str(folder))
    (metrics_port,) = free_ports(1)
    command = [sys.executable, "-m", "charter.cli.main", "gateway", "--tls", str(folder), "--port", "0"]
    command += ["--host", "0.0.0.0"]
    judge = judge_server.build(judge_server.JudgeConfig("fake", GENERAL, engine="fake"))
    with running(build(PolicyConfig("fake", tmp_path, engine="fake"))) as at, running(judge) as judges:
        page = subprocess.Popen(
            [*command, "--metrics-port", str(metrics_port)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(SERVICES),
                "PYTHONUNBUFFERED": "1",
                "CHARTER_POLICY_ADDRESS": at.main,
                "CHARTER_JUDGE_ADDRESS": judges.main,
            },
        )
        try:
            assert page.stdout is not None
            url = page.stdout.readline().removeprefix("base URL: ").strip()
            assert "CHARTER_GATEWAY_API_KEY" in page.stdout.readline()
            trust = DefaultHttpxClient(verify=ssl.create_default_context(cafile=folder / "ca.crt"))
            with openai.OpenAI(base_url=url, api_key="any", http_client=trust) as client:
                models = [one.id for one in client.models.list().data]
                assert models == ["fake", "judge"]
                for model in models:
                    asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
                    assert client.chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
            counted = 'charter_gateway_requests_total{path="/v1/chat/completions",status="200"} 2.0'
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
                assert counted in answer.read().decode()
        finally:
            page.send_signal(signal.SIGTERM)
            assert page.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "a=host:1,other"], "addresses of the form host:port, got `other`"),
        (["--policy", "=host:1"], "--policy takes ADDRESS or NAME=ADDRESS"),
        (["--policy", "a=host:1", "--policy", "a=host:2"], "two policies are named `a`"),
        (["--tls", "nowhere"], "--tls names a folder with tls.crt and tls.key"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["gateway", "--port", "0", *arguments])
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
