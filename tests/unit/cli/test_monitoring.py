"""`charter up --monitoring` starts Prometheus and Grafana, wired to the services; stand-ins take their places."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from charter.cli.local.monitoring import GRAFANA_PORT, PROMETHEUS_PORT, start_monitoring
from charter.cli.services import DEFAULTS, started
from rich.console import Console
from typer import Exit

from tests.support.ports import free_offset

# Answers every request at the address that it is given as the real program would be, and writes down its environment.
STAND_IN = f"""#!{sys.executable}
import http.server, json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
given = [one.partition("=")[2] for one in sys.argv if one.startswith("--web.listen-address=")]
address = given[0] if given else f"{{os.environ['GF_SERVER_HTTP_ADDR']}}:{{os.environ['GF_SERVER_HTTP_PORT']}}"
pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(dict(os.environ)))
host, _, port = address.rpartition(":")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the whole search path; what was started is stopped at the end."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    yield folder
    for one in started().values():
        one.process.stop(force=True)


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)


def test_grafana_finds_prometheus_and_the_dashboards(programs: Path) -> None:
    install(programs, "prometheus", "grafana")
    offset = free_offset([PROMETHEUS_PORT, GRAFANA_PORT])
    start_monitoring(offset, Console(quiet=True))
    environment = json.loads((programs / "grafana.json").read_text())
    provisioning = Path(environment["GF_PATHS_PROVISIONING"])
    (source,) = yaml.safe_load((provisioning / "datasources" / "charter.yaml").read_text())["datasources"]
    assert source["url"] == f"http://127.0.0.1:{PROMETHEUS_PORT + offset}"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "charter.yaml").read_text())["providers"]
    assert (Path(provider["options"]["path"]) / "run.json").is_file()
    written = yaml.safe_load((provisioning.parent / "prometheus.yml").read_text())
    scraped = {one["labels"]["app"]: one["targets"] for one in written["scrape_configs"][0]["static_configs"]}
    assert scraped.items() >= {name: [endpoint.metrics] for name, endpoint in DEFAULTS.items()}.items()
    assert all(Path(one).is_file() for one in written["rule_files"])

    known = started()
    start_monitoring(offset, Console(quiet=True))
    assert started() == known, "what runs already is left alone"


def test_grafana_may_be_missing_but_not_prometheus(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit):
        start_monitoring(0, Console(quiet=True))
    assert "apt-get install prometheus" in capsys.readouterr().err
    install(programs, "prometheus")
    start_monitoring(free_offset([PROMETHEUS_PORT]), Console())
    assert "charter top" in capsys.readouterr().out
    assert set(started()) == {"prometheus"}
