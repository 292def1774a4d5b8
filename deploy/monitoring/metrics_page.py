"""docs/metrics.md, from the metrics that the code registers."""

from importlib import import_module
from pathlib import Path

from prometheus_client import REGISTRY, Histogram
from prometheus_client.metrics import MetricWrapperBase

FILE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

# Where metrics are defined, and who exports them. tests/deploy holds this list complete.
MODULES = {
    "charter.rpc.metrics": "every service",
    "charter.weights.memory": "policy, judge and preference",
    "charter.weights.receiver": "policy and preference",
    "charter.policy.metrics": "policy",
    "charter.gateway.metrics": "gateway",
    "charter.judge.metrics": "judge",
    "charter.inference.scoring_metrics": "policy and judge, with engine transformers",
    "charter.inference.endpoint.metrics": "judge, with engine openai",
    "charter.preference.metrics": "preference",
    "charter.trainer.metrics": "trainer",
    "charter.worker.metrics": "worker",
}

HEAD = """\
# Metrics

Written by `make dashboards`. Each service serves its metrics at
`/metrics` on its own port: 9091 to 9094 under `charter up`, 9095 for the worker of a run, 9090 in containers. Beside
them are the usual `process_*` and `python_*` of prometheus_client. A histogram has the series `_bucket`, `_sum` and
`_count`.
"""


def exported_by() -> dict[str, list[MetricWrapperBase]]:
    """Metrics in the order of their definition, by the module that registers them."""
    found: dict[str, list[MetricWrapperBase]] = {}
    seen: set[int] = set()
    for name in MODULES:
        import_module(name)
        fresh = [one for one in _registered() if id(one) not in seen]
        seen.update(map(id, fresh))
        found[name] = fresh
    return found


def _registered() -> list[MetricWrapperBase]:
    # The registry has no public list of its collectors.
    return [one for one in REGISTRY._collector_to_names if isinstance(one, MetricWrapperBase)]


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for module, metrics in exported_by().items():
        parts.append(
            f"\n## {MODULES[module].capitalize()}\n\n| name | type | labels | what it is |\n| --- | --- | --- | --- |\n"
        )
        parts.extend(_line(one) for one in metrics)
    return "".join(parts)


def _line(metric: MetricWrapperBase) -> str:
    (family,) = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    help_text = family.documentation
    if isinstance(metric, Histogram):
        edges = ", ".join(f"{edge:g}" for edge in metric._upper_bounds[:-1])
        help_text += f" Edges: {edges}."
    return f"| `{name}` | {family.type} | {labels} | {help_text} |\n"
