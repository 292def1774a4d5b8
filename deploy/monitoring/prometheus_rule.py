"""The rules as the object that the Prometheus operator reads."""

from pathlib import Path

import yaml

RULES = Path(__file__).parent / "rules"
FILE = Path(__file__).parents[1] / "components" / "monitoring" / "rules.yaml"


def text() -> str:
    """One PrometheusRule with the groups of every file in ``rules/``."""
    groups = [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((RULES / name).read_text())["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "charter", "labels": {"app.kubernetes.io/part-of": "charter"}},
        "spec": {"groups": groups},
    }
    head = "# Written by `make dashboards` from deploy/monitoring/rules.\n"
    return head + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)
