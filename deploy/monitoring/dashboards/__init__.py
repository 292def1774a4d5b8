"""The Grafana dashboards, one file each, and where their JSON lies."""

from pathlib import Path

from deploy.monitoring.dashboards import comparison, fleet, judge, run, serving

FOLDER = Path(__file__).parents[1] / "grafana"
BOARDS = {
    "run": run.BOARD,
    "serving": serving.BOARD,
    "judge": judge.BOARD,
    "fleet": fleet.BOARD,
    "comparison": comparison.BOARD,
}
