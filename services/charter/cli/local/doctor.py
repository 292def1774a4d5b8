"""`charter doctor`: is the cluster ready for Charter? Each failure with what to do about it."""

from typing import Annotated

import typer
from rich.markup import escape

from charter.cli.output import JsonOption, console, emit_json, fail

COMPONENTS = ("artifacts-s3", "autoscaling", "monitoring", "mtls", "postgres")

ComponentOption = Annotated[
    list[str] | None,
    typer.Option("--component", help=f"A component that will be used; repeatable: {', '.join(COMPONENTS)}."),
]
MARKS = {"ok": "[green]ok  [/]", "warning": "[yellow]warn[/]", "failed": "[red]FAIL[/]"}


def doctor(context: typer.Context, component: ComponentOption = None, as_json: JsonOption = False) -> None:
    """Check a cluster, and say what to do about each failure.

    Before and after Charter is applied: `charter --context CTX -n NAMESPACE doctor`. Without --context it is the
    kubeconfig's current one. Exit code 1 when anything failed.
    """
    # Here, not at the top: every other command starts without the Kubernetes client.
    from charter.cli.cluster.access import Cluster, ClusterError
    from charter.cli.cluster.checks import examine

    if unknown := set(component or ()) - set(COMPONENTS):
        fail(f"--component is one of {', '.join(COMPONENTS)}; got {', '.join(sorted(unknown))}")
    try:
        findings = examine(Cluster.open(*context.obj), component or ())
    except ClusterError as error:
        fail(error)
    if as_json:
        emit_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            console.print(f"{MARKS[finding.result]}  {escape(finding.check)}: {escape(finding.found)}", soft_wrap=True)
            if finding.advice:
                console.print(f"      {escape(finding.advice)}", soft_wrap=True)
    if any(finding.result == "failed" for finding in findings):
        raise typer.Exit(1)
