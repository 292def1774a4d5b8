"""The `charter` command."""

import typer
from rich.markup import escape
from typer.core import TyperGroup

from charter.cli import (
    audit,
    constitution,
    demo,
    feedback,
    generate,
    judge,
    preference_curve,
    preferences,
    report,
    run,
    runs,
    serve,
    status,
    up,
)
from charter.cli.output import fail
from charter.cli.run import INTERRUPTED
from charter.judge.constitution import ConstitutionError
from charter.rpc.errors import ServiceError
from charter.spec.load import SpecError


class _Commands(TyperGroup):
    """Failures that a person can act on are printed without a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (ServiceError, SpecError, ConstitutionError) as error:
            fail(escape(str(error)))
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
app.command()(demo.demo)
app.command()(up.up)
app.command()(up.down)
app.command()(status.status)
app.command()(run.run)
app.add_typer(runs.app, name="runs")
app.command()(report.report)
app.command()(audit.audit)
app.command()(generate.generate)
app.command()(feedback.feedback)
app.add_typer(judge.app, name="judge")
app.add_typer(constitution.app, name="constitution")
preferences.app.command()(preference_curve.curve)
app.add_typer(preferences.app, name="preferences")
app.add_typer(serve.app, name="serve")


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
