"""A real Prometheus scrapes the real services during a real run, and answers every query of every panel and rule.

`charter up --monitoring` starts all of it, with tiny models; `charter run` is the run.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from charter.cli.main import app
from charter.cli.services import DEFAULTS
from typer.testing import CliRunner

from deploy.monitoring import metrics_page
from tests.deploy.manifests import ROOT
from tests.deploy.test_monitoring import queries, selectors
from tests.integration.worker_services import write_inputs

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="Prometheus is not installed (Debian: prometheus)"
)

CALL_SECONDS = 60.0
# Generous, because a test machine may be busy.
WAIT_SECONDS = 120.0
# What a query sees of the run: seconds between scrapes, and what Grafana would put for $__rate_interval.
SCRAPE_SECONDS = 1
INTERVAL = "15s"

# Whether a call is cancelled, because another replica was faster, depends on the machine.
# The policy's engine scores a few tokens when it starts, the fake judge none.
MAY_HAVE_DATA = {"serving: Failed calls", "judge: Tokens that texts share"}
# Queries without data in this run, though they are well.
NO_DATA = {
    # The run's algorithm is another, and its judge has no endpoint.
    "run: Online DPO",
    "judge: Requests to the endpoint",
    "judge: Circuit of the endpoint",
    "judge: Token budget of the endpoint",
}


@dataclass(frozen=True)
class Recorded:
    """A Prometheus that has seen a whole run, and the pages as they were during it."""

    address: str
    begin: float
    end: float
    pages: dict[str, str]

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
        for name, value in (
            ("$__rate_interval", INTERVAL),
            ("$__interval", INTERVAL),
            ("$namespace", ".*"),
            ("$run", ".*"),
            ("$model", ".*"),
        ):
            expr = expr.replace(name, value)
        found = self.get("query_range", query=expr, start=str(self.begin), end=str(self.end), step=str(SCRAPE_SECONDS))
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if abs(value) < float("inf")]

    def labels(self, name: str) -> set[str]:
        """Labels that a series has."""
        series = self.get("series", **{"match[]": name, "start": str(self.begin), "end": str(self.end)})
        return {label for one in series for label in one}


def page(address: str) -> str:
    """A metrics page; empty while nobody serves it."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=CALL_SECONDS) as response:
            text: str = response.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError):
        return ""


def free_offset() -> int:
    """A shift of the ports that leaves all of them free."""
    addresses = [address for one in DEFAULTS.values() for address in (one.main, one.control, one.metrics) if address]
    ports = [9090, 9095, *(int(address.rpartition(":")[2]) for address in addresses)]
    for candidate in range(2000, 10_000, 100):
        with socket.socket() as probe:
            try:
                for port in ports:
                    with socket.socket() as one:
                        one.bind(("127.0.0.1", port + candidate))
            except OSError:
                continue
            finally:
                probe.close()
            return candidate
    raise RuntimeError("no free ports")


def write_spec(folder: Path, model: Path) -> Path:
    """A small run whose answers vary in length and whose judge is asked in both orders."""
    write_inputs(folder)
    file = folder / "spec.yaml"
    file.write_text(
        f"name: tides\nseed: 5\npolicy: {{model: {model}, engine: transformers}}\n"
        f"judge: {{model: fake, engine: fake, constitution: {folder / 'constitution.yaml'}, method: choice}}\n"
        "prompts: {train: [train.jsonl], held_out: [held_out.jsonl]}\n"
        "sampling: {max_new_tokens: 96}\ncomparisons: {pairs: 16, held_out_fraction: 0.25}\n"
        "preference_model: {epochs: 2, batch_size: 4, learning_rate: 1e-3}\n"
        "ppo: {steps: 8, episodes_per_step: 12, learning_rate: 1e-3, critic_learning_rate: 1e-3, kl_target: 1}\n"
        "evaluation: {prompts: 2, bootstrap_samples: 100, every_steps: 2, watched_prompts: 3}\n"
    )
    return file


