"""Writes what is generated from the code: dashboards, the PrometheusRule, docs/metrics.md. ``make dashboards``."""

from deploy.monitoring import metrics_page, prometheus_rule
from deploy.monitoring.dashboards import BOARDS, FOLDER
from deploy.monitoring.dashboards.grafana import text

for name, board in BOARDS.items():
    (FOLDER / f"{name}.json").write_text(text(board))
prometheus_rule.FILE.write_text(prometheus_rule.text())
metrics_page.FILE.write_text(metrics_page.text())
