"""A real, small run on real services, all with tiny models, recorded by a real Prometheus and a receiver of traces."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from charter.cli.local.monitoring import GRAFANA_PORT, PROMETHEUS_PORT
from charter.cli.main import app
from charter.cli.services import DEFAULTS
from typer.testing import CliRunner

from tests.deploy.manifests import ROOT
from tests.support.collector import Collector, collecting
from tests.support.ports import free_offset, free_ports
from tests.support.worker_services import write_inputs, write_jsonl

CALL_SECONDS = 60.0
# Generous, because a test machine may be busy.
WAIT_SECONDS = 120.0
# What a query sees of the run: seconds between scrapes and between two points of a query, $__interval,
# and what Grafana would put for $__rate_interval.
SCRAPE_SECONDS = 1
RATE_INTERVAL = "15s"


@dataclass(frozen=True)
class Recorded:
    """A Prometheus that has seen a whole run, the pages as they were during it, and the spans of its traces."""

    address: str
    begin: float
    end: float
    home: Path
    run: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    collector: Collector = field(default_factory=Collector)

    def get(self, path: str, **parameters: str) -> Any:
        """Data of an answer; fails with Prometheus's own words when it refuses."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=CALL_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {json.load(error)['error']}")

    def values(self, expr: str) -> list[float]:
        """Every finite value that a query had during the run."""
        step = str(SCRAPE_SECONDS)
        found = self.get("query_range", query=filled(expr), start=str(self.begin), end=str(self.end), step=step)
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if abs(value) < float("inf")]

    def labels(self, name: str) -> set[str]:
        """Labels that a series has."""
        series = self.get("series", **{"match[]": name, "start": str(self.begin), "end": str(self.end)})
        return {label for one in series for label in one}

    def exemplar_traces(self, expr: str) -> set[str]:
        """Traces that the exemplars of a query's series lead to."""
        found = self.get("query_exemplars", query=filled(expr), start=str(self.begin), end=str(self.end))
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}


def filled(expr: str) -> str:
    """A query with what Grafana puts for its variables when everything is chosen."""
    expr = expr.replace("$__rate_interval", RATE_INTERVAL).replace("$__interval", f"{SCRAPE_SECONDS}s")
    for name in ("$namespace", "$run", "$model", "$study"):
        expr = expr.replace(name, ".*")
    return expr


