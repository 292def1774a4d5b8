"""Writes the Grafana dashboard "Charter: throughput and reward" as JSON: ``python deploy/monitoring/dashboards.py``."""

import json
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    VariableRefresh,
    VariableSort,
)

FILE = Path(__file__).parent / "grafana" / "charter.json"
DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# Grafana's grid has 24 columns.
COLUMNS = 24
STAT_SIZE = (4, 4)
GRAPH_SIZE = (8, 8)


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. ``description`` says what good looks like. ``kind`` is graph, stacked or stat."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "graph"


def of_run(metric: str) -> str:
    """A gauge of the worker with the name of its run, from its first PPO step on (before, it would be an unset 0)."""
    return (
        f"({metric} and on (job, instance) charter_worker_steps_total > 0)"
        ' * on (job, instance) group_left (name) charter_worker_run_info{name=~"$run"}'
    )


def per_second(counter: str, by: str) -> str:
    """Rate of a counter, summed over everything but ``by``."""
    return f"sum by ({by}) (rate({counter}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str) -> str:
    """A quantile of a histogram over the last interval."""
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({histogram}_bucket[$__rate_interval])))"


def runs(*metrics: tuple[str, str]) -> tuple[Query, ...]:
    """Queries of the worker's gauges; the legend says which run."""
    return tuple(Query(of_run(metric), f"{label} ({{{{name}}}})") for metric, label in metrics)


NOW = (
    Panel(
        "PPO step",
        "none",
        "Newest step of each run that goes on. It should count up; step times are below.",
        (Query("charter_run_step", "{{run}}"),),
        "stat",
    ),
    Panel(
        "Reward",
        "none",
        "Mean reward of the newest step.",
        runs(("charter_ppo_reward_mean", "reward")),
        "stat",
    ),
    Panel(
        "KL to the reference",
        "none",
        "Nats per answer (k1). Far above the target, the policy has left the language that it started from.",
        runs(("charter_ppo_kl_k1", "KL")),
        "stat",
    ),
    Panel(
        "Sampled tokens",
        "none",
        "Tokens per second, all policy replicas together.",
        (Query("sum(rate(charter_policy_generated_tokens_total[$__rate_interval]))", "tokens/s"),),
        "stat",
    ),
    Panel(
        "Services ready",
        "none",
        "1 for each service that answers calls.",
        (Query("sum by (service) (charter_serving)", "{{service}}"),),
        "stat",
    ),
    Panel(
        "Runs",
        "none",
        "Runs by state, as the trainer knows them.",
        (Query("sum by (state) (charter_runs) > 0", "{{state}}"),),
        "stat",
    ),
)

LEARNING = (
    Panel(
        "Reward and score",
        "none",
        "Both should rise. A score that rises while the reward does not is paid for with KL or missing ends.",
        runs(("charter_ppo_reward_mean", "reward"), ("charter_ppo_score_mean", "score")),
    ),
    Panel(
        "KL to the reference",
        "none",
        "Nats per answer. It should rise slowly and level off; k1 below zero for long means a wrong estimate.",
        runs(("charter_ppo_kl_k1", "k1"), ("charter_ppo_kl_k3", "k3")),
    ),
    Panel(
        "Answer length",
        "none",
        "Tokens of an answer. Length that rises with the reward hints at a preference model that pays for length.",
        runs(("charter_ppo_response_tokens_mean", "tokens")),
    ),
    Panel(
        "Clip fraction and answers with an end",
        "percentunit",
        "Clipping of a few per cent is usual; much more means steps that are too large. Ends should become more.",
        runs(
            ("charter_ppo_clip_fraction", "ratio clipped"),
            ("charter_ppo_value_clip_fraction", "value clipped"),
            ("charter_ppo_eos_share", "ended"),
        ),
    ),
    Panel(
        "Explained variance and entropy",
        "none",
        "Explained variance should rise towards 1. Entropy (nats) that falls to 0 means that the policy has collapsed.",
        runs(("charter_ppo_explained_variance", "explained variance"), ("charter_ppo_entropy", "entropy")),
    ),
    Panel(
        "Log-prob mismatch of sampler and trainer",
        "none",
        "Nats. It should stay near the rounding of the two; growth means that they do not hold the same weights.",
        runs(("charter_ppo_logprob_mismatch_mean", "mean"), ("charter_ppo_logprob_mismatch_max", "largest")),
    ),
)

LABELS = (
    Panel(
        "Judged pairs of the run",
        "none",
        "Pairs judged so far by outcome. INVALID and UNAVAILABLE never become labels; they should be few.",
        (Query("sum by (outcome) (charter_worker_pairs_total)", "{{outcome}}"),),
        "stacked",
    ),
    Panel(
        "Judge outcomes",
        "cps",
        "Pairs per second that the judge answered, whoever asked, by outcome.",
        (Query(per_second("charter_judge_judgements_total", "outcome"), "{{outcome}}"),),
    ),
    Panel(
        "Position bias",
        "percentunit",
        "Share of judgements in both orders in which the same position won twice. Near 100 % the judge reads nothing. "
        "Empty for a method that never shows both answers.",
        (
            Query(
                "sum(rate(charter_judge_position_biased_total[$__rate_interval]))"
                " / (sum(rate(charter_judge_ordered_total[$__rate_interval])) > 0)",
                "same position twice",
            ),
        ),
    ),
    Panel(
        "Entropy of the labels",
        "none",
        "Mean entropy of the soft labels in nats: 0 is certain, 0.693 is a coin. Near 0.693 the labels teach nothing.",
        (
            Query(
                "sum(rate(charter_judge_label_entropy_nats_sum[$__rate_interval]))"
                " / (sum(rate(charter_judge_label_entropy_nats_count[$__rate_interval])) > 0)",
                "entropy",
            ),
        ),
    ),
    Panel(
        "Comparisons stored",
        "cps",
        "New comparisons per second by who labelled them, and repeats that were ignored.",
        (
            Query(per_second("charter_comparisons_added_total", "source"), "{{source}}"),
            Query("sum(rate(charter_comparisons_duplicates_total[$__rate_interval]))", "repeated"),
        ),
    ),
    Panel(
        "Fit of the preference model",
        "percentunit",
        "Share of held-out comparisons on which the preference model agrees with the judge. 50 % is a coin.",
        (Query("charter_preference_fit_held_out_accuracy > 0", "agreement"),),
    ),
)

