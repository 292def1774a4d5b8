"""Prometheus and Grafana beside the services of `charter up`, wired to them."""

import json
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from charter.cli.output import fail
from charter.cli.services import (
    DEFAULTS,
    HOST,
    Endpoint,
    Started,
    endpoint,
    home,
    launch,
    remember,
    started,
    worker_metrics_address,
)

PROMETHEUS_PORT = 9090
GRAFANA_PORT = 3000
READY_SECONDS = 60.0
# Scrape configuration, rules and dashboards of a checkout.
SOURCE = Path(__file__).resolve().parents[4] / "deploy" / "monitoring"
# Where the packages put what Grafana serves.
GRAFANA_HOME = Path("/usr/share/grafana")


def start_monitoring(port_offset: int, say: Console) -> None:
    """Start Prometheus, and Grafana if it is installed, unless they run already; they answer when this returns."""
    if not SOURCE.is_dir():
        fail(f"--monitoring needs a checkout of Charter: {SOURCE} is not there")
    if shutil.which("prometheus") is None:
        fail("Prometheus is not installed (Debian: apt-get install prometheus); the services run without it")
    folder = home() / "monitoring"
    prometheus = _start("prometheus", PROMETHEUS_PORT + port_offset, _prometheus(folder, port_offset), {}, "/-/ready")
    say.print(f"Prometheus is at http://{prometheus.endpoint.main}.")
    binary = shutil.which("grafana") or shutil.which("grafana-server")
    if binary is None:
        say.print("Grafana is not installed. `charter top` shows the same in this terminal.")
        return
    environment = _grafana(folder, GRAFANA_PORT + port_offset, prometheus.endpoint.main)
    command = [binary, "server"] if binary.endswith("grafana") else [binary]
    if GRAFANA_HOME.is_dir():
        command += ["--homepath", str(GRAFANA_HOME)]
    grafana = _start("grafana", GRAFANA_PORT + port_offset, command, environment, "/api/health")
    say.print(f"Grafana is at http://{grafana.endpoint.main}/dashboards.")


def _start(name: str, port: int, command: list[str], environment: dict[str, str], ready: str) -> Started:
    known = started()
    if name in known and known[name].process.alive():
        return known[name]
    address = f"{HOST}:{port}"
    one = launch(name, command, Endpoint(address, "", address), environment)
    remember({**known, name: one})
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(f"http://{address}{ready}"):
        if not one.process.alive() or time.monotonic() > deadline:
            one.process.stop()
            remember(known)
            fail(f"{name} does not answer at {address}; it has not started. {one.log}:\n{one.last_words()}")
        time.sleep(0.2)
    return one


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _prometheus(folder: Path, port_offset: int) -> list[str]:
    """Write Prometheus's configuration; returns its command."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(scrape_configuration(), sort_keys=False))
    return [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{PROMETHEUS_PORT + port_offset}",
        "--enable-feature=exemplar-storage",
    ]


def scrape_configuration() -> dict[str, Any]:
    """``deploy/monitoring/prometheus.yml`` with the services' real addresses, the worker's, and whole paths."""
    configuration: dict[str, Any] = yaml.safe_load((SOURCE / "prometheus.yml").read_text())
    configuration["rule_files"] = [str(SOURCE / name) for name in configuration["rule_files"]]
    addresses = {name: endpoint(name).metrics for name in DEFAULTS} | {"worker": worker_metrics_address()}
    (job,) = configuration["scrape_configs"]
    job["static_configs"] = [
        {"targets": [address], "labels": {"app": name}} for name, address in addresses.items() if address
    ]
    return configuration


def _grafana(folder: Path, port: int, prometheus: str) -> dict[str, str]:
    """Write what Grafana is provisioned with; returns its environment."""
    provisioning = folder / "grafana"
    source = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "url": f"http://{prometheus}",
        "isDefault": True,
        # A mark on a graph leads to its trace, once there is a data source of this uid.
        "jsonData": {"exemplarTraceIdDestinations": [{"name": "trace_id", "datasourceUid": "traces"}]},
    }
    provider = {"name": "charter", "type": "file", "options": {"path": str(SOURCE / "grafana")}}
    for name, content in (
        ("datasources", {"apiVersion": 1, "datasources": [source]}),
        ("dashboards", {"apiVersion": 1, "providers": [provider]}),
    ):
        (provisioning / name).mkdir(parents=True, exist_ok=True)
        # JSON is YAML.
        (provisioning / name / "charter.yaml").write_text(json.dumps(content, indent=2))
    return {
        "GF_SERVER_HTTP_ADDR": HOST,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_PROVISIONING": str(provisioning),
        "GF_PATHS_DATA": str(folder / "grafana-data"),
        "GF_PATHS_LOGS": str(folder / "grafana-data" / "logs"),
        # On loopback nobody needs to log in to look.
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
