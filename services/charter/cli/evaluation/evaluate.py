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
    from charter.evaluation.compare.results import Results
    from charter.evaluation.compare.spec import EvaluateSpec

SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="Evaluation spec, a YAML file. docs/evaluation.md describes it.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Only find every mistake in the spec, offline.")]
FiguresOption = Annotated[
    bool,
    typer.Option(
        "--figures", help="Only compute the figures again, from what is stored; SPEC may be its folder or name."
    ),
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
    from charter.cli.finding import evaluation_of
    from charter.data.errors import DataError
    from charter.evaluation.compare.folder import EvaluationFolder
    from charter.evaluation.compare.spec import load_evaluation
    from charter.state_files import FolderBusyError, alone_in
    from charter.worker.errors import RunError

    say = errors if as_json else console
    if figures and not spec.is_file():
        stored = evaluation_of(str(spec))
        try:
            with alone_in(stored.path):
                _show(stored, say, as_json)
        except FolderBusyError as error:
            fail(error)
        return
    if spec.is_dir():
        fail(f"{spec} is a folder: name the spec, a file, or compute the figures of what is stored in it by --figures")
    checked = load_evaluation(spec, home(), folder)
    place = EvaluationFolder(checked.folder)
    if check:
        say.print(f"{escape(str(spec))} is valid.", soft_wrap=True)
        for one in checked.unread:
            say.print(f"Not looked into: {escape(str(one))}", soft_wrap=True)
        if as_json:
            emit_json({"valid": True})
        return
    try:
        with alone_in(place.path):
            if not figures:
                try:
                    ask_stored(checked.spec, place, say)
                except (DataError, RunError) as error:
                    fail(error)
            _show(place, say, as_json, checked.spec)
    except FolderBusyError as error:
        fail(error)
    except KeyboardInterrupt:
        say.print(
            f"Stopped. Everything that came is in {escape(str(place.path))}; `charter evaluate {escape(str(spec))}` "
            "goes on.",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def ask_stored(spec: "EvaluateSpec", folder: "EvaluationFolder", say: Console) -> None:
    """Have models and judges of a filled spec say what is not stored yet, and show how it goes.

    Raises ``DataError``, ``RunError`` and as ``worker.evaluation.evaluate``.
    """
    from charter.cli.evaluation.progress import EvaluationProgress
    from charter.cli.evaluation.serving import LocalServers
    from charter.evaluation.compare.prompts import choose_prompts
    from charter.worker.evaluation.evaluate import evaluate as ask

    prompts = choose_prompts(spec)
    say.print(f"{len(prompts)} prompts, answers in {escape(str(folder.path))}", soft_wrap=True)
    servers = LocalServers(spec.name, folder.path, say)
    servers.stop_left_over()
    with EvaluationProgress(say) as progress:
        ask(spec, prompts, folder, servers, progress.show)


def write_figures(folder: "EvaluationFolder", spec: "EvaluateSpec") -> "Results":
    """Compute the figures of what is stored, and write them and the page."""
    from charter.evaluation.compare.results import compute, write_results
    from charter.evaluation.report.evaluation_page import write_page

    results = compute(spec, folder)
    write_results(results, folder)
    write_page(results, spec, folder)
    return results


def _show(folder: "EvaluationFolder", say: Console, as_json: bool, spec: "EvaluateSpec | None" = None) -> None:
    """Compute the figures, write them, and show them."""
    from charter.cli.evaluation.tables import print_results
    from charter.evaluation.compare.spec import changes

    stored = folder.read_spec()
    if stored is None:
        fail(f"nothing is stored in {folder.path}: `charter evaluate SPEC` asks the models first")
    if spec is not None and (changed := changes(stored, spec, folder.stored_names())):
        fail(f"{folder.path} is of another spec: {', '.join(changed)} changed. --figures takes the folder, too")
    shown = spec or stored
    results = write_figures(folder, shown)
    if as_json:
        emit_json(results.as_json() | {"folder": str(folder.path), "report": str(folder.report)})
        return
    print_results(results, say)
    say.print(str(folder.report), markup=False, soft_wrap=True)