THROUGHPUT = (
    Panel(
        "Tokens",
        "none",
        "Per second: sampled by the policy, read as prompts, and scored by the preference model.",
        (
            Query(per_second("charter_policy_generated_tokens_total", "instance"), "sampled {{instance}}"),
            Query(per_second("charter_policy_prompt_tokens_total", "instance"), "prompts {{instance}}"),
            Query(per_second("charter_preference_tokens_total", "instance"), "scored {{instance}}"),
        ),
    ),
    Panel(
        "Samples and scores",
        "none",
        "Per second: answers sampled by how they ended, and answers scored.",
        (
            Query(per_second("charter_policy_samples_total", "finish"), "sampled, {{finish}}"),
            Query("sum(rate(charter_preference_scores_total[$__rate_interval]))", "scored"),
        ),
    ),
    Panel(
        "Time of a PPO step",
        "s",
        "Where the newest step's time went. Sampling is usually the largest part.",
        runs(
            ("charter_ppo_sampling_seconds", "sample"),
            ("charter_ppo_scoring_seconds", "score"),
            ("charter_ppo_update_seconds", "update"),
            ("charter_ppo_weight_sync_seconds", "send weights"),
        ),
        "stacked",
    ),
    Panel(
        "Waiting",
        "none",
        "Calls without a sample yet and answers without a score yet. It should return to 0 between steps.",
        (
            Query("sum by (instance) (charter_policy_waiting_requests)", "policy {{instance}}"),
            Query("sum by (instance) (charter_preference_waiting_answers)", "preference {{instance}}"),
        ),
    ),
    Panel(
        "Seconds to a sample",
        "s",
        "From the arrival of a request to each of its samples: median and 95th percentile.",
        (
            Query(quantile(0.5, "charter_policy_sample_seconds", "job"), "median"),
            Query(quantile(0.95, "charter_policy_sample_seconds", "job"), "95 %"),
        ),
    ),
    Panel(
        "Weight version",
        "none",
        "Version that each replica serves. All replicas of a service should be on one line, which steps up.",
        (Query("charter_weight_version", "{{service}} {{instance}}"),),
    ),
)

METHOD = "grpc_service, grpc_method"
METHOD_LEGEND = "{{grpc_service}}/{{grpc_method}}"

CALLS = (
    Panel(
        "Calls",
        "reqps",
        "gRPC calls per second by service and method.",
        (Query(per_second("grpc_server_handled_total", METHOD), METHOD_LEGEND),),
    ),
    Panel(
        "Failed calls",
        "reqps",
        "gRPC calls per second that did not end with OK. A cancelled run leaves some Cancelled; others should not be.",
        (
            Query(
                per_second('grpc_server_handled_total{grpc_code!="OK"}', f"{METHOD}, grpc_code"),
                METHOD_LEGEND + " {{grpc_code}}",
            ),
        ),
    ),
    Panel(
        "Latency, 95th percentile",
        "s",
        "From the start of a call to its end, streams included: a Generate lasts as long as its slowest sample.",
        (Query(quantile(0.95, "grpc_server_handling_seconds", METHOD), METHOD_LEGEND),),
    ),
)

ROWS = (("Now", NOW), ("Is it learning?", LEARNING), ("Labels", LABELS), ("Throughput", THROUGHPUT), ("Calls", CALLS))


def picture(panel: Panel) -> stat.Panel | timeseries.Panel:
    """The builder of one panel."""
    builder: stat.Panel | timeseries.Panel
    if panel.kind == "stat":
        builder = stat.Panel()
    else:
        legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        builder = timeseries.Panel().legend(legend.show_legend(True)).tooltip(tooltip)
        if panel.kind == "stacked":
            builder = builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    builder = builder.title(panel.title).description(panel.description).unit(panel.unit).datasource(DATA_SOURCE)
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).datasource(DATA_SOURCE)
        builder = builder.with_target(target.range().ref_id(chr(ord("A") + number)))
    return builder


def build() -> dashboard.Dashboard:
    """The whole dashboard, rows from top to bottom."""
    board = (
        dashboard.Dashboard("Charter: throughput and reward")
        .uid("charter")
        .tags(["charter"])
        .description("Written by deploy/monitoring/dashboards.py.")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(DATA_SOURCE)
            .query("label_values(charter_worker_run_info, name)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    top, identifier = 0, 1
    for title, panels in ROWS:
        board = board.with_row(dashboard.Row(title).id(identifier).grid_pos(GridPos(h=1, w=COLUMNS, x=0, y=top)))
        top, identifier = top + 1, identifier + 1
        width, height = STAT_SIZE if panels[0].kind == "stat" else GRAPH_SIZE
        per_line = COLUMNS // width
        for number, panel in enumerate(panels):
            x, y = number % per_line * width, top + number // per_line * height
            board = board.with_panel(picture(panel).id(identifier).grid_pos(GridPos(h=height, w=width, x=x, y=y)))
            identifier += 1
        top += -(-len(panels) // per_line) * height
    return board


def text() -> str:
    """The dashboard as the JSON that Grafana imports."""
    return json.dumps(build().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
