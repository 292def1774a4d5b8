"""From panels to the JSON that Grafana imports."""

import json
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries, xychart
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.xychart import SeriesMapping

from deploy.monitoring.dashboards.panels import RUN, Board, Panel

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# Grafana's grid has 24 columns.
COLUMNS = 24
STAT_SIZE = (4, 4)
GRAPH_SIZE = (8, 8)

# Variable -> label, and where its values come from.
VARIABLES = {
    "namespace": ("Namespace", "label_values(charter_serving, namespace)"),
    "model": ("Model", "label_values(charter_worker_run_info, model)"),
    "run": ("Run", 'label_values(charter_worker_run_info{namespace=~"$namespace", model=~"$model"}, run)'),
}
# Of a board of studies, whose runs are called STUDY-ARM-SEED: what may be the study, as an arm's name may have hyphens.
STUDY = ("Study", "label_values(charter_worker_run_info, name)", "/(.+)-[^-]+-[0-9]+/")
# Marks on every graph: what happened, and the metric whose value changes when it does.
ANNOTATIONS = {
    "New weights": "charter_ppo_weight_version",
    "Checkpoint": "charter_worker_checkpoint_timestamp_seconds",
    "New preference model": "charter_ppo_preference_version",
}
COLOURS = {"New weights": "blue", "Checkpoint": "green", "New preference model": "purple"}


@dataclass(frozen=True)
class _Built:
    """A model of the SDK for which it has no complete builder."""

    model: Any

    def build(self) -> Any:
        """The model."""
        return self.model


def text(board: Board) -> str:
    """A dashboard as JSON."""
    return json.dumps(_board(board).build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _board(board: Board) -> dashboard.Dashboard:
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(["charter"])
        .description(f"{board.description} Written by `make dashboards`.")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Charter")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["charter"])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")))
    )
    for name, (label, query) in VARIABLES.items():
        built = built.with_variable(_variable(_chosen(name, label, query)))
    if board.of_study:
        label, query, pattern = STUDY
        built = built.with_variable(_variable(_chosen("study", label, query).regex(pattern)))
    for name, metric in ANNOTATIONS.items():
        built = built.annotation(_Built(_annotation(name, metric)))
    top, identifier = 0, 1
    for title, panels in board.rows:
        built = built.with_row(dashboard.Row(title).id(identifier).grid_pos(GridPos(h=1, w=COLUMNS, x=0, y=top)))
        top, identifier = top + 1, identifier + 1
        width, height = STAT_SIZE if panels[0].kind in ("stat", "now") else GRAPH_SIZE
        per_line = COLUMNS // width
        for number, panel in enumerate(panels):
            x, y = number % per_line * width, top + number // per_line * height
            built = built.with_panel(_panel(panel).id(identifier).grid_pos(GridPos(h=height, w=width, x=x, y=y)))
            identifier += 1
        top += -(-len(panels) // per_line) * height
    return built


def _chosen(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A variable of which several values, or all, may be chosen."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATA_SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _variable(builder: dashboard.DatasourceVariable | dashboard.QueryVariable) -> _Built:
    """Without the fields of interval variables, which the SDK writes for every kind and Grafana's schema refuses."""
    variable = builder.build()
    variable.auto = variable.auto_min = variable.auto_count = None
    return _Built(variable)


def _annotation(name: str, metric: str) -> dict[str, Any]:
    """Marks where a metric changes, in the form of Grafana 12, for which the SDK's model has no fields."""
    # Grafana asks once every $__interval, so that each change is seen at exactly one of the moments.
    expr = f"{metric}{{{RUN}}} != {metric}{{{RUN}}} offset $__interval"
    return {
        "name": name,
        "datasource": DATA_SOURCE,
        "enable": True,
        "iconColor": COLOURS[name],
        "target": {"expr": expr, "refId": "Anno"},
        "titleFormat": f"{name} of {{{{run}}}}",
    }


def _panel(panel: Panel) -> Any:
    builder = {
        "stat": stat.Panel,
        "now": stat.Panel,
        "xy": _xy,
        "timeline": _timeline,
        "graph": _graph,
        "stacked": _graph,
    }[panel.kind]()
    if panel.kind == "stacked":
        builder = builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    # Always said, because Grafana turns numbers red from 80 on where nothing is.
    steps = [Threshold(value=None, color="red" if panel.least is not None else "text")]
    if panel.least is not None:
        steps.append(Threshold(value=panel.least, color="green"))
    if panel.limit is not None:
        steps.append(Threshold(value=panel.limit, color="red"))
    builder = builder.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.limit is not None and panel.kind in ("graph", "stacked"):
        dashed = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        builder = builder.thresholds_style(dashed)
    builder = builder.title(panel.title).description(panel.description).unit(panel.unit).datasource(DATA_SOURCE)
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).datasource(DATA_SOURCE)
        if panel.exemplars:
            target = target.exemplar(True)
        target = target.instant() if panel.kind == "now" else target.range()
        builder = builder.with_target(target.ref_id(chr(ord("A") + number)))
    return builder


def _graph() -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    return timeseries.Panel().legend(legend.show_legend(True)).tooltip(tooltip)


def _timeline() -> statetimeline.Panel:
    """A bar a series, as long as it has values."""
    legend = common.VizLegendOptions().show_legend(False).display_mode(LegendDisplayMode.LIST)
    return statetimeline.Panel().show_value(VisibilityMode.NEVER).legend(legend.placement(LegendPlacement.BOTTOM))


def _xy() -> xychart.Panel:
    """Values of the same moment side by side, without the moment: the first of them goes across."""
    return (
        xychart.Panel()
        .mapping(SeriesMapping.AUTO)
        .with_transformation(DataTransformerConfig(id_val="joinByField", options={"byField": "Time", "mode": "outer"}))
        .with_transformation(DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}}))
    )
