"""What the dashboards are made of, and the expressions that they share."""

from dataclasses import dataclass

# Every panel shows the namespaces that are chosen; outside a cluster there are none, and ".*" matches that too.
NAMESPACE = 'namespace=~"$namespace"'
RUN = f'{NAMESPACE}, run=~"$run"'


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. ``description`` says what good looks like.

    ``unit`` is Grafana's name for it, or a word that Grafana puts behind the number; ``none`` is for pure numbers.
    ``kind`` is graph, stacked, timeline (a bar for as long as a series has values), xy (the first query across, the
    others up), or a number: stat (the last there was, so that a run that is over keeps it) or now (of this moment).
    ``limit``: an objective, or where an alert fires; a line in a graph, and a number is red from there on. A number is
    red below ``least``. ``exemplars`` shows single calls with links to their traces.
    """

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "graph"
    limit: float | None = None
    least: float | None = None
    exemplars: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard: its rows from top to bottom, each a title and panels."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    # Whether a study is chosen, too.
    of_study: bool = False


def here(metric: str, matchers: str = "") -> str:
    """Series of a metric in the chosen namespaces."""
    return f"{metric}{{{NAMESPACE}{', ' if matchers else ''}{matchers}}}"


def of_run(metric: str, matchers: str = "") -> str:
    """Series of a metric of the chosen runs."""
    return f"{metric}{{{RUN}{', ' if matchers else ''}{matchers}}}"


def per_second(counter: str, by: str, matchers: str = "") -> str:
    """Rate of a counter, summed over everything but ``by``."""
    return f"sum by ({by}) (rate({here(counter, matchers)}[$__rate_interval]))"


def in_use(counter: str, by: str) -> str:
    """Like ``per_second``, without the series that have never counted anything."""
    return f"{per_second(counter, by)} and sum by ({by}) ({here(counter)}) > 0"


def total_per_second(counter: str, matchers: str = "") -> str:
    """Rate of a counter, all series together."""
    return f"sum(rate({here(counter, matchers)}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str = "") -> str:
    """A quantile of a histogram over the last interval."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({here(f'{histogram}_bucket')}[$__rate_interval])))"


def mean(histogram: str) -> str:
    """Mean of what a histogram has seen in the last interval; empty while it has seen nothing."""
    return f"{total_per_second(f'{histogram}_sum')} / ({total_per_second(f'{histogram}_count')} > 0)"


def runs(*metrics: tuple[str, str]) -> tuple[Query, ...]:
    """Queries of gauges of the worker; the legend says which run."""
    return tuple(Query(of_run(metric), f"{label} {{{{run}}}}") for metric, label in metrics)


def scored(*metrics: tuple[str, str]) -> tuple[Query, ...]:
    """As ``runs``, of gauges on the scale of the preference model: each version of it has a series of its own."""
    return tuple(Query(of_run(metric), f"{label} {{{{run}}}} {{{{preference_version}}}}") for metric, label in metrics)


def halves(histogram: str, by: str = "") -> tuple[Query, ...]:
    """Median and 95th percentile of a histogram."""
    suffix = f" {{{{{by}}}}}" if by else ""
    return (
        Query(quantile(0.5, histogram, by), f"median{suffix}"),
        Query(quantile(0.95, histogram, by), f"95 %{suffix}"),
    )
