"""The `charter` command."""

from typing import Annotated

import typer
from typer.core import TyperGroup

from charter.cli import database, generate, status
from charter.cli.judging import audit, constitution, judge
from charter.cli.local import demo, doctor, serve, up
from charter.cli.output import fail
from charter.cli.preferences import curve as preference_curve
from charter.cli.preferences import feedback, preferences
from charter.cli.runs import plan, report, run, runs, samples, top
from charter.cli.runs.run import INTERRUPTED
from charter.rpc.errors import ServiceError
from charter.spec.constitution import ConstitutionError
from charter.spec.load import SpecError

# Of the overlays in deploy/.
DEFAULT_NAMESPACE = "charter"


class _Commands(TyperGroup):
    """Failures that a person can act on are printed without a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (ServiceError, SpecError, ConstitutionError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align a language model to a written constitution.\n\n"
    "`charter up SPEC` starts the services, `charter run SPEC` aligns the model, "
    "`charter report RUN` shows the result.",
)


@app.callback()
def on_a_cluster(
    context: typer.Context,
    kube_context: Annotated[
        str, typer.Option("--context", help="Work on a cluster: a context of the kubeconfig.", show_default=False)
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Work on a cluster: the namespace of Charter there.")
    ] = "",
) -> None:
    """Open the way to a cluster before the command, where one is asked for."""
    # Commands that only speak of the cluster find it themselves; --help needs none.
    if not (kube_context or namespace) or context.resilient_parsing or context.invoked_subcommand == "doctor":
        context.obj = (kube_context, namespace or DEFAULT_NAMESPACE)
        return
    # Here, not at the top: every other command starts without the Kubernetes client.
    from charter.cli.cluster.access import Cluster, ClusterError, connected

    try:
        context.with_resource(connected(Cluster.open(kube_context, namespace or DEFAULT_NAMESPACE)))
    except ClusterError as error:
        fail(str(error))


app.command()(demo.demo)
app.command()(up.up)
app.command()(up.down)
app.command()(plan.plan)
app.command()(status.status)
app.command()(top.top)
app.command()(doctor.doctor)
app.command()(run.run)
app.add_typer(runs.app, name="runs")
app.command()(report.report)
app.command()(samples.samples)
app.command()(audit.audit)
app.command()(generate.generate)
app.command()(feedback.feedback)
app.add_typer(judge.app, name="judge")
app.add_typer(constitution.app, name="constitution")
preferences.app.command()(preference_curve.curve)
app.add_typer(preferences.app, name="preferences")
app.add_typer(serve.app, name="serve")
app.add_typer(database.app, name="database")


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
