"""A real Prometheus scrapes real services and answers every query of every panel."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from charter.judge import server as judge
from charter.policy import server as policy
from charter.rpc.channel import connect
from charter.trainer import metrics as trainer_metrics
from charter.trainer.runs import State
from charter.v1 import judge_pb2, judge_pb2_grpc, policy_pb2, policy_pb2_grpc, run_pb2, types_pb2
from charter.worker import metrics as worker_metrics

from deploy.monitoring import metrics_page
from tests.deploy.manifests import ROOT
from tests.deploy.test_monitoring import queries
from tests.harness import running

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="Prometheus is not installed (Debian: prometheus)"
)

# Generous, because a test machine may be busy.
WAIT_SECONDS = 240.0
CALL_SECONDS = 60.0
USER = [types_pb2.Message(role=types_pb2.ROLE_USER, content="What is a tide?")]


@dataclass(frozen=True)
class Server:
    """A Prometheus server."""

    address: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Result of an instant query; fails with Prometheus's own words when it refuses the expression."""
        # What Grafana puts in its place for the shortest range.
        expr = expr.replace("$__rate_interval", "1m").replace("$run", ".*")
        url = f"http://{self.address}/api/v1/query?" + urllib.parse.urlencode({"query": expr})
        try:
            with urllib.request.urlopen(url, timeout=CALL_SECONDS) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{expr}: {json.load(error)['error']}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expr: str) -> float:
        """Sum of a query's values; 0 when no such series exists yet."""
        return sum(float(one["value"][1]) for one in self.query(expr))

    def wait_for(self, expr: str) -> list[dict[str, Any]]:
        """The first non-empty result of a query."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (result := self.query(expr)):
            assert time.monotonic() < deadline, f"no data after {WAIT_SECONDS:.0f} s: {expr}"
            time.sleep(0.2)
        return result


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Server]:
    """A Prometheus that scrapes one address as deploy/monitoring/prometheus.yml scrapes the policy."""
    configuration = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())
    configuration["global"]["scrape_interval"] = "2s"
    configuration["global"]["scrape_timeout"] = "2s"
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target], "labels": {"app": "policy"}}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=log)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (address := ready_address((folder / "log").read_text())):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield Server(address)
    finally:
        process.terminate()
        process.wait(30)


def ready_address(log: str) -> str:
    """Where a Prometheus with this log answers queries; empty while it does not."""
    found = re.search(r'"Listening on" address=(\S+)', log)
    if not found:
        return ""
    try:
        with urllib.request.urlopen(f"http://{found[1]}/-/ready", timeout=CALL_SECONDS):
            return found[1]
    except urllib.error.URLError:
        return ""


def generate(address: str) -> None:
    """One answered call and one that is refused."""
    with connect(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        request = policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=USER)],
            sampling=policy_pb2.SamplingParameters(max_new_tokens=200),
            samples_per_prompt=4,
        )
        assert len(list(stub.Generate(request, timeout=CALL_SECONDS))) == 4
        with pytest.raises(grpc.RpcError):
            list(stub.Generate(policy_pb2.GenerateRequest(), timeout=CALL_SECONDS))


def compare(address: str) -> None:
    """Two judged pairs."""
    items = [
        judge_pb2.ComparisonItem(id=name, prompt=USER, answer_a="The sea rises and falls.", answer_b=f"{name}?")
        for name in ("first", "second")
    ]
    with connect(address) as channel:
        request = judge_pb2.CompareRequest(items=items)
        assert len(list(judge_pb2_grpc.JudgeServiceStub(channel).Compare(request, timeout=CALL_SECONDS))) == 2


def take_a_step(step: int) -> None:
    """What a worker and the trainer export after a PPO step."""
    numbers = dict.fromkeys(worker_metrics.PPO, 0.5)
    worker_metrics.show(run_pb2.RunEvent(phase=run_pb2.PHASE_PPO, done=step, total=2, step=step, metrics=numbers))
    worker_metrics.STEPS.inc()
    trainer_metrics.show_step("run-1", step, numbers)


# What the calls of the fixture count. Other tests of this process count on the same page, so only growth is compared.
COUNTS = {
    "sum(charter_policy_samples_total)": 8,
    'grpc_server_handled_total{grpc_method="Generate", grpc_code="OK"}': 2,
    'grpc_server_handled_total{grpc_method="Generate", grpc_code="InvalidArgument"}': 2,
    "sum(charter_judge_judgements_total)": 4,
    "sum(charter_judge_ordered_total)": 4,
}


@dataclass(frozen=True)
class Scraped:
    """A Prometheus that has seen every metric change, the page that it scrapes, and COUNTS before the changes."""

    server: Server
    page: str
    before: dict[str, float]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """A Prometheus and real traffic on what it scrapes.

    Policy and judge are real services with the fake engine. They share this process and so one page, on which the
    worker's and the trainer's own functions show their numbers too.
    """
    for module in metrics_page.MODULES:
        import_module(module)
    folder = tmp_path_factory.mktemp("prometheus")
    constitution = ROOT / "examples" / "constitutions" / "general.yaml"
    serving = running(policy.build(policy.PolicyConfig("fake", folder / "staging", "fake")))
    judging = running(judge.build(judge.JudgeConfig("fake", constitution, "fake", "choice")))
    with (
        serving as at,
        judging as judge_at,
        prometheus(at.metrics, folder) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        # A counter's rate needs a value from before it counts.
        server.wait_for('up{job="charter", app="policy"} == 1')
        before = {expr: server.value(expr) for expr in COUNTS}
        patch.setenv(worker_metrics.PORT_VARIABLE, "0")
        # A worker has one run; this process may have shown others.
        worker_metrics._RUN.clear()
        worker_metrics.serve("run-1", "tides")
        worker_metrics.PAIRS.labels("preferred_a").inc()
        worker_metrics.show(
            run_pb2.RunEvent(
                phase=run_pb2.PHASE_FITTING_PREFERENCE_MODEL,
                done=1,
                total=1,
                metrics=dict.fromkeys(worker_metrics.FIT, 0.5),
            )
        )
        trainer_metrics.show_runs(dict.fromkeys(State, 0) | {State.RUNNING: 1})
        for step in (1, 2):
            generate(at.main)
            compare(judge_at.main)
            take_a_step(step)
            server.wait_for(f"charter_run_step == {step}")
        yield Scraped(server, at.metrics, before)


@pytest.mark.parametrize(("title", "expr"), queries())
def test_query_returns_data(scraped: Scraped, title: str, expr: str) -> None:
    assert scraped.server.wait_for(expr), title


def test_a_query_that_prometheus_refuses_is_reported(scraped: Scraped) -> None:
    with pytest.raises(pytest.fail.Exception, match="parse error"):
        scraped.server.query("sum by (rate(")


@pytest.mark.parametrize("expr", COUNTS)
def test_counts_are_those_of_the_calls(scraped: Scraped, expr: str) -> None:
    assert scraped.server.value(expr) - scraped.before[expr] == COUNTS[expr]


def test_services_are_shown_as_ready(scraped: Scraped) -> None:
    ready = {one["metric"]["service"] for one in scraped.server.query("charter_serving == 1")}
    assert {"policy", "judge"} <= ready


def test_promtool_takes_the_scrape(scraped: Scraped) -> None:
    with urllib.request.urlopen(f"http://{scraped.page}/metrics", timeout=CALL_SECONDS) as response:
        page = response.read()
    result = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
    assert result.returncode == 0, (result.stdout + result.stderr).decode()
