"""A real Prometheus scrapes the real services during a real run, and answers every query of every panel and rule.

`charter up --monitoring` starts all of it, with tiny models; `charter run` is the run (tests/deploy/recorded_run.py).
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.cli.services import DEFAULTS
from typer.testing import CliRunner

from deploy.monitoring import metrics_page
from deploy.monitoring.dashboards import BOARDS
from deploy.monitoring.dashboards.grafana import VARIABLES
from tests.deploy.recorded_run import WAIT_SECONDS, Recorded, filled, recorded_run, small_spec
from tests.deploy.test_monitoring import queries, selectors

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="Prometheus is not installed (Debian: prometheus)"
)

# Kinds of spans.
SERVER, CLIENT = 2, 3
# A healthy run has no failed calls.
# The policy's engine scores a few tokens when it starts, the fake judge none.
MAY_HAVE_DATA = {"serving: Failed calls", "judge: Tokens that texts share"}
# Queries without data in this run, though they are well.
NO_DATA = {
    # The run's algorithm is another, and its judge has no endpoint.
    "run: Online DPO: agreement",
    "run: Online DPO: margin",
    "judge: Requests to the endpoint",
    "judge: Circuit of the endpoint",
    "judge: Token budget of the endpoint",
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("monitoring")
    with recorded_run(folder, small_spec(folder, tiny_model, steps=8)) as found:
        yield found


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


@pytest.mark.parametrize("name", [*DEFAULTS, "worker", "gateway"])
def test_promtool_takes_each_page(recorded: Recorded, name: str) -> None:
    assert recorded.pages[name]
    result = subprocess.run(["promtool", "check", "metrics"], input=recorded.pages[name].encode(), capture_output=True)
    assert result.returncode == 0, (result.stdout + result.stderr).decode()


@pytest.mark.parametrize("name", [*DEFAULTS, "worker", "gateway"])
def test_every_exported_metric_is_in_the_docs(recorded: Recorded, name: str) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", metrics_page.FILE.read_text(), re.MULTILINE))
    exported = set(re.findall(r"^# TYPE (\w+)", recorded.pages[name], re.MULTILINE))
    assert {one for one in exported if not one.startswith(("process_", "python_"))} <= documented


@pytest.mark.parametrize("name", [*DEFAULTS, "worker", "gateway"])
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


@pytest.mark.parametrize("name", ["run", "model"])
def test_a_variable_has_the_values_of_the_run(recorded: Recorded, name: str) -> None:
    """Locally there is no namespace to choose from; tests/deploy/test_monitoring.py has the variables themselves."""
    _, query = VARIABLES[name]
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    matching = {"match[]": filled(found[1]), "start": str(recorded.begin), "end": str(recorded.end)}
    values = recorded.get(f"label/{found[2]}/values", **matching)
    assert len(values) == 1
    if name == "run":
        assert values == [recorded.run]


WITH_EXEMPLARS = [
    (f"{name}: {panel.title}", query.expr)
    for name, board in BOARDS.items()
    for _, panels in board.rows
    for panel in panels
    if panel.exemplars
    for query in panel.queries
]


@pytest.mark.parametrize(("where", "expr"), WITH_EXEMPLARS)
def test_exemplars_lead_to_traces(recorded: Recorded, where: str, expr: str) -> None:
    traces = recorded.exemplar_traces(expr)
    assert traces, f"{where}: Prometheus has kept no exemplar"
    # A process sends its spans every few seconds.
    deadline = time.monotonic() + WAIT_SECONDS
    while not traces <= {span.trace_id.hex() for _, span in recorded.collector.spans}:
        assert time.monotonic() < deadline, f"{where}: traces that nobody has sent"
        time.sleep(0.2)


def steps_of(recorded: Recorded) -> dict[str, dict[bytes, tuple[str, Any]]]:
    """Spans with their services by their ids, of each PPO step's trace, when all of them have arrived."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        roots = [span for _, span in recorded.collector.spans if span.name == "ppo.step"]
        traces: dict[str, dict[bytes, tuple[str, Any]]] = {
            root.trace_id.hex(): {
                span.span_id: (service, span)
                for service, span in recorded.collector.spans
                if span.trace_id == root.trace_id
            }
            for root in roots
        }
        missing = [
            span
            for found in traces.values()
            for _, span in found.values()
            if span.parent_span_id and span.parent_span_id not in found
        ]
        clients = sum(span.kind == CLIENT for found in traces.values() for _, span in found.values())
        servers = sum(span.kind == SERVER for found in traces.values() for _, span in found.values())
        if len(roots) == 8 and not missing and clients == servers:
            return traces
        assert time.monotonic() < deadline, (len(roots), clients, servers, missing)
        time.sleep(0.2)


def test_a_rollout_is_one_trace_from_prompt_to_reward(recorded: Recorded) -> None:
    """And on to the new weights, inside the worker's step: three services of their own processes."""
    for spans in steps_of(recorded).values():
        paths = set()
        for service, span in spans.values():
            if span.kind == SERVER:
                path = [service]
                while span.parent_span_id:
                    _, span = spans[span.parent_span_id]
                    path.append(span.name)
                paths.add(tuple(path))
        assert {
            ("charter-policy", "charter.v1.PolicyService/Generate", "sample", "ppo.step"),
            ("charter-preference", "charter.v1.PreferenceService/Score", "score", "ppo.step"),
            ("charter-policy", "charter.v1.WeightService/LoadWeights", "send weights", "ppo.step"),
        } <= paths


def test_log_lines_name_run_step_and_trace(recorded: Recorded) -> None:
    steps_of(recorded)
    # Of the stages before RL, too.
    traces = {span.trace_id.hex() for _, span in recorded.collector.spans if span.name.endswith(".step")}
    text = (recorded.home / "runs" / recorded.run / "worker.log").read_text()
    # Each attempt begins with a headline.
    lines = [json.loads(line) for line in text.splitlines() if not line.startswith("===")]
    assert {line["run"] for line in lines} == {recorded.run}
    inside = [line for line in lines if "step" in line]
    assert inside
    assert {line["trace_id"] for line in inside} <= traces