def page(address: str) -> str:
    """A metrics page; empty while nobody serves it."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=CALL_SECONDS) as response:
            text: str = response.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError):
        return ""


@contextmanager
def recorded_run(folder: Path, spec: Path) -> Iterator[Recorded]:
    """Start everything by `charter up --monitoring`, do the run by `charter run`, and stop all at the end."""
    offset = free_offset([PROMETHEUS_PORT, GRAFANA_PORT])
    worker = f"127.0.0.1:{9095 + offset}"
    with pytest.MonkeyPatch.context() as patch, collecting() as (endpoint, collector):
        for name in DEFAULTS:
            patch.delenv(f"CHARTER_{name.upper()}_ADDRESS", raising=False)
            patch.delenv(f"CHARTER_{name.upper()}_CONTROL_ADDRESS", raising=False)
        patch.setenv("CHARTER_HOME", str(folder / "home"))
        patch.setenv("CHARTER_WORKER_METRICS_PORT", str(9095 + offset))
        patch.setenv("PYTHONPATH", str(ROOT / "services"))
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        started: Any = {}
        try:
            started = _charter("up", str(spec), "--port-offset", str(offset), "--monitoring")
            prometheus = started["prometheus"]["address"]
            addresses = {name: started[name]["metrics"] for name in DEFAULTS} | {"worker": worker}
            with gateway(started["policy"]["address"]) as (base_url, addresses["gateway"]):
                _scrape_often(folder / "home", started, addresses["gateway"])
                pages = dict.fromkeys(addresses, "")
                begin = time.time()
                run = _charter("run", str(spec), "--detach")["id"]
                while _charter("runs", "show", run)["state"] in ("RUN_STATE_PENDING", "RUN_STATE_RUNNING"):
                    _chat(base_url)
                    for name, address in addresses.items():
                        pages[name] = page(address) or pages[name]
                    time.sleep(SCRAPE_SECONDS)
            ended = _charter("runs", "show", run)
            assert ended["state"] == "RUN_STATE_SUCCEEDED", ended
            # The last numbers are scraped, and the rules have seen them.
            time.sleep(3 * SCRAPE_SECONDS)
            yield Recorded(prometheus, begin, time.time(), folder / "home", run, pages, collector)
        finally:
            stopped = _charter("down")["stopped"]
        assert set(stopped) == {*DEFAULTS, "prometheus", *({"grafana"} & started.keys())}
        assert not page(prometheus)


@contextmanager
def gateway(policy: str) -> Iterator[tuple[str, str]]:
    """`charter gateway` before a policy; yields its base URL and the address of its metrics."""
    port, metrics_port = free_ports(2)
    command = [sys.executable, "-m", "charter.cli.main", "gateway", "--policy", f"tides={policy}", f"--port={port}"]
    with subprocess.Popen([*command, f"--metrics-port={metrics_port}"]) as process:
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while not page(f"127.0.0.1:{metrics_port}"):
                assert process.poll() is None, "the gateway has ended"
                assert time.monotonic() < deadline, "the gateway has not started"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", f"127.0.0.1:{metrics_port}"
        finally:
            process.terminate()


def _chat(base_url: str) -> None:
    """A client that has a few tokens streamed to it."""
    body = {"model": "tides", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=CALL_SECONDS) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")


def small_spec(folder: Path, model: Path, steps: int) -> Path:
    """A small run whose answers vary in length and whose judge is asked in both orders."""
    write_inputs(folder)
    write_jsonl(folder / "chat.jsonl", [{"prompt": f"Name tide {n}.", "completion": "High tide."} for n in range(12)])
    file = folder / "spec.yaml"
    file.write_text(
        f"name: tides-rlaif-5\nseed: 5\npolicy: {{model: {model}, engine: transformers}}\n"
        f"judge: {{model: fake, engine: fake, constitution: {folder / 'constitution.yaml'}, method: choice}}\n"
        "prompts: {train: [train.jsonl], held_out: [held_out.jsonl]}\n"
        "supervised: {data: [{source: chat.jsonl}], batch_size: 4, held_out_fraction: 0.3, evaluate_every_steps: 1}\n"
        "revision: {rounds: 1, gate_prompts: 2, on_no_gain: continue, accept: all, learning: {batch_size: 4}}\n"
        "sampling: {max_new_tokens: 96}\n"
        "comparisons: {pairs: 16, held_out_fraction: 0.25, refresh_every_steps: 4, refresh_pairs: 4}\n"
        "preference_model: {epochs: 2, batch_size: 4, learning_rate: 1e-3}\n"
        f"ppo: {{steps: {steps}, episodes_per_step: 12, learning_rate: 1e-3, critic_learning_rate: 1e-3,"
        " kl_target: 1}\n"
        "evaluation: {prompts: 2, bootstrap_samples: 100, every_steps: 2, watched_prompts: 3}\n"
    )
    return file


def _charter(*arguments: str) -> Any:
    """Result of a command that must succeed, as JSON."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _scrape_often(home: Path, started: Any, gateway: str) -> None:
    """Have Prometheus scrape every second, the gateway too, for enough points of a short run; wait until it does."""
    file = home / "monitoring" / "prometheus.yml"
    configuration = yaml.safe_load(file.read_text())
    (job,) = configuration["scrape_configs"]
    job["static_configs"].append({"targets": [gateway], "labels": {"app": "gateway"}})
    configuration["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    file.write_text(yaml.safe_dump(configuration))
    os.kill(started["prometheus"]["pid"], signal.SIGHUP)
    deadline = time.monotonic() + WAIT_SECONDS
    probe = Recorded(started["prometheus"]["address"], 0.0, 0.0, home)
    while True:
        written = probe.get("status/config")["yaml"]
        ready = probe.get("query", query='count(charter_serving{app!=""} == 1)')["result"]
        if f"scrape_interval: {SCRAPE_SECONDS}s" in written and ready and ready[0]["value"][1] == str(len(DEFAULTS)):
            return
        assert time.monotonic() < deadline, written
        time.sleep(0.2)
