"""`charter evaluate`: compare any number of models on held-out prompts, by judges that did not train them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from charter.cli.output import INTERRUPTED, JsonOption, console, emit_json, errors, fail
from charter.cli.services import home

if TYPE_CHECKING:
    from charter.evaluation.compare.folder import EvaluationFolder
    from charter.evaluation.compare.spec import EvaluateSpec

SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="Evaluation spec, a YAML file. docs/evaluation.md describes it.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Only find every mistake in the spec, offline.")]
FiguresOption = Annotated[
    bool, typer.Option("--figures", help="Only compute the figures again, from what is stored; SPEC may be its folder.")
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="Where answers and figures are kept. Default: evaluations/NAME in CHARTER_HOME."),
]


def evaluate(
    spec: SpecArgument,
    check: CheckOption = False,
    figures: FiguresOption = False,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare models on held-out prompts as a spec says, and show the figures.

    Each model answers, then each judge compares; what a model or judge needs is started and stopped. All is stored item
    by item: the same command goes on where one that was interrupted stopped.
    """
    # Here, not at the top: who asks for help waits for none of it.
    from charter.evaluation.compare.folder import EvaluationBusyError, EvaluationFolder
    from charter.evaluation.compare.spec import load_evaluation

    say = errors if as_json else console
    if figures and spec.is_dir():
        _show(EvaluationFolder(spec), say, as_json)
        return
    checked = load_evaluation(spec, home() / "runs")
    place = EvaluationFolder(folder or home() / "evaluations" / checked.spec.name)
    if check:
        say.print(f"{escape(str(spec))} is valid.", soft_wrap=True)
        for one in checked.unread:
            say.print(f"Not looked into: {escape(str(one))}", soft_wrap=True)
        if as_json:
            emit_json({"valid": True})
        return
    try:
        with place.alone():
            if not figures:
                _ask(checked.spec, place, say)
            _show(place, say, as_json, checked.spec)
    except EvaluationBusyError as error:
        fail(error)
    except KeyboardInterrupt:
        say.print(
            f"Stopped. Everything that came is in {escape(str(place.path))}; `charter evaluate {escape(str(spec))}` "
            "goes on.",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def _ask(spec: "EvaluateSpec", folder: "EvaluationFolder", say: Console) -> None:
    from charter.cli.evaluation.progress import EvaluationProgress
    from charter.cli.evaluation.serving import LocalServers
    from charter.data.errors import DataError
    from charter.evaluation.compare.prompts import choose_prompts
    from charter.worker.errors import RunError
    from charter.worker.evaluation.evaluate import evaluate as ask

    try:
        prompts = choose_prompts(spec)
        say.print(f"{len(prompts)} prompts, answers in {escape(str(folder.path))}", soft_wrap=True)
        servers = LocalServers(spec.name, folder.path, say)
        servers.stop_left_over()
        with EvaluationProgress(say) as progress:
            ask(spec, prompts, folder, servers, progress.show)
    except (DataError, RunError) as error:
        fail(error)


def _show(folder: "EvaluationFolder", say: Console, as_json: bool, spec: "EvaluateSpec | None" = None) -> None:
    """Compute the figures, write them, and show them."""
    from charter.cli.evaluation.tables import print_results
    from charter.evaluation.compare.results import compute, write_results
    from charter.evaluation.compare.spec import changes
    from charter.evaluation.report.evaluation_page import write_page

    stored = folder.read_spec()
    if stored is None:
        fail(f"nothing is stored in {folder.path}: `charter evaluate SPEC` asks the models first")
    if spec is not None and (changed := changes(stored, spec, folder.stored_names())):
        fail(f"{folder.path} is of another spec: {', '.join(changed)} changed. --figures takes the folder, too")
    results = compute(spec or stored, folder)
    write_results(results, folder)
    write_page(results, folder.report)
    if as_json:
        emit_json(results.as_json() | {"folder": str(folder.path), "report": str(folder.report)})
        return
    print_results(results, say)
    say.print(str(folder.report), markup=False, soft_wrap=True)
