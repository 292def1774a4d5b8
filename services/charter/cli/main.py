"""The `charter` command."""

import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from charter.cli.commands import COMMANDS
from charter.cli.lazy import tree
from charter.cli.output import INTERRUPTED, fail, words_of

# Of the overlays in deploy/.
DEFAULT_NAMESPACE = "charter"
# Commands that find the cluster themselves, or need none.
FIND_IT_THEMSELVES = ("check", "doctor", "init")


class _Commands(TyperGroup):
    """Failures that a person can act on are printed without a traceback."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands.update(tree(COMMANDS))

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if words := words_of(error):
                fail(words)
            raise


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
    asked = bool(kube_context or namespace)
    context.obj = (kube_context, namespace or DEFAULT_NAMESPACE)
    # --help needs no cluster.
    if not asked or context.resilient_parsing or context.invoked_subcommand in FIND_IT_THEMSELVES:
        return
    # Here, not at the top: every other command starts without the Kubernetes client.
    from charter.cli.cluster.access import Cluster, ClusterError, connected

    try:
        context.with_resource(connected(Cluster.open(*context.obj)))
    except ClusterError as error:
        fail(error)


def main() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A character that the terminal's encoding lacks is written as its escape.
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