def charter(*arguments: str) -> Any:
    """Result of a command that must succeed, as JSON."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("monitoring")
    spec, offset = write_spec(folder, tiny_model), free_offset()
    worker = f"127.0.0.1:{9095 + offset}"
    with pytest.MonkeyPatch.context() as patch:
        for name in DEFAULTS:
            patch.delenv(f"CHARTER_{name.upper()}_ADDRESS", raising=False)
            patch.delenv(f"CHARTER_{name.upper()}_CONTROL_ADDRESS", raising=False)
        patch.setenv("CHARTER_HOME", str(folder / "home"))
        patch.setenv("CHARTER_WORKER_METRICS_PORT", str(9095 + offset))
        patch.setenv("PYTHONPATH", str(ROOT / "services"))
        try:
            begin = time.time()
            started = charter("up", str(spec), "--port-offset", str(offset), "--monitoring")
            scrape_often(folder / "home", started)
            pages = dict.fromkeys((*DEFAULTS, "worker"), "")
            run = charter("run", str(spec), "--detach")
            while charter("runs", "show", run["id"])["state"] in ("RUN_STATE_PENDING", "RUN_STATE_RUNNING"):
                for name in pages:
                    pages[name] = page(worker if name == "worker" else started[name]["metrics"]) or pages[name]
                time.sleep(SCRAPE_SECONDS)
            ended = charter("runs", "show", run["id"])
            assert ended["state"] == "RUN_STATE_SUCCEEDED", ended
            # The last numbers are scraped, and the rules have seen them.
            time.sleep(3 * SCRAPE_SECONDS)
            yield Recorded(started["prometheus"]["address"], begin, time.time(), pages)
        finally:
            stopped = charter("down")["stopped"]
        assert set(stopped) == {*DEFAULTS, "prometheus", *({"grafana"} & started.keys())}
        assert not page(started["prometheus"]["metrics"])


def scrape_often(home: Path, started: Any) -> None:
    """Have Prometheus scrape every second, so that a short run has enough points, and wait until it does."""
    file = home / "monitoring" / "prometheus.yml"
    configuration = yaml.safe_load(file.read_text())
    configuration["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    file.write_text(yaml.safe_dump(configuration))
    os.kill(started["prometheus"]["pid"], signal.SIGHUP)
    address = started["prometheus"]["address"]
    deadline = time.monotonic() + WAIT_SECONDS
    probe = Recorded(address, 0.0, 0.0, {})
    while True:
        written = probe.get("status/config")["yaml"]
        ready = probe.get("query", query='count(charter_serving{app!=""} == 1)')["result"]
        if f"scrape_interval: {SCRAPE_SECONDS}s" in written and ready and ready[0]["value"][1] == str(len(DEFAULTS)):
            return
        assert time.monotonic() < deadline, written
        time.sleep(0.2)


@pytest.mark.parametrize(("where", "expr"), queries())
def test_query_is_accepted_and_returns_data(recorded: Recorded, where: str, expr: str) -> None:
    values = recorded.values(expr)
    # An alert that does not fire has no data.
    if where.startswith("rule Charter") or where in NO_DATA | MAY_HAVE_DATA:
        return
    assert values, f"{where} showed nothing in a whole run: {expr}"


def test_no_query_is_excused_without_need(recorded: Recorded) -> None:
    assert not [where for where, expr in queries() if where in NO_DATA and recorded.values(expr)]


@pytest.mark.parametrize(
    "name", sorted({name for where, expr in queries() for name, _ in selectors(expr) if where not in NO_DATA})
)
def test_every_name_and_label_is_in_a_scrape(recorded: Recorded, name: str) -> None:
    labels = recorded.labels(name)
    assert labels, f"{name} was never scraped"
    # A cluster's scrape adds the namespace.
    wanted = {
        label for _, expr in queries() for found, matched in selectors(expr) if found == name for label in matched
    }
    assert wanted - {"namespace"} <= labels


def test_no_alert_fires_in_a_healthy_run(recorded: Recorded) -> None:
    """Six of ten judgements of the fake judge are biased, which is true; nothing else is wrong."""
    firing = recorded.get("query", query='count by (alertname) (ALERTS{alertstate="firing"})')["result"]
    assert {one["metric"]["alertname"] for one in firing} <= {"CharterJudgeBiased", "CharterLabelsUndecided"}


@pytest.mark.parametrize("name", [*DEFAULTS, "worker"])
def test_promtool_takes_each_page(recorded: Recorded, name: str) -> None:
    assert recorded.pages[name]
    result = subprocess.run(["promtool", "check", "metrics"], input=recorded.pages[name].encode(), capture_output=True)
    assert result.returncode == 0, (result.stdout + result.stderr).decode()


@pytest.mark.parametrize("name", [*DEFAULTS, "worker"])
def test_every_exported_metric_is_in_the_docs(recorded: Recorded, name: str) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", metrics_page.FILE.read_text(), re.MULTILINE))
    exported = set(re.findall(r"^# TYPE (\w+)", recorded.pages[name], re.MULTILINE))
    assert {one for one in exported if not one.startswith(("process_", "python_"))} <= documented


@pytest.mark.parametrize("name", [*DEFAULTS, "worker"])
def test_labels_take_few_values(recorded: Recorded, name: str) -> None:
    """A page that grows with what it serves would grow for ever. The largest family is one line a method and code."""
    series: dict[str, int] = {}
    for line in recorded.pages[name].splitlines():
        if not line.startswith("#") and 'le="' not in line:
            family = re.split(r"[{ ]", line, maxsplit=1)[0]
            series[family] = series.get(family, 0) + 1
    assert series
    assert {family: count for family, count in series.items() if count > 40} == {}


def test_top_reads_the_same_pages(recorded: Recorded) -> None:
    result = CliRunner().invoke(app, ["top", "--json", "--interval", "0.2"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert all(one["serving"] for one in shown["services"].values())
    assert shown["services"]["policy"]["weight_version"] > 1
    assert shown["services"]["policy"]["waiting"] == 0
    # The run is over, and its worker with it.
    assert shown["run"] is None
    assert shown["per_second"]["sampled_tokens"] == 0
    assert shown["per_second"]["episodes"] is None
    assert "serving" in CliRunner().invoke(app, ["top", "--once", "--interval", "0.2"]).stdout
