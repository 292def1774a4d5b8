"""Dashboards, rules, metrics page and scrape configurations are fresh, use all metrics, and only those that exist."""

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from charter.cli.services import DEFAULTS
from charter.environment import WORKER_METRICS_PORT
from PIL import Image
from prometheus_client import REGISTRY, Histogram
from prometheus_client.metrics import MetricWrapperBase

from deploy.monitoring import metrics_page, pictures
from deploy.monitoring.dashboards import BOARDS, FOLDER
from deploy.monitoring.dashboards.grafana import COLUMNS, text
from tests.deploy.manifests import ROOT, containers, render

MONITORING = ROOT / "deploy" / "monitoring"
# Labels that the scrape adds, and that of a histogram's buckets.
SCRAPED_LABELS = {"job", "instance", "app", "namespace", "pod", "le"}


def exported() -> dict[str, set[str]]:
    """Every series name that the code can export, with its labels."""
    for module in metrics_page.MODULES:
        import_module(module)
    names: dict[str, set[str]] = {}
    for metric in REGISTRY._collector_to_names:
        if not isinstance(metric, MetricWrapperBase):
            continue
        (family,) = metric.describe()
        if isinstance(metric, Histogram):
            series = [f"{family.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        else:
            series = [f"{family.name}_total" if family.type == "counter" else family.name]
        names |= {name: set(metric._labelnames) for name in series}
    return names


def queries() -> list[tuple[str, str]]:
    """Where it is used, and expression: every query of every dashboard's panels, annotations, and rules."""
    found = [(f"{name}: {panel['title']}", target["expr"]) for name, panel in panels() for target in panel["targets"]]
    for name in BOARDS:
        found += [(f"{name}: {one['name']}", one["target"]["expr"]) for one in committed(name)["annotations"]["list"]]
    return found + [(f"rule {rule.get('record') or rule['alert']}", rule["expr"]) for rule in rules()]


def rules() -> list[dict[str, Any]]:
    """Every recording and alerting rule."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((MONITORING / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def committed(name: str) -> dict[str, Any]:
    """The committed JSON of a dashboard."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Dashboard and panel, without the rows."""
    return [(name, panel) for name in BOARDS for panel in committed(name)["panels"] if panel["type"] != "row"]


def selectors(expr: str) -> list[tuple[str, set[str]]]:
    """Metric names of an expression with the labels that their selectors match on."""
    found = re.findall(r"\b((?:charter[_:]|grpc_(?:server|client)_)[a-z0-9_:]+)(?:\{([^}]*)\})?", expr)
    return [(name, set(re.findall(r"([a-z_]+)\s*(?:=|!)", matchers))) for name, matchers in found]


@pytest.mark.parametrize("name", BOARDS)
def test_dashboard_is_fresh(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == text(BOARDS[name]), "run `make dashboards`"


def test_no_other_dashboard_lies_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(BOARDS)


def test_metrics_page_is_fresh() -> None:
    # In a fresh process, because the page tells modules apart by when they register their metrics.
    code = "from deploy.monitoring import metrics_page; print(metrics_page.text(), end='')"
    environment = {"PYTHONPATH": f"{ROOT / 'services'}:{ROOT}"}
    page = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert page.returncode == 0, page.stderr
    assert metrics_page.FILE.read_text() == page.stdout, "run `make dashboards`"


def test_every_module_with_metrics_is_on_the_page() -> None:
    services = ROOT / "services"
    defining = {
        ".".join(path.relative_to(services).with_suffix("").parts)
        for path in services.rglob("*.py")
        if re.search(r"^from prometheus_client import .*(Counter|Gauge|Histogram)", path.read_text(), re.MULTILINE)
    }
    assert defining == set(metrics_page.MODULES)


def test_names_follow_the_rules() -> None:
    for name in exported():
        assert re.fullmatch(r"(charter|grpc_server|grpc_client)_[a-z0-9_]+", name), name


def recorded() -> set[str]:
    """Names of the recording rules."""
    return {rule["record"] for rule in rules() if "record" in rule}


@pytest.mark.parametrize(("where", "expr"), queries())
def test_queries_use_metrics_and_labels_that_exist(where: str, expr: str) -> None:
    names = exported()
    for name, matched in selectors(expr):
        if name in recorded():
            continue
        assert name in names, f"{where}: nothing exports {name}"
        assert matched <= names[name] | SCRAPED_LABELS, f"{where}: {name} has no label {matched - names[name]}"


def test_every_metric_is_used() -> None:
    used = {name for _, expr in queries() for name, _ in selectors(expr)}
    # A histogram is used when one of its series is.
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    unused = {
        name for name in exported() if name not in used and re.sub(r"_(bucket|sum|count)$", "", name) not in families
    }
    assert not unused, "exported, but in no panel and no rule"
    assert recorded() <= used


def test_every_objective_is_an_edge_of_its_histogram() -> None:
    """Else the share within the objective could only be guessed."""
    edges = {
        f"{family.name}_bucket": metric._upper_bounds
        for metric in REGISTRY._collector_to_names
        if isinstance(metric, Histogram)
        for family in metric.describe()
    }
    checked = 0
    for board in BOARDS.values():
        for panel in (panel for _, found in board.rows for panel in found if panel.unit == "s" and panel.limit):
            names = {name for query in panel.queries for name, _ in selectors(query.expr)}
            for name in (name for name in names if name.endswith("_bucket")):
                assert panel.limit in edges[name], f"{panel.title}: {panel.limit} is no edge of {name}"
                checked += 1
    assert checked


def test_panels_are_complete() -> None:
    for name, panel in panels():
        where = f"{name}: {panel['title']}"
        assert panel["targets"], where
        assert panel["description"].endswith("."), where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        assert panel["datasource"]["uid"] == "${datasource}", where
    for name in BOARDS:
        identifiers = [panel["id"] for panel in committed(name)["panels"]]
        assert len(set(identifiers)) == len(identifiers)


def test_numbers_have_colours_of_their_own() -> None:
    """Where a panel names none, Grafana turns it red from 80 on, be it 80 steps or 80 answers."""
    alarming = {}
    for name, panel in panels():
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None, panel["title"]
        if panel["type"] == "stat":
            alarming[f"{name}: {panel['title']}"] = [one["value"] for one in steps[1:]]
    assert {title: values for title, values in alarming.items() if values} == {
        "run: Win rate": [0.5],
        "run: Checkpoint age": [3600],
        "fleet: Ready": [1],
        "fleet: Worker last heard": [1800],
    }


def test_numbers_of_the_moment() -> None:
    """A state that no run is in any more, or a pod that is gone, has no number; a run that is over keeps its last.

    Not how much of its phase was done: the worker ends before the end is scraped, and a finished run would show half.
    """
    for name, panel in panels():
        if panel["type"] == "stat":
            of_now = name == "fleet" or panel["title"] in ("Phase done", "Checkpoint age")
            assert {target["instant"] for target in panel["targets"]} == {of_now}, panel["title"]


def test_a_pure_number_has_no_unit_and_nothing_else() -> None:
    """What is counted or measured says in what: by its name, or in its help where that speaks of nats."""
    helps = {
        family.name: family.documentation
        for metric in REGISTRY._collector_to_names
        if isinstance(metric, MetricWrapperBase)
        for family in metric.describe()
    }
    measured = re.compile(r"_(total|seconds|bytes|tokens|nats|answers|items|versions)(_|$)")
    for board in BOARDS.values():
        # Two quantities: the one across has its unit in its name.
        for panel in (panel for _, found in board.rows for panel in found if panel.kind != "xy"):
            for name in (name for query in panel.queries for name, _ in selectors(query.expr)):
                help_text = helps.get(re.sub(r"_(bucket|sum|count|total)$", "", name), "")
                if re.search(r"\bnats\b", help_text):
                    assert panel.unit == "nats", f"{panel.title}: {name} is in nats"
                elif measured.search(name):
                    assert panel.unit != "none", f"{panel.title}: {name} is no pure number"


@pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed (Debian: prometheus)")
@pytest.mark.parametrize("name", BOARDS)
def test_picture_shows_the_panels_that_there_are(name: str) -> None:
    with Image.open(pictures.FOLDER / f"{name}.png") as picture:
        assert picture.info["Description"] == pictures.contents(BOARDS[name]), "run `make pictures`"


@pytest.mark.parametrize("name", BOARDS)
def test_dashboard_has_variables_links_and_marks(name: str) -> None:
    board = committed(name)
    study = ["study"] if BOARDS[name].of_study else []
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "namespace", "model", "run", *study]
    assert {one["name"] for one in board["annotations"]["list"]} == {
        "New weights",
        "Checkpoint",
        "New preference model",
    }
    assert all("$run" in one["target"]["expr"] and one["enable"] for one in board["annotations"]["list"])
    (link,) = board["links"]
    assert link["includeVars"]
    assert link["keepTime"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in committed(name)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < COLUMNS for x, _ in cells), panel["title"]
        taken |= cells


LOCAL = MONITORING / "prometheus.yml"
CLUSTER = ROOT / "deploy" / "components" / "monitoring-standalone" / "scrape.yml"


def scrape_configuration(file: Path) -> dict[str, Any]:
    """The only scrape job of a configuration."""
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    assert job["job_name"] == "charter"
    found: dict[str, Any] = job
    return found


def test_local_scrape_covers_what_charter_up_starts() -> None:
    targets = {entry["labels"]["app"]: entry["targets"] for entry in scrape_configuration(LOCAL)["static_configs"]}
    expected = {name: [endpoint.metrics] for name, endpoint in DEFAULTS.items()}
    assert targets == {**expected, "worker": [f"127.0.0.1:{WORKER_METRICS_PORT}"]}


def test_cluster_scrape_keeps_exactly_the_metrics_ports() -> None:
    job = scrape_configuration(CLUSTER)
    (keep,) = [rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep"]
    names = {port["name"] for _, _, one in containers(render(ROOT / "deploy/overlays/local")) for port in one["ports"]}
    assert {name for name in names if re.fullmatch(keep, name)} == {"metrics", "worker-metrics"}
    (selector,) = job["kubernetes_sd_configs"][0]["selectors"]
    label, _, value = selector["label"].partition("=")
    for one in render(ROOT / "deploy/overlays/local"):
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert one["spec"]["template"]["metadata"]["labels"][label] == value


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("source", [LOCAL, CLUSTER], ids=lambda path: path.parent.name)
def test_promtool_takes_the_configuration(source: Path, tmp_path: Path) -> None:
    configuration = yaml.safe_load(source.read_text())
    for job in configuration["scrape_configs"]:
        # Debian builds Prometheus without Kubernetes discovery; everything else of the job is checked.
        job.pop("kubernetes_sd_configs", None)
    # In a container the rules lie where their ConfigMap is mounted.
    configuration["rule_files"] = [str(MONITORING / "rules" / Path(one).name) for one in configuration["rule_files"]]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    result = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
