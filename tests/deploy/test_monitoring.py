"""The dashboard, the metrics page and the scrape configurations are fresh and name what the code exports."""

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
from prometheus_client import REGISTRY, Histogram
from prometheus_client.metrics import MetricWrapperBase

from deploy.monitoring import dashboards, metrics_page
from tests.deploy.manifests import ROOT, containers, render

MONITORING = ROOT / "deploy" / "monitoring"
# Labels that the scrape adds, and that of a histogram's buckets.
OTHER_LABELS = {"job", "instance", "app", "namespace", "pod", "le"}


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
    """Panel title and expression of every query of the committed dashboard."""
    panels = json.loads(dashboards.FILE.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def selectors(expr: str) -> list[tuple[str, set[str]]]:
    """Metric names of an expression with the labels that their selectors match on."""
    found = re.findall(r"\b((?:charter|grpc_server)_[a-z0-9_]+)(?:\{([^}]*)\})?", expr)
    return [(name, set(re.findall(r"([a-z_]+)\s*(?:=|!)", matchers))) for name, matchers in found]


def test_dashboard_is_fresh() -> None:
    assert dashboards.FILE.read_text() == dashboards.text(), "run `make dashboards`"


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
        assert re.fullmatch(r"(charter|grpc_server)_[a-z0-9_]+", name), name


@pytest.mark.parametrize(("title", "expr"), queries())
def test_queries_use_metrics_and_labels_that_exist(title: str, expr: str) -> None:
    names = exported()
    found = selectors(expr)
    assert found, f"{title}: no metric in {expr}"
    used: set[str] = set()
    for name, matched in found:
        if name in {label for labels in names.values() for label in labels}:
            continue
        assert name in names, f"{title}: nothing exports {name}"
        assert matched <= names[name] | OTHER_LABELS, f"{title}: {name} has no label {matched - names[name]}"
        used |= names[name] | OTHER_LABELS
    for group in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expr):
        labels = {label.strip() for label in group.split(",")}
        assert labels <= used, f"{title}: no metric of the query has {labels - used}"


def panels() -> list[dict[str, Any]]:
    """Panels of the committed dashboard without its rows."""
    return [panel for panel in json.loads(dashboards.FILE.read_text())["panels"] if panel["type"] != "row"]


def test_panels_are_complete() -> None:
    for panel in panels():
        assert panel["targets"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
    identifiers = [panel["id"] for panel in json.loads(dashboards.FILE.read_text())["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboards.FILE.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < dashboards.COLUMNS for x, _ in cells), panel["title"]
        taken |= cells


def scrape_configuration(name: str) -> dict[str, Any]:
    """The only scrape job of a configuration."""
    (job,) = yaml.safe_load((MONITORING / name).read_text())["scrape_configs"]
    assert job["job_name"] == "charter"
    found: dict[str, Any] = job
    return found


def test_local_scrape_covers_what_charter_up_starts() -> None:
    from charter.worker.metrics import _DEFAULT_PORT

    targets = {
        entry["labels"]["app"]: entry["targets"] for entry in scrape_configuration("prometheus.yml")["static_configs"]
    }
    expected = {name: [endpoint.metrics] for name, endpoint in DEFAULTS.items()}
    assert targets == {**expected, "worker": [f"127.0.0.1:{_DEFAULT_PORT}"]}


def test_cluster_scrape_keeps_exactly_the_metrics_ports() -> None:
    job = scrape_configuration("prometheus-kubernetes.yml")
    (keep,) = [rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep"]
    names = {port["name"] for _, _, one in containers(render(ROOT / "deploy/overlays/local")) for port in one["ports"]}
    assert {name for name in names if re.fullmatch(keep, name)} == {"metrics", "worker-metrics"}
    (selector,) = job["kubernetes_sd_configs"][0]["selectors"]
    label, _, value = selector["label"].partition("=")
    for one in render(ROOT / "deploy/overlays/local"):
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert one["spec"]["template"]["metadata"]["labels"][label] == value


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_promtool_takes_the_configuration(name: str, tmp_path: Path) -> None:
    configuration = yaml.safe_load((MONITORING / name).read_text())
    for job in configuration["scrape_configs"]:
        # Debian builds Prometheus without Kubernetes discovery; everything else of the job is checked.
        job.pop("kubernetes_sd_configs", None)
    file = tmp_path / name
    file.write_text(yaml.safe_dump(configuration))
    result = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
